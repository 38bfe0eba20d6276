"""The choice between k bits and k bases, and rounding on sums of coordinates."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from bitwright import allocate
from bitwright.allocate import Problem
from bitwright.allocate.multipliers import price
from bitwright.arith.feedback import Levels, descend, round_columns
from bitwright.arith.grid import BASES, Grid, quantize
from bitwright.network import Network, build
from bitwright.quantize import bases, bases_tables, multibit_problem, tables_of, weight_tables
from bitwright.quantize.feedback import fed_back
from bitwright.train.straight import straight_weights
from mutants import mutant

#: of the network's rows: bases of 2 to 4, of 2 alone, of none
FANS = (64, 25, 9)


def network() -> Network:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 12, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(12, 25), nn.ReLU(), nn.Linear(25, 64), nn.ReLU(), nn.Linear(64, 20),
    )  # fmt: skip
    return build(model.eval(), torch.randn(4, 1, 6, 6))


def uniform(net: Network, seed: int, share: float) -> Problem:
    """Losses that fall by four a bit, times luck; a budget of that share of 8 bits."""
    rng = np.random.default_rng(seed)
    n = sum(la.rows for la in net.layers)
    fans = np.repeat([la.fan_in for la in net.layers], [la.rows for la in net.layers])
    loss = np.exp(rng.normal(0, 2, n))[:, None] * fans[:, None] * 0.25 ** np.arange(1.0, 9)
    cost = fans[:, None] * np.arange(1, 9)
    names = tuple(f"{la.name}[{c}]" for la in net.layers for c in range(la.rows))
    budget = int(share * cost[:, -1].sum())
    allowed = np.ones((n, 8), bool)
    return Problem(names, tuple(range(1, 9)), loss, cost, budget, allowed, np.arange(n))


def by_layer(net: Network, values: np.ndarray) -> dict[str, np.ndarray]:
    cuts = np.cumsum([la.rows for la in net.layers])[:-1]
    return dict(zip([la.name for la in net.layers], np.split(values, cuts), strict=True))


def whole(problem: Problem, fans: np.ndarray, loss: np.ndarray) -> Problem:
    """Uniform grids and bases as choices of their own: eleven of them."""
    order, losses, costs, allowed = [], [], [], []
    for b in range(1, 9):
        for own in (False, True) if b in BASES else (False,):
            extra = 8 * (b + 1) if own else 0
            fits = extra <= fans
            order.append((b, own))
            losses.append(np.where(fits, loss[:, b - 1], 1e9) if own else problem.loss[:, b - 1])
            costs.append(problem.cost[:, b - 1] + np.where(fits, extra, 0))
            allowed.append(fits if own else np.ones(len(fans), bool))
    return Problem(
        problem.names, tuple(range(1, 12)), np.stack(losses, 1), np.stack(costs, 1),
        problem.budget, np.stack(allowed, 1), problem.tie,
    )  # fmt: skip


def choice_is_by_loss_a_byte(module: Any = bases) -> None:
    net = network()
    fans = np.repeat([la.fan_in for la in net.layers], [la.rows for la in net.layers])
    for seed in range(3):
        problem = uniform(net, seed, 0.35)
        worth = price(problem)
        rng = np.random.default_rng(seed)
        extra = 8 * np.array([0, 3, 4, 5, 0, 0, 0, 0])
        # what bases save is half of, or one and a half times, what their bytes are worth
        factor = np.where(rng.random(problem.loss.shape) < 0.5, 0.5, 1.5)
        loss = problem.loss - factor * worth * extra
        found = module.multibit_problem(problem, net, by_layer(net, loss))
        there = (extra > 0) & (extra <= fans[:, None])
        assert np.array_equal(found.bases, there & (factor == 1.5))
        assert np.array_equal(found.cost, problem.cost + extra * found.bases)
        assert np.array_equal(found.loss, np.where(found.bases, loss, problem.loss))
        plan = allocate.knapsack(found)
        assert plan.cost <= problem.budget
        assert np.array_equal(plan.bases, found.bases[np.arange(len(fans)), plan.choice])


def test_bases_are_chosen_where_they_cost_less_loss_a_byte():
    choice_is_by_loss_a_byte()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("loss + worth * extra < problem.loss", "loss < problem.loss"),
        ("loss + worth * extra < problem.loss", "loss + 2 * worth * extra < problem.loss"),
        ("return np.asarray(bits) + 1", "return np.asarray(bits)"),
        ("np.where(extra <= layer.fan_in, extra, 0)", "extra"),
    ],
)
def test_another_choice_is_seen(old: str, new: str):
    with pytest.raises((AssertionError, ValueError)):
        choice_is_by_loss_a_byte(mutant("quantize.bases", old, new))


@pytest.mark.parametrize("share", [0.2, 0.3, 0.45])
def test_one_form_a_width_is_as_good_as_all_forms(share: float):
    net = network()
    fans = np.repeat([la.fan_in for la in net.layers], [la.rows for la in net.layers])
    for seed in range(3):
        problem = uniform(net, seed, share)
        rng = np.random.default_rng(seed + 9)
        loss = problem.loss * rng.uniform(0.3, 1.2, problem.loss.shape)
        found = allocate.knapsack(multibit_problem(problem, net, by_layer(net, loss)))
        best = allocate.lp_bound(whole(problem, fans, loss))
        assert found.bases.any() and found.cost <= problem.budget
        assert best * (1 - 1e-9) <= found.loss <= 1.03 * best
        assert found.loss <= allocate.knapsack(problem).loss


def test_the_narrowest_width_stays_uniform():
    net = network()
    problem = uniform(net, 0, 0.4)
    problem = replace(problem, allowed=problem.allowed & (np.arange(1, 9) >= 2))
    found = multibit_problem(problem, net, by_layer(net, 0.01 * problem.loss))
    assert not found.bases[:, 1].any() and found.bases[:, 2].any()
    assert allocate.feasible_range(found)[0] == allocate.feasible_range(problem)[0]


def test_tables_of_a_plan_are_of_its_rows():
    net = network()
    one = weight_tables(net)
    other = bases_tables(net, one)
    problem = uniform(net, 1, 0.35)
    found = multibit_problem(problem, net, by_layer(net, 0.3 * problem.loss))
    plan = allocate.knapsack(found)
    tables = tables_of(net, plan, one, other)
    own = by_layer(net, plan.bases)
    bits = by_layer(net, plan.bits)
    for layer in net.layers:
        grid = tables[layer.name].grid(torch.from_numpy(bits[layer.name]))
        assert np.array_equal(grid.multibit.numpy(), own[layer.name])
        for r in range(layer.rows):
            k, source = bits[layer.name][r], (other if own[layer.name][r] else one)[layer.name]
            assert grid.scale[r] == source.scale[k - 1, r]
            assert grid.zero[r] == source.zero[k - 1, r]


def powers(bits: torch.Tensor) -> torch.Tensor:
    """Coordinates of uniform grids."""
    return torch.where(torch.arange(4) < bits[..., None], 2 ** torch.arange(1, 5), 0)


def problem_of_rounding() -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 40, generator=generator, dtype=torch.float64)
    x[:, 1:] += 0.7 * x[:, :-1]
    weight = torch.randn(1, 9, 40, generator=generator, dtype=torch.float64)
    bits = torch.tensor([[2, 3, 4] * 3])
    scale, zero = 3.0 / 2**bits, 2**bits - torch.tensor([[0] * 3 + [1] * 3 + [2] * 3])
    return weight, (x.T @ x / 200)[None], scale, zero, 2**bits - 1, bits


def test_powers_of_two_are_uniform_grids_in_feedback():
    *parts, bits = problem_of_rounding()
    d = powers(bits)
    plain = round_columns(*parts, 0.1)
    # ties are broken another way, and none is here
    assert torch.equal(round_columns(*parts, 0.1, d), plain)
    weight, gram, scale, zero, top = parts
    one = descend(plain, weight, gram, scale, zero, top)
    assert torch.equal(descend(plain, weight, gram, scale, zero, top, coordinates=d), one)
    for found, wanted in zip(fed_back(*parts, 0.1, d), fed_back(*parts, 0.1), strict=True):
        assert torch.equal(found, wanted)


def test_feedback_on_bases_betters_their_nearest_levels():
    weight, gram, scale, _, top, bits = problem_of_rounding()
    generator = torch.Generator().manual_seed(1)
    d = torch.randint(1, 12, (1, 9, 4), generator=generator) * (powers(bits) > 0)
    zero = d.sum(2) // 2
    scale = (2 * 3.0 / d.sum(2)).half().float()
    levels = Levels(scale.double(), zero / 2, top.double(), d)

    def left(codes: torch.Tensor) -> torch.Tensor:
        off = levels.scale[..., None] * levels.steps(codes) - weight
        return ((off @ gram) * off).sum(2)

    plain = levels.nearest(weight)
    fed = round_columns(weight, gram, scale, zero, top, 0.01, d)
    better = descend(fed, weight, gram, scale, zero, top, sweeps=20, coordinates=d)
    assert bool((left(better) <= left(fed) + 1e-9).all())
    assert float(left(fed).sum()) < float(left(plain).sum())
    # no single move betters what descent ends with
    for c in range(0, 40, 7):
        for v in range(4):
            moved = better.clone()
            moved[..., c] = v
            assert bool((left(moved) >= left(better) - 1e-9).all())


def test_powers_of_two_are_uniform_grids_in_training():
    *_, bits = problem_of_rounding()
    bits = bits[0]
    scale, zero = (3.0 / 2**bits).half().float(), 2**bits - 1
    weight = torch.randn(9, 30, generator=torch.Generator().manual_seed(2))
    plain, own = Grid(bits, scale, zero), Grid(bits, scale, zero, powers(bits))
    assert torch.equal(quantize(weight, plain), quantize(weight, own))
    found = []
    for grid in (plain, own):
        w, step = weight.clone().requires_grad_(), scale.log().requires_grad_()
        value = straight_weights(w, step, grid)
        value.square().sum().backward()
        found.append((value.detach(), w.grad, step.grad))
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)
