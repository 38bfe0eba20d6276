"""Widths of activations: tables against direct sums, the plan against one width for all."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bitwright import allocate, demo
from bitwright.curvature import gauss_newton
from bitwright.curvature.divergence import per_sample
from bitwright.network import build, fresh_edges, outputs
from bitwright.quantize import (
    EDGE_WIDTHS,
    correct,
    edge_problem,
    edge_tables,
    float_outputs,
    round_weights,
    simulate,
    weight_tables,
)
from bitwright.quantize.activations import fake_quantize
from small import Fn


def pooled() -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    model = Fn(
        lambda m, x: m.head(F.max_pool2d(F.relu(m.a(x)), 2).flatten(1)),
        a=nn.Conv2d(2, 3, 3, padding=1), head=nn.Linear(12, 4),
    )  # fmt: skip
    return model.eval(), torch.randn(20, 2, 4, 4)


def test_errors_and_losses_are_direct_sums():
    model, x = pooled()
    network = build(model, x)
    tables = edge_tables(network, x, chunk=7)
    found = gauss_newton(network, x, tolerance=0)
    problem = edge_problem(network, found, tables, 4)
    values = {"x": x, "relu": F.relu(model.a(x)).detach()}
    fresh = fresh_edges(network)
    assert fresh == {"x", "relu"} < {e.name for e in network.edges}  # pooling adds nothing
    group = {e.name: e.group for e in network.edges}
    for name, value in values.items():
        table = tables[group[name]]
        assert list(table.errors) == [name]
        for j, bits in enumerate(EDGE_WIDTHS):
            assert table.grids[bits].bits == bits
            error = (fake_quantize(value.clone(), table.grids[bits]) - value).square()
            mean = error.mean((0, 2, 3)).double()
            np.testing.assert_allclose(table.errors[name][:, j], mean.numpy(), rtol=1e-4)
            loss = 0.5 * float((torch.from_numpy(found.edges[name].value) * mean).sum())
            row = sorted(tables).index(group[name])
            assert problem.loss[row, j] == pytest.approx(loss, rel=1e-4)
    assert problem.cost[:, 0].tolist() == [2 * 32, 2 * 48]
    assert problem.budget == 4 * 80
    assert (np.diff(problem.loss, axis=1) < 0).all()


def test_edges_by_curvature_lose_less_than_one_width():
    """On the embedded network with real images, at the same mean bits."""
    model, arrays = demo.network(), demo.data()
    x = torch.from_numpy(arrays["train_x"][:128])
    test = torch.from_numpy(arrays["test_x"][:300])
    network = build(model, x[:4])
    found = gauss_newton(network, x, tolerance=0.1)
    tables = edge_tables(network, x)
    widths = {la.name: np.full(la.rows, 8) for la in network.layers}
    layers = round_weights(network, weight_tables(network), widths)
    reference, before = outputs(network.module, test), float_outputs(network, x)

    def kl(bits: dict[int, int]) -> float:
        grids = {g: tables[g].grids[b] for g, b in bits.items()}
        answers = simulate(correct(network, layers, grids, x, before), test)
        return float(per_sample(reference, answers, "kl").mean())

    groups = sorted(tables)
    for mean in (4, 5):
        problem = edge_problem(network, found, tables, mean)
        plan = allocate.knapsack(problem)
        mixed = kl(dict(zip(groups, plan.bits.tolist(), strict=True)))
        assert mixed < 0.7 * kl(dict.fromkeys(groups, mean)), mean
        numbers = problem.cost[:, 0] / EDGE_WIDTHS[0]
        assert (numbers * plan.bits).sum() <= mean * numbers.sum()
