"""What a file's outputs are checked against, where no integer tensor tells."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bitwright.deploy import agree, onnx_file, runtime, verify
from bitwright.network import build
from bitwright.quantize import Quantized, calibrate, round_weights, weight_tables

X = torch.randn(32, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def quantized(outputs: int, edges: bool) -> Quantized:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
            nn.Linear(16, outputs),
        ).eval()  # fmt: skip
    network = build(model, X)
    widths = {la.name: np.full(la.rows, 8) for la in network.layers}
    layers = round_weights(network, weight_tables(network), widths)
    return Quantized(network, layers, calibrate(network, X) if edges else {})


def turned(of: Quantized) -> Quantized:
    """All codes of the last layer turned over."""
    stored = of.layers["4"]
    return replace(of, layers={**of.layers, "4": replace(stored, codes=255 - stored.codes)})


@pytest.mark.parametrize("edges", [True, False])
@pytest.mark.parametrize("outputs", [1, 3])
def test_the_last_layer_is_checked(outputs: int, edges: bool, tmp_path: Path):
    right = quantized(outputs, edges)
    wrong = turned(right)
    onnx_file.save(right, tmp_path / "model.onnx")
    good, bad = (verify(q, tmp_path / "model.onnx", X) for q in (right, wrong))
    assert good.ok and good.strayed == 0, good
    assert not bad.ok and bad.strayed == len(X) and not bad.differing
    if outputs == 1:  # where no class can tell
        assert "32 of 32 rows have other outputs" in bad.why
    assert agree(right, right, X) == ()
    (lost,) = agree(right, wrong, X)
    assert lost.name == "output" and lost.fraction == 1 and lost.max_step > 1e-3
    assert lost.where == ((0, 0)) and lost.expected != lost.found


@pytest.mark.parametrize(("function", "count"), [("outputs", "changed"), ("run", "strayed")])
def test_no_numbers_are_no_answers(
    function: str, count: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    of = quantized(1, True)
    onnx_file.save(of, tmp_path / "model.onnx")
    made = getattr(runtime, function)

    def spoilt(*arguments: Any, **options: Any) -> Any:
        found = made(*arguments, **options)
        return found * math.nan if isinstance(found, Tensor) else [found[0] * math.nan, *found[1:]]

    monkeypatch.setattr(runtime, function, spoilt)
    found = verify(of, tmp_path / "model.onnx", X)
    assert getattr(found, count) == len(X) and not found.ok and "32 of 32" in found.why
    json.dumps(found.to_dict(), allow_nan=False)
    assert found.to_dict()["output_error"] is (None if function == "run" else found.output_error)
