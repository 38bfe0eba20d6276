"""Learned rounding: exhaustive search on a tiny layer, and no block that gets worse."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitwright.curvature import gauss_newton
from bitwright.curvature.divergence import per_sample
from bitwright.network import build, outputs
from bitwright.quantize import (
    Quantized,
    calibrate,
    learn_rounding,
    round_weights,
    simulate,
    weight_tables,
)
from bitwright.quantize.learned import SoftRows
from mutants import mutant


def nearest(model: nn.Module, x: Tensor, bits: int, edges: bool = False) -> Quantized:
    network = build(model.eval(), x)
    widths = {la.name: np.full(la.rows, bits) for la in network.layers}
    layers = round_weights(network, weight_tables(network), widths)
    return Quantized(network, layers, calibrate(network, x) if edges else {})


class Tiny(nn.Module):
    """Strongly correlated inputs, so that weights can make up for each other."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(6, 2), nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.layer(x)))


def rows(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(count, 2, generator=generator) @ torch.randn(2, 6, generator=generator) + (
        0.1 * torch.randn(count, 6, generator=generator)
    )


def test_the_rounding_is_nearly_the_best_of_all():
    torch.manual_seed(1)
    x = rows(160)
    start = nearest(Tiny(), x, 2)
    network = start.network
    traces = {n: e.value for n, e in gauss_newton(network, x).edges.items()}
    end = next(n for n in traces if n.startswith("relu"))
    found = learn_rounding(start, x, traces, iterations=400)

    def lost(layers: object) -> float:  # ½ Σ Tr_c E(ŷ_c − y_c)², of the first block
        stored = layers["layer"]
        y = F.relu(x @ network.matrix(network.layers[0]).T + network.tensor("layer.bias"))
        q = F.relu(x @ stored.matrix().T + stored.bias)
        return float(0.5 * ((q - y).square() * torch.from_numpy(traces[end])).sum(1).mean())

    soft = SoftRows(network.matrix(network.layers[0]).detach(), start.layers["layer"])
    best = np.inf
    for ups in itertools.product((0.0, 1.0), repeat=6):  # both rows alike, then each by itself
        for row in range(2):
            codes = start.layers["layer"].codes.clone()
            codes[row] = (soft.low[row] + torch.tensor(ups)).to(torch.uint8)
            one = replace(start.layers["layer"], codes=codes)
            best = min(best, lost({"layer": one}))
    assert lost(found.layers) < 0.5 * lost(start.layers)
    assert lost(found.layers) < 1.2 * best  # of one row moved; two may gain more
    for name, layer in found.layers.items():
        assert torch.equal(layer.grid.scale, start.layers[name].grid.scale)
        assert int((layer.codes.int() - start.layers[name].codes.int()).abs().max()) <= 1


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        self.a, self.b = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(x + self.b(F.relu(self.a(x))))
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize("edges", [False, True])
def test_answers_come_closer(edges: bool):
    torch.manual_seed(2)
    x = torch.randn(400, 2, 6, 6)
    start = nearest(Residual(), x, 2, edges)
    before = {n: layer.codes.clone() for n, layer in start.layers.items()}
    traces = {n: e.value for n, e in gauss_newton(start.network, x[:64]).edges.items()}
    seen: list[float] = []
    found = learn_rounding(start, x[:200], traces, iterations=120, progress=seen.append)
    again = learn_rounding(start, x[:200], traces, iterations=120)
    reference = outputs(start.network.module, x[200:])
    kl = [float(per_sample(reference, simulate(q, x[200:]), "kl").mean()) for q in (start, found)]
    assert kl[1] < 0.7 * kl[0]
    assert seen == pytest.approx([1 / 3, 2 / 3, 1])
    for name, layer in found.layers.items():
        assert torch.equal(layer.codes, again.layers[name].codes)  # same seed, same codes
        assert torch.equal(start.layers[name].codes, before[name])


def test_what_rows_unseen_do_not_confirm_is_not_kept():
    torch.manual_seed(2)
    seen, held = 0.01 * torch.randn(56, 2, 6, 6) - 3, torch.randn(8, 2, 6, 6)  # of another kind
    start = nearest(Residual(), held, 2)
    traces = {n: e.value for n, e in gauss_newton(start.network, held).edges.items()}
    always = mutant("quantize.learned", "if loss(after[held:], target[held:]).mean() <", "if 0 <")
    kl = [
        float(per_sample(outputs(start.network.module, held), simulate(q, held), "kl").mean())
        for q in (
            start,
            learn_rounding(start, torch.cat([seen, held]), traces, iterations=60),
            always.learn_rounding(start, torch.cat([seen, held]), traces, iterations=60),
        )
    ]
    assert kl[1] <= kl[0] < kl[2]
