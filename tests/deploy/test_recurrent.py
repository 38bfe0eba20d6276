"""Recurrent layers have no quantized form: left in float, they are part of both files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bitwright.deploy import agree, artefact, onnx_file, runtime, verify
from bitwright.errors import BitwrightError
from bitwright.network import build, run
from bitwright.quantize import Quantized, calibrate, round_weights, weight_tables

X = torch.randn(48, 6, 12, generator=torch.Generator().manual_seed(0))
KINDS: dict[str, Callable[[], nn.Module]] = {
    "lstm": lambda: nn.LSTM(8, 10, batch_first=True),
    "both ways": lambda: nn.LSTM(8, 5, num_layers=2, bidirectional=True, batch_first=True),
    "gru": lambda: nn.GRU(8, 10, batch_first=True),
}


class Recurrent(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.first = nn.Linear(12, 8)
        self.memory = KINDS[kind]()
        self.head = nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.memory(torch.relu(self.first(x)))[0][:, -1])


@pytest.mark.parametrize("skip", ["memory", "memory."])
@pytest.mark.parametrize("kind", KINDS)
def test_recurrent_layers_in_float(kind: str, skip: str, tmp_path: Path):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Recurrent(kind).eval()
    with pytest.raises(BitwrightError, match=r"leave it in float with --skip memory$"):
        build(model, X)
    network = build(model, X, skip=[skip])
    assert network.skipped == ("memory",)
    with torch.no_grad():
        for count in (1, 5):
            torch.testing.assert_close(run(network.module, X[:count]), model(X[:count]))
    widths = {la.name: np.full(la.rows, 4) for la in network.layers}
    layers = round_weights(network, weight_tables(network), widths)
    of = Quantized(network, layers, calibrate(network, X))
    artefact.save(of, tmp_path / "model.safetensors", {})
    loaded = artefact.load(tmp_path / "model.safetensors").quantized
    assert not agree(of, loaded, X)
    onnx_file.save(loaded, tmp_path / "model.onnx")
    found = verify(loaded, tmp_path / "model.onnx", X)
    assert found.ok, found.why
    assert runtime.outputs(runtime.session(tmp_path / "model.onnx"), X[:1]).shape == (1, 3)
