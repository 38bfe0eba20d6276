"""Layers left in float are computed in float by the runtime's optimized graph, too."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from bitwright.deploy import onnx_file, runtime, shield, verify
from bitwright.network import build
from bitwright.quantize import Quantized, calibrate, round_weights, weight_tables

X = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0))
#: the layer left in float, and what stands around it
FORMS: dict[str, Callable[[], list[nn.Module]]] = {
    "convolution": lambda: [nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3)],
    "of one channel": lambda: [
        nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 1, 1), nn.Conv2d(1, 8, 1), nn.ReLU(),
        nn.Conv2d(8, 4, 3),
    ],
    "transposed": lambda: [nn.ConvTranspose2d(8, 8, 2, stride=2), nn.ReLU(), nn.Conv2d(8, 4, 3)],
    "no bias": lambda: [nn.Conv2d(8, 8, 3, bias=False), nn.ReLU6(), nn.Conv2d(8, 4, 3)],
    "linear": lambda: [
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 8), nn.ReLU(), nn.Linear(8, 4),
        nn.Unflatten(1, (4, 1, 1)),
    ],
    "linear on tokens": lambda: [
        nn.Flatten(2), nn.Linear(36, 36), nn.ReLU(), nn.Linear(36, 5), nn.Unflatten(2, (5, 1)),
    ],
}  # fmt: skip
SKIPPED = {"convolution": "2", "of one channel": "4", "transposed": "2", "no bias": "2",
           "linear": "4", "linear on tokens": "3"}  # fmt: skip

#: a reshape stands between the integers and the layer, or no Gemm comes of it
UNTOUCHED = {"linear", "linear on tokens"}


@pytest.mark.parametrize("form", FORMS)
def test_float_layers_stay_float(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), *FORMS[form](), nn.Flatten()).eval()
    network = build(model, X, skip=[SKIPPED[form]])
    widths = {la.name: np.full(la.rows, 8) for la in network.layers}
    assert SKIPPED[form] not in widths
    of = Quantized(
        network, round_weights(network, weight_tables(network), widths), calibrate(network, X)
    )
    path = tmp_path / "model.onnx"
    onnx_file.save(of, path)
    found = verify(of, path, X)
    assert found.ok and found.equal == found.tensors, (found.why, found.differing)
    assert found.qlinear_convolutions == found.convolutions
    runtime.session(path, optimized=tmp_path / "optimized.onnx")
    kept = [n.op_type for n in onnx.load(tmp_path / "optimized.onnx").graph.node]
    float_kinds = {"Conv", "FusedConv", "ConvTranspose", "Gemm", "FusedGemm", "MatMul"}
    assert len(float_kinds & set(kept)) == 1, kept

    shielded = [n.op_type for n in onnx.load(path).graph.node].count("Max")
    assert shielded == (form not in UNTOUCHED)
    monkeypatch.setattr(onnx_file, "shield_floats", lambda graph: None)
    onnx_file.save(of, tmp_path / "plain.onnx")
    check = verify(of, tmp_path / "plain.onnx", X)
    assert check.ok is not bool(shielded), "the runtime leaves it alone: no shield is needed"


def test_nothing_is_put_before_quantized_layers(tmp_path: Path):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten()).eval()
    network = build(model, X)
    widths = {la.name: np.full(la.rows, 4) for la in network.layers}
    layers = round_weights(network, weight_tables(network), widths)
    made = onnx_file.build_model(Quantized(network, layers, calibrate(network, X)))
    assert not any(node.op_type == "Max" for node in made.graph)
    before = len(list(made.graph))
    shield.shield_floats(made.graph)
    assert len(list(made.graph)) == before
