"""compressed-tensors' `pack-quantized` layout, which vLLM-class servers load: Linear weights.

`model.safetensors` holds `NAME.weight_packed` (int32, codes of a row one after another, the first
in the lowest bits), `NAME.weight_scale` (float32 [rows, 1]) and `NAME.weight_shape` of each Linear
layer, everything else in float; `config.json` says which layers have how many bits.

A row's weights `s · (v − z/2)` become `t · q` with a signed q and no zero point, exactly:
`q = v − z/2` and `t = s` for an even z, else `q = 2v − z` and `t = s/2`, which takes a bit more. A
layer has one width here: the largest that one of its rows needs, rounded up to 4 or 8, the widths
those servers have kernels for. (A layer split by width would lose nothing, but no server puts rows
of several tensors together again.) Channels of several widths therefore gain little in this form;
plans by layers (`--method layers`) keep their sizes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save
from torch import Tensor

from bitwright.arith.grid import container
from bitwright.deploy.written import Written
from bitwright.errors import BitwrightError
from bitwright.files import put
from bitwright.quantize import Quantized, QuantizedLayer

#: widths that servers' kernels load; the layout itself has 1 to 8
SERVED = (4, 8)


def signed(stored: QuantizedLayer) -> tuple[Tensor, Tensor]:
    """Integers q, int16 [rows, fan_in], and steps t, float32 [rows], with `weight = t · q`."""
    zero = stored.grid.zero[:, None].to(torch.int16)
    odd = zero % 2 == 1
    codes = stored.codes.to(torch.int16)
    q = torch.where(odd, 2 * codes - zero, codes - zero // 2)
    own = stored.grid.multibit  # as they lie in the container
    q = torch.where(own[:, None], container(stored.codes, stored.grid)[0], q)
    return q, torch.where(odd[:, 0] | own, stored.grid.scale / 2, stored.grid.scale)


def width(q: Tensor, widths: tuple[int, ...]) -> int:
    """The least of `widths` whose two's complement holds all of q."""
    low, high = int(q.min()), int(q.max())
    return next(n for n in widths if -(2 ** (n - 1)) <= low and high < 2 ** (n - 1))


def pack_rows(q: Tensor, bits: int) -> np.ndarray:
    """q + 2^(bits − 1) of each row as one string of bits, lowest first, in int32 words."""
    values = (q + 2 ** (bits - 1)).numpy().astype(np.uint8)
    each = (values[:, :, None] >> np.arange(bits, dtype=np.uint8)) & 1
    flat = np.packbits(each.reshape(len(values), -1), axis=1, bitorder="little")
    words = -(-flat.shape[1] // 4)
    padded = np.zeros((len(values), 4 * words), np.uint8)
    padded[:, : flat.shape[1]] = flat
    return padded.view("<i4").astype(np.int32)


def write(quantized: Quantized, folder: Path, widths: tuple[int, ...] = SERVED) -> Written:
    """Write `model.safetensors` and `config.json`.

    Args:
        quantized: what to write.
        folder: where.
        widths: that a layer may have, ascending, the last one 8.

    Raises:
        BitwrightError: the network has no Linear layer.
    """
    network = quantized.network
    linear = [layer for layer in network.layers if layer.weight.endswith(".weight")]
    linear = [layer for layer in linear if layer.kind == "linear"]
    if not linear:
        raise BitwrightError("compressed-tensors is a layout of Linear weights, here is none")
    module = network.module
    tensors = {
        name: np.array(value.detach().numpy(), order="C")
        for name, value in [*module.named_parameters(), *module.named_buffers()]
    }
    groups: dict[int, list[str]] = {}
    held = needed = 0
    for layer in network.layers:
        stored = quantized.layers[layer.name]
        tensors[layer.weight] = stored.matrix().reshape(layer.shape).numpy()
        if stored.bias.any():
            tensors[layer.bias] = stored.bias.numpy()
        else:  # an embedding, or a bias that capture gave to a layer without
            tensors.pop(layer.bias, None)
        if layer not in linear:
            continue
        del tensors[layer.weight]
        q, step = signed(stored)
        bits = width(q, widths)
        groups.setdefault(bits, []).append(layer.name)
        held += bits * layer.weights
        needed += int(stored.grid.bits.sum()) * layer.fan_in
        tensors[f"{layer.name}.weight_packed"] = pack_rows(q, bits)
        tensors[f"{layer.name}.weight_scale"] = step.numpy()[:, None]
        tensors[f"{layer.name}.weight_shape"] = np.array(layer.shape, dtype=np.int64)
    others = [layer.name for layer in network.layers if layer not in linear]
    config = {"quantization_config": _config(groups, others)}
    weights = sum(layer.weights for layer in linear)
    notes = [f"{held / weights:.2f} bits a weight of Linear layers, {needed / weights:.2f} in ours"]
    notes.append(
        "channels of a layer share its width here, 4 or 8; the weights are exactly the same"
    )
    if others:
        notes.append(f"no Linear layers, stored in float: {', '.join(others)}")
    if quantized.edges:
        notes.append("grids of activations are not held: servers quantize weights alone here")
    files = (
        put(folder / "model.safetensors", save(tensors, metadata={"format": "pt"})),
        put(folder / "config.json", json.dumps(config, indent=1).encode()),
    )
    return Written(files, tuple(notes))


def _config(groups: dict[int, list[str]], ignored: list[str]) -> dict[str, Any]:
    """The `quantization_config` that goes into a model's own config.json."""
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {
            f"group_{i}": {
                "targets": groups[bits],
                "weights": {
                    "num_bits": bits,
                    "type": "int",
                    "symmetric": True,
                    "strategy": "channel",
                    "dynamic": False,
                },
                "input_activations": None,
                "output_activations": None,
            }
            for i, bits in enumerate(sorted(groups))
        },
        "ignore": ignored,
        "kv_cache_scheme": None,
    }
