"""Preflight: a file that the runtime computes otherwise is refused, with the reason."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from bitwright.errors import BitwrightError
from bitwright.network import build
from bitwright.pipeline.preflight import preflight

X = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def checked(model: nn.Module, path: Path) -> float:
    return preflight(model.eval(), build(model.eval(), X), X, path, len(X)).error


class Forgetful(nn.Module):
    """Adds one at every second call: no graph knows."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.calls = nn.Conv2d(3, 4, 3), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.layer(x) + self.calls % 2  # type: ignore[no-any-return]


def pooled(offset: float) -> nn.Module:
    """Zeros beside values below zero, of which the runtime's optimizer makes -inf."""
    torch.manual_seed(0)
    first = nn.Conv2d(3, 4, 1)
    nn.init.constant_(first.bias, offset)
    return nn.Sequential(first, nn.ZeroPad2d(1), nn.MaxPool2d(2), nn.Conv2d(4, 4, 1))


def test_a_network_that_agrees_passes(tmp_path: Path):
    assert checked(pooled(9.0), tmp_path / "float.onnx") < 1e-4


def test_the_float_file_does_not_say_where_it_was_made(tmp_path: Path):
    assert checked(pooled(9.0), tmp_path / "float.onnx") < 1e-4
    content = (tmp_path / "float.onnx").read_bytes()
    assert b"pkg.torch" not in content and b".py" not in content


def test_what_the_runtime_computes_otherwise_is_said_of_it(tmp_path: Path):
    with pytest.raises(BitwrightError, match="onnxruntime computes an operation otherwise"):
        checked(pooled(-9.0), tmp_path / "float.onnx")


def test_what_no_graph_sees_is_said_of_the_model(tmp_path: Path):
    model = Forgetful().eval()
    network = build(model, X)
    with torch.no_grad():
        model.calls = int(float((network.module(X) - model.layer(X)).mean()) > 0.5)
    with pytest.raises(BitwrightError, match=r"captured graph differs .* training mode\?"):
        preflight(model, network, X, tmp_path / "float.onnx", len(X))
