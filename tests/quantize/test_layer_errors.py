"""Errors of layers' outputs against matrices multiplied by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from bitwright.network import build
from bitwright.quantize import (
    Quantized,
    QuantizedLayer,
    calibrate,
    layer_errors,
    round_weights,
    weight_tables,
)
from bitwright.quantize.activations import fake_quantize


class Twice(nn.Module):
    """A layer, one that is called twice, and one whose output is zero."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.again, self.none = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 2)
        nn.init.zeros_(self.none.weight)
        nn.init.zeros_(self.none.bias)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.first(x).relu()
        y = self.again(self.again(y).relu())
        return self.none(y) + y.sum(1, keepdim=True)


def by_hand(model: Twice, layers: dict[str, QuantizedLayer], x: Tensor) -> dict[str, float]:
    """In float64, of weights alone that were rounded."""
    weights = {"first": model.first, "again": model.again}
    own = {n: (m.weight.detach().double(), m.bias.detach().double()) for n, m in weights.items()}
    new = {n: (layers[n].matrix().double(), layers[n].bias.double()) for n in weights}
    outs: dict[str, list[tuple[Tensor, Tensor]]] = {"first": [], "again": []}
    y = z = x.double()
    for name in ("first", "again", "again"):
        y = y @ own[name][0].T + own[name][1]
        z = z @ new[name][0].T + new[name][1]
        outs[name].append((y, z))
        y, z = y.relu(), z.relu()
    return {
        name: float(
            (
                sum((z - y).square().sum() for y, z in pairs)
                / sum(y.square().sum() for y, _ in pairs)
            )
            ** 0.5
        )
        for name, pairs in outs.items()
    }


def rounded(bits: int) -> tuple[Twice, Quantized, Tensor]:
    torch.manual_seed(0)
    model, x = Twice().eval(), torch.randn(40, 5)
    network = build(model, x)
    widths = {layer.name: torch.full((layer.rows,), bits).numpy() for layer in network.layers}
    return model, Quantized(network, round_weights(network, weight_tables(network), widths), {}), x


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_errors_are_those_of_the_matrices(bits: int) -> None:
    model, quantized, x = rounded(bits)
    found = layer_errors(quantized, x)
    assert list(found) == ["first", "again"]  # a share of nothing is none
    assert found == pytest.approx(by_hand(model, dict(quantized.layers), x), rel=1e-4)


def test_what_was_rounded_before_a_layer_is_in_its_error() -> None:
    _, quantized, x = rounded(8)
    edges = calibrate(quantized.network, x, bits=2)
    source = next(e for e in quantized.network.edges if e.name == "x")
    moved = fake_quantize(x, edges[source.group])
    layer = quantized.layers["first"]
    with torch.no_grad():
        y = x @ quantized.network.tensor("first.weight").T + quantized.network.tensor("first.bias")
        z = moved @ layer.matrix().T + layer.bias
    found = layer_errors(replace(quantized, edges=edges), x)
    assert found["first"] == pytest.approx(float((z - y).norm() / y.norm()), rel=1e-4)
    assert found["first"] > 3 * layer_errors(quantized, x)["first"]
