"""NNCF: post-training quantization to 8 bits, weights and activations; see `child`.

Settings:
    fast: fast bias correction in place of the accurate one.
    preset: `mixed` (weights symmetric, activations asymmetric) or `performance` (both symmetric).
    full_range: all 8 bits of the weights; NNCF's default keeps one free against saturation on CPUs
        without VNNI.
"""

from __future__ import annotations

import os
import warnings
from typing import Any

# without a compiler NNCF computes its fake quantization by torch itself, to the same end; with one
# it builds an extension first, which takes longer than all that is asked for here
os.environ["CXX"] = "false"

import nncf
from nncf.torch.function_hook import get_hook_storage
from nncf.torch.quantization.layers import BaseQuantizer
from peers import child
from torch import nn

DEFAULTS: dict[str, Any] = {"fast": True, "preset": "mixed", "full_range": True}


def quantize(model: nn.Module, request: child.Request) -> child.Quantized:
    """`nncf.quantize` over all calibration rows."""
    if (request.weight_bits, request.activation_bits) != (8, 8):
        raise ValueError("NNCF quantizes convolutions to 8 bits alone")
    setting = DEFAULTS | request.setting
    layers = child.layers(model)
    fix = nncf.OverflowFix.DISABLE if setting["full_range"] else nncf.OverflowFix.ENABLE
    made = nncf.quantize(
        model,
        nncf.Dataset(list(request.batches())),
        preset=nncf.QuantizationPreset(setting["preset"]),
        subset_size=len(list(request.batches())),
        fast_bias_correction=setting["fast"],
        advanced_parameters=nncf.AdvancedQuantizationParameters(overflow_fix=fix),
    )
    hooks = [n for n, h in get_hook_storage(made).named_hooks() if isinstance(h, BaseQuantizer)]
    weights = {h.partition(".")[2].rpartition("/")[0] for h in hooks if h.endswith("__1.0")}
    kinds = {nn.Conv2d: "conv2d", nn.Linear: "linear"}
    names = {f"{n.replace('.', '/')}/{kinds[type(layer)]}": layer for n, layer in layers.items()}
    widths = [(layer.weight.numel(), 8.0) for name, layer in names.items() if name in weights]
    if len(widths) != len(layers):
        raise RuntimeError(f"{len(widths)} of {len(layers)} layers are quantized: {hooks}")
    return child.Quantized(made.eval(), widths)


if __name__ == "__main__":
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        child.serve("NNCF", nncf.__version__, quantize)
