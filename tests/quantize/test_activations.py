"""Grids of activations: zero is a level, ceilings hold, and the error is no worse than min-max."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from bitwright.network import build
from bitwright.quantize import EdgeGrid, calibrate
from bitwright.quantize.activations import choose, fake_quantize, make_grid

#: the largest code of 8 bits
TOP = 255


def histogram(values: np.ndarray, bins: int = 512) -> tuple[np.ndarray, float, float]:
    low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    return np.histogram(values, bins, (low, high))[0].astype(float), low, high


def loss(counts: np.ndarray, low: float, high: float, grid: EdgeGrid) -> float:
    x = low + (np.arange(len(counts)) + 0.5) * (high - low) / len(counts)
    q = np.clip(np.rint(x / grid.scale) + grid.zero, 0, TOP)
    return float((counts * (grid.scale * (q - grid.zero) - x) ** 2).sum())


def draw(seed: int, scale: float, shift: float) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return scale * (rng.standard_t(3, 2000) + shift)


values = st.builds(draw, st.integers(0, 2**31), st.floats(1e-3, 1e3), st.floats(-5, 5))


@settings(max_examples=30, deadline=None)
@given(values, st.booleans())
def test_zero_is_a_level_and_the_scale_a_float32(x: np.ndarray, at_zero: bool):
    grid = choose(*histogram(x), at_zero)
    assert 0 <= grid.zero <= TOP and grid.scale > 0
    assert grid.scale == float(np.float32(grid.scale))
    assert float(fake_quantize(torch.zeros(1), grid)) == 0.0
    if at_zero:
        assert grid.zero == 0


@settings(max_examples=30, deadline=None)
@given(values)
def test_error_is_no_worse_than_without_clipping(x: np.ndarray):
    counts, low, high = histogram(x)
    found = loss(counts, low, high, choose(counts, low, high, False))
    assert found <= loss(counts, low, high, make_grid(low, high))
    assert found < 0.99 * loss(counts, low, high, make_grid(2 * low, 2 * high))


def test_outliers_are_clipped():
    x = np.concatenate([np.random.default_rng(0).normal(size=100_000), [40.0]])
    grid = choose(*histogram(x, 4096), False)
    assert grid.scale * (TOP - grid.zero) < 37


@settings(max_examples=40, deadline=None)
@given(values, st.sampled_from([6.0, 1.0, 0.3]), st.booleans())
def test_no_level_passes_the_ceiling(x: np.ndarray, ceiling: float, at_zero: bool):
    x = np.minimum(x, ceiling)
    if at_zero:
        x = np.maximum(x, 0)
    grid = choose(*histogram(x), at_zero, ceiling)
    largest = fake_quantize(torch.full((1,), 1e9), grid)
    assert float(largest) <= np.float32(ceiling)
    assert np.float32(grid.scale) * np.float32(TOP - grid.zero) <= np.float32(ceiling)


@settings(max_examples=100, deadline=None)
@given(st.floats(-20, 0), st.floats(0.01, 20))
def test_a_grid_of_a_range_covers_it_to_half_a_step(low: float, high: float):
    grid = make_grid(low, high)
    assert -grid.scale * grid.zero == pytest.approx(low, abs=grid.scale * 0.501)
    assert grid.scale * (TOP - grid.zero) == pytest.approx(high, abs=grid.scale * 0.501)


def test_the_ceiling_holds_where_the_zero_is_rounded_down():
    for seed in range(20):
        rng = np.random.default_rng(seed)
        ceiling = rng.uniform(0.1, 3)
        x = np.minimum(rng.uniform(-rng.uniform(0.1, 4), 1.3 * ceiling, 3000), ceiling)
        grid = choose(*histogram(x), False, ceiling)
        assert grid.zero > 0 and grid.scale * (TOP - grid.zero) <= ceiling


def test_a_constant_zero_gets_some_grid():
    assert choose(np.zeros(8), 0.0, 0.0, True).zero == 0
    assert float(fake_quantize(torch.zeros(3), choose(np.zeros(8), 0.0, 0.0, False)).sum()) == 0


@settings(max_examples=40, deadline=None)
@given(st.floats(1e-3, 10), st.integers(0, 255), st.integers(0, 2**31))
def test_fake_quantization_rounds_to_the_nearest_level(scale: float, zero: int, seed: int):
    grid = EdgeGrid(float(np.float32(scale)), zero)
    x = 100 * scale * torch.randn(200, generator=torch.Generator().manual_seed(seed))
    before = x.clone()
    y = fake_quantize(x, grid)
    assert torch.equal(x, before)
    levels = grid.scale * (torch.arange(256.0) - zero)
    best = (x[:, None] - levels).abs().amin(1)
    assert bool(((x - y).abs() <= best + 1e-4 * scale).all())
    assert torch.equal(fake_quantize(y, grid), y)


class Joined(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        self.left, self.right = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = nn.functional.max_pool2d(x, 2)
        x = torch.cat([torch.relu(self.left(x)), torch.relu(self.right(x))], 1)
        return self.head(x).mean((2, 3))


def test_calibrate_gives_one_grid_to_tied_edges():
    torch.manual_seed(0)
    x = torch.randn(40, 2, 8, 8)
    network = build(Joined().eval(), x)
    grids = calibrate(network, x)
    assert set(grids) == {e.group for e in network.edges}
    group = {e.name: e.group for e in network.edges}
    assert group["max_pool2d"] == group["relu"]
    assert group["cat"] == group["relu_1"] == group["relu_2"]
    assert len(grids) < len(network.edges)
    for e in network.edges:
        assert not e.at_zero or grids[e.group].zero == 0
    # the tied grid holds the largest value of either branch
    with torch.no_grad():
        model = network.module
        largest = max(float(v.max()) for v in _values(network, x, ("relu_1", "relu_2")))
    assert model is network.module
    grid = grids[group["cat"]]
    assert 0.6 * largest <= grid.scale * TOP <= 1.01 * largest


def _values(network, x: Tensor, names: tuple[str, ...]) -> list[Tensor]:
    from bitwright.network import run

    found = []

    def call(node, args, kwargs):
        value = node.target(*args, **kwargs)
        if node.name in names:
            found.append(value)
        return value

    run(network.module, x, call)
    return found


def test_calibrate_does_not_depend_on_the_chunk():
    torch.manual_seed(1)
    x = torch.randn(30, 2, 8, 8)
    network = build(Joined().eval(), x)
    done: list[float] = []
    pieces = calibrate(network, x, chunk=7, progress=done.append)
    whole = calibrate(network, x, chunk=64)
    assert pieces.keys() == whole.keys()
    for g, grid in whole.items():  # a convolution may sum in another order for another chunk
        assert pieces[g].zero == grid.zero
        assert pieces[g].scale == pytest.approx(grid.scale, rel=1e-5)
    assert done == sorted(done) and done[-1] == 1.0


def test_calibrate_takes_given_weights():
    torch.manual_seed(2)
    x = torch.randn(20, 2, 8, 8)
    network = build(Joined().eval(), x)
    plain = calibrate(network, x)
    tripled = {"stem.weight": 3 * network.tensor("stem.weight")}
    tripled["stem.bias"] = 3 * network.tensor("stem.bias")
    larger = calibrate(network, x, constants=tripled)
    group = {e.name: e.group for e in network.edges}["relu"]
    assert larger[group].scale == pytest.approx(3 * plain[group].scale, rel=1e-3)


def test_relu6_stays_below_six():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU6(), nn.Conv2d(4, 2, 3)).eval()
    with torch.no_grad():
        model[0].weight *= 20
    x = torch.randn(30, 1, 8, 8)
    network = build(model, x)
    (edge,) = [e for e in network.edges if e.ceiling == 6.0]
    grid = calibrate(network, x)[edge.group]
    assert grid.zero == 0
    assert np.float32(grid.scale) * np.float32(TOP) <= np.float32(6)
    assert grid.scale * TOP > 5.9  # and uses the whole of it


@pytest.mark.parametrize("bits", [2, 3, 4, 6])
@pytest.mark.parametrize("sign", ["relu", "signed"])
def test_narrow_grids_are_the_best_of_their_levels(bits: int, sign: str):
    """Against all grids of 60 × 60 ranges of the same data; fewer bits lose more."""
    values = np.random.default_rng(0).standard_normal(20_000)
    values = np.maximum(values, 0) if sign == "relu" else values + 0.5
    counts, low, high = histogram(values)
    grid = choose(counts, low, high, sign == "relu", bits=bits)
    assert grid.bits == bits and 0 <= grid.zero <= grid.top == 2**bits - 1

    def error(g: EdgeGrid) -> float:
        x = torch.from_numpy(values)
        return float((fake_quantize(x.clone(), g) - x).square().mean())

    lows = [0.0] if sign == "relu" else np.linspace(low / 8, low, 60)
    best = min(error(make_grid(a, b, bits)) for a in lows for b in np.linspace(high / 8, high, 60))
    assert error(grid) <= 1.1 * best
    assert error(grid) > error(choose(counts, low, high, sign == "relu", bits=bits + 1))
    wide = error(make_grid(low, high, bits))
    assert error(grid) < wide  # outliers are clipped
    assert fake_quantize(torch.tensor([1e9, -1e9]), grid).tolist() == pytest.approx(
        [grid.scale * (grid.top - grid.zero), -grid.scale * grid.zero]
    )


def test_every_group_has_its_own_width():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    x = torch.randn(50, 4)
    network = build(model, x)
    groups = sorted({e.group for e in network.edges})
    found = calibrate(network, x, bits={g: 2 + i for i, g in enumerate(groups)})
    assert [found[g].bits for g in groups] == [2 + i for i in range(len(groups))]
    assert calibrate(network, x) == calibrate(network, x, bits=8)


class Unequal(nn.Module):
    """Two branches of different size on one grid."""

    def __init__(self) -> None:
        super().__init__()
        self.fine, self.coarse = nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(2, 2, 3, 4, padding=1)
        self.head = nn.Linear(3 * 64 + 2 * 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        fine, coarse = torch.relu(self.fine(x)), torch.relu(self.coarse(x))
        return self.head(torch.cat([fine.flatten(1), coarse.flatten(1)], 1))


def test_ranges_lose_least_by_curvature():
    torch.manual_seed(4)
    model, x = Unequal().eval(), torch.randn(60, 2, 8, 8)
    with torch.no_grad():
        model.fine.weight *= torch.tensor([0.2, 1.0, 6.0])[:, None, None, None]
        model.coarse.weight *= 2
    network = build(model, x)
    group = {e.name: e.group for e in network.edges}
    fine, coarse = (n for n in group if n in ("relu", "relu_1"))
    assert group[fine] == group[coarse]
    traces = {fine: np.array([40.0, 9.0, 0.0]), coarse: np.array([1.0, 3.0])}
    values = dict(zip((fine, coarse), _values(network, x, (fine, coarse)), strict=True))

    def lost(grid: EdgeGrid) -> float:  # ½ Σ Tr_c E‖Q(x_c) − x_c‖²
        each = {n: (fake_quantize(v, grid) - v).double().square().transpose(0, 1).flatten(1).mean(1)
                for n, v in values.items()}  # fmt: skip
        return 0.5 * sum(float(torch.from_numpy(traces[n]) @ each[n]) for n in each)

    def chosen(**by) -> float:
        return lost(calibrate(network, x, bits=3, **by)[group[fine]])

    high = max(float(v.max()) for v in values.values())
    best = min(lost(make_grid(0.0, f * high, 3)) for f in np.linspace(0.02, 1, 400))
    ours = chosen(weights=traces)
    assert best <= ours <= 1.1 * best
    assert chosen() > 3 * ours
    assert chosen(percentile=99.99) > 3 * ours
    numbers = {fine: 64, coarse: 4}
    assert chosen(weights={n: t * numbers[n] for n, t in traces.items()}) > 1.5 * ours
    nothing = {n: 0 * t for n, t in traces.items()}
    assert chosen(weights=nothing) == chosen()


def test_a_percentile_clips_its_share():
    torch.manual_seed(5)
    x = torch.randn(200, 2, 8, 8)
    network = build(Joined().eval(), x)
    entry = network.edges[0]  # the rows themselves
    grid = calibrate(network, x, percentile=99.0)[entry.group]
    low, high = np.quantile(x.numpy(), [0.01, 0.99])
    assert -grid.zero * grid.scale == pytest.approx(low, abs=2 * grid.scale)
    assert (grid.top - grid.zero) * grid.scale == pytest.approx(high, abs=2 * grid.scale)
