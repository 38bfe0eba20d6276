"""Widths by channel: the problem against enumeration, its losses against the clipped edges."""

from __future__ import annotations

from itertools import product
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bitwright import curvature, quantize
from bitwright.network import Network, batches, build, fresh_edges, outputs, run
from bitwright.quantize import EDGE_WIDTHS, EdgeGrid
from bitwright.quantize import activations as edges_module
from bitwright.quantize import channel_widths as module
from bitwright.quantize.activations import fake_quantize, watch
from mutants import mutant
from small import Fn, one_thread  # noqa: F401


def uneven() -> nn.Module:
    """Channels whose ranges differ by a factor of fifty; a sum of signed values."""
    torch.manual_seed(0)
    first = nn.Conv2d(2, 6, 3, padding=1)
    with torch.no_grad():
        first.weight *= torch.logspace(-1.2, 0.5, 6)[:, None, None, None]
        assert first.bias is not None
        first.bias *= 0

    def forward(self: Any, x: Tensor) -> Tensor:
        x = torch.relu(self.a(x))
        x = torch.relu(x + self.b(x))
        return self.head(nn.functional.max_pool2d(x, 2).flatten(1))  # type: ignore[no-any-return]

    parts = {"a": first, "b": nn.Conv2d(6, 6, 3, padding=1), "head": nn.Linear(6 * 16, 4)}
    return Fn(forward, **parts).eval()


@pytest.fixture(scope="module")
def case() -> tuple[Network, curvature.Sensitivity, Tensor]:
    x = torch.randn(32, 2, 8, 8, generator=torch.Generator().manual_seed(1))
    network = build(uneven(), x)
    return network, curvature.gauss_newton(network, x, kind="squared", tolerance=0), x


# ------------------------------------------------------------------------------ levels of a channel


def levels_are_of_their_width(module: ModuleType) -> None:
    """2^width levels around the zero point, in the container; idempotent; others as ever."""
    x = 4 * torch.randn(3, 4, 5, 5, generator=torch.Generator().manual_seed(0))
    for zero, bits, widths in ((0, 6, (2, 6, 3, 5)), (8, 4, (2, 4, 3, 3)), (255, 8, (2, 8, 7, 4))):
        grid = module.EdgeGrid(0.125, zero, bits, widths)
        once = module.fake_quantize(x, grid)
        assert torch.equal(module.fake_quantize(once, grid), once)
        q = (once / 0.125 + zero).round().movedim(1, 0).flatten(1)
        low, high = grid.windows
        for c, width in enumerate(widths):
            assert high[c] - low[c] == 2**width - 1
            assert 0 <= low[c] <= zero <= high[c] <= 2**bits - 1
            assert q[c].min() >= low[c] and q[c].max() <= high[c]
            wanted = ((x[:, c] / 0.125).round() + zero).clamp(int(low[c]), int(high[c])) - zero
            assert torch.equal(once[:, c], 0.125 * wanted)
        flat = once.flatten(1)  # another number of channels: left as it is
        assert torch.equal(module.fake_quantize(flat, grid), flat)
        assert grid.mean_bits == sum(widths) / 4
    signed = module.EdgeGrid(1.0, 2**7, 8, tuple(range(2, 9)))
    assert signed.windows[0].tolist() == [2**7 - 2 ** (w - 1) for w in range(2, 9)]


def test_levels_of_a_channel():
    levels_are_of_their_width(edges_module)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (".clamp_(*grid.limits(x))", ".clamp_(0, grid.top)"),
        ("return low, low + levels", "return low, low + levels + 1"),
        ("low = self.zero - np.rint(self.zero * levels / self.top)", "low = 0 * np.rint(levels)"),
        ("values.shape[1] != len(self.widths)", "not self.widths"),
    ],
)
def test_other_levels_are_seen(old: str, new: str):
    with pytest.raises((AssertionError, RuntimeError)):
        levels_are_of_their_width(mutant("quantize.activations", old, new))


# ----------------------------------------------------------------------------------- the problem


def some(rng: np.random.Generator) -> module.Units:
    """Three channels on two edges, three steps; finer steps need wider channels."""
    group = np.array([0, 0, 1])
    size = np.exp(rng.standard_normal(3))[:, None, None]
    step, levels = 2.0 ** -np.arange(3), 2.0 ** np.array(EDGE_WIDTHS)
    inside = step**2 / 12
    outside = np.maximum(size - levels[:, None] * step / 12, 0) ** 2
    weight = np.exp(rng.standard_normal(3))[:, None, None]
    return module.Units(weight * (inside + outside), rng.integers(1, 4, 3), group)


def plans_are_as_good_as_any(module: ModuleType) -> None:
    """At a price the least of all; within a budget a few percent off, and nothing left unspent."""
    bits, rows, excess = np.array(EDGE_WIDTHS), np.arange(3), []
    for seed in range(4):
        units = some(np.random.default_rng(seed))
        units = module.Units(units.loss, units.numbers, units.group)
        every = [
            (units.bits(np.array(w)), units.loss[rows, w, np.array(s)[units.group]].sum())
            for s in product(range(3), repeat=2)
            for w in product(range(len(bits)), repeat=3)
        ]  # fmt: skip
        for price in (0.1, 0.01, 0.001, 0.0):
            step, width = units.at(price)
            found = units.loss[rows, width, step[units.group]].sum() + price * units.bits(width)
            assert found == pytest.approx(min(loss + price * cost for cost, loss in every))
        for mean in (2.0, 3.3, 4.0, 8.0):
            budget = int(mean * units.numbers.sum())
            step, width = module.solve(units, budget)
            assert units.bits(width) == units.numbers @ bits[width] <= budget
            loss = units.loss[rows, width, step[units.group]].sum()
            best = min(loss for cost, loss in every if cost <= budget)
            excess.append(loss / best - 1)
            for c in np.flatnonzero(width < len(bits) - 1):
                more = width + (rows == c)
                if units.bits(more) <= budget:
                    assert units.loss[rows, more, step[units.group]].sum() >= loss - 1e-12
    assert min(excess) > -1e-9 and np.mean(excess) < 0.1, excess


def test_plans_are_as_good_as_any():
    plans_are_as_good_as_any(module)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("best = cost.argmin(1)", "best = self.loss.argmin(1)"),
        ("np.add.at(total, self.group, least)", "total[self.group] = least"),
        ("units.numbers <= room", "units.numbers <= room + 9"),
        ("return step, _filled(units, budget, step, width)", "return step, width * 0"),
    ],
)
def test_other_plans_are_seen(old: str, new: str):
    with pytest.raises(AssertionError):
        plans_are_as_good_as_any(mutant("quantize.channel_widths", old, new))


# ------------------------------------------------------------------------------ grids of a network


def test_losses_are_of_the_clipped_edge(case: Any):
    """½ Tr · error of each channel at each width and step, by fake quantization."""
    network, sensitivity, x = case
    edges = {e.name: e for e in network.edges if e.name in fresh_edges(network)}
    values: dict[str, Tensor] = {}
    watch(network, x, edges, lambda n, v: values.update({n: v.clone()}))
    assert {e.at_zero for e in edges.values()} == {True, False}
    for name, edge in edges.items():
        count = edge.shape[0]
        numbers = values[name].movedim(1, 0).flatten(1)
        found = module._losses(edge, sensitivity, numbers, 0.3)
        rng = np.random.default_rng(0)
        for i in (0, 13, 36):
            widths = tuple(rng.integers(2, 9, count).tolist())
            zero = 0 if edge.at_zero else 128
            grid = EdgeGrid(0.3 * 2 ** ((i - 32) / 4), zero, 8, widths)
            wrong = (fake_quantize(values[name], grid) - values[name]).double().square()
            each = wrong.movedim(1, 0).flatten(1).mean(1).numpy()
            wanted = 0.5 * sensitivity.edges[name].value * each
            own = found[np.arange(count), np.array(widths) - 2, i]
            np.testing.assert_allclose(own, wanted, rtol=1e-3, atol=1e-12)


def error(network: Network, grids: dict[int, EdgeGrid], x: Tensor) -> float:
    """Squared error of the answers, activations alone quantized."""
    group = {e.name: e.group for e in network.edges}

    def edge(node: Any, value: Any) -> Any:
        return fake_quantize(value, grids[group[node.name]]) if node.name in group else value

    def call(node: Any, args: Any, kwargs: Any) -> Any:
        return edge(node, node.target(*args, **kwargs))

    with torch.no_grad():
        found = [run(network.module, rows, call, enter=edge) for rows in batches(x, 64)]
    return float((torch.cat(found) - outputs(network.module, x)).square().mean())


def test_it_saves_what_widths_by_edge_lose(case: Any):
    """Unseen answers at the same mean bits of stored numbers."""
    network, sensitivity, x = case
    fresh = torch.randn(64, 2, 8, 8, generator=torch.Generator().manual_seed(2))
    numbers = {
        e.group: int(np.prod(e.shape)) for e in network.edges if e.name in fresh_edges(network)
    }
    traces = {n: e.value for n, e in sensitivity.edges.items()}
    tables = quantize.edge_tables(network, x, weights=traces)
    for bits in (3, 4):
        grids = quantize.channel_grids(network, sensitivity, x, bits, chunk=32)
        used = sum(n * grids[g].mean_bits for g, n in numbers.items())
        assert 0.97 * bits * sum(numbers.values()) < used <= bits * sum(numbers.values())
        assert any(len(set(g.widths)) > 1 for g in grids.values())
        plan = quantize.edge_problem(network, sensitivity, tables, bits)
        best = {g: tables[g].grids[b] for g, b in zip(
            sorted(tables), allocate_bits(plan), strict=True)}  # fmt: skip
        assert error(network, grids, fresh) < 0.8 * error(network, best, fresh)
    whole = quantize.channel_grids(network, sensitivity, x, 8)
    assert all(g.bits == 8 for g in whole.values())


def allocate_bits(problem: Any) -> list[int]:
    from bitwright import allocate

    found: list[int] = allocate.knapsack(problem).bits.tolist()
    return found


def test_only_channels_that_stay_in_place_are_divided():
    x = torch.randn(4, 4, 8, 8)
    conv = nn.Conv2d(4, 8, 3, padding=1)

    def moved(how: Any) -> set[int]:
        model = Fn(lambda s, x: s.b(how(torch.relu(s.a(x)))), a=conv, b=nn.Conv2d(8, 2, 3))
        network = build(model.eval(), x)
        name = next(e.name for e in network.edges if e.shape[:1] == (8,))
        group = next(e.group for e in network.edges if e.name == name)
        return module.divisible(network) & {group}

    assert moved(lambda v: v)
    assert moved(lambda v: nn.functional.max_pool2d(v, 2))
    assert not moved(lambda v: v.permute(0, 2, 1, 3))  # rows of pixels in the place of channels
    assert not moved(lambda v: nn.functional.channel_shuffle(v, 2))
    assert not moved(lambda v: nn.functional.pad(v[:, 4:], (0, 0, 0, 0, 0, 4)))


def test_a_ceiling_is_kept(case: Any):
    """No level of any channel above what a clip lets through: the runtime folds the clip."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 6, 3), nn.ReLU6(), nn.Conv2d(6, 3, 3), nn.Flatten()).eval()
    with torch.no_grad():
        model[0].weight[2], model[0].bias[2] = 0, -1  # a channel that never fires: no curvature
    x = 9 * torch.randn(32, 2, 8, 8)
    network = build(model, x)
    sensitivity = curvature.gauss_newton(network, x, kind="squared")
    for bits in (2.5, 4, 8):
        for g, grid in quantize.channel_grids(network, sensitivity, x, bits).items():
            top = min(e.ceiling for e in network.edges if e.group == g)
            assert grid.scale * (grid.top - grid.zero) <= top
            assert not grid.widths or len(grid.widths) < 6 or grid.widths[2] == 2
