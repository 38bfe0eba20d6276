"""Sums of bases: the fit against exhaustive codes, and grids with coordinates against levels."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from arith.test_grid import gauss
from bitwright.arith import bases, grid
from bitwright.arith.grid import (
    BASES,
    MAX_LEVEL,
    Grid,
    are_bases,
    container,
    dequantize,
    joined,
    quantize,
)
from bitwright.arith.multibit import sketch
from mutants import mutant


def heavy(rows: int, columns: int, seed: int) -> Tensor:
    weight = gauss(rows, columns, seed)
    return weight * weight.abs()


def levels(found: Grid, row: int) -> Tensor:
    """Level by level from the definition, float64 [2ᵇ]."""
    assert found.coordinates is not None
    k, d = int(found.bits[row]), found.coordinates[row].tolist()
    q = [sum(d[i] for i in range(k) if v >> i & 1) - int(found.zero[row]) for v in range(2**k)]
    return float(found.scale[row]) / 2 * torch.tensor(q, dtype=torch.float64)


def exhaustive(row: np.ndarray, bits: int) -> float:
    """The least squared error over all codes of a row, each with its least-squares levels."""
    best = np.inf
    for codes in itertools.product(range(2**bits), repeat=len(row)):
        design = np.array([[(v >> i) & 1 for i in range(bits)] + [1] for v in codes], float)
        left = np.linalg.lstsq(design, row, rcond=None)[0]
        best = min(best, float(((design @ left - row) ** 2).sum()))
    return best


@pytest.mark.parametrize("n", [4, 5, 6])
def test_few_weights_are_fitted_as_all_codes_would(n: int):
    # real levels: what integers of half steps cost is another matter
    weight = gauss(8, n, n)
    signs = bases._signs(2)
    values = weight.double().sort(dim=1).values
    rows = bases._Sorted(values, torch.nn.functional.pad(values.cumsum(1), (1, 0)))
    starts = list(bases._starts(weight, rows, 2))
    ends = [rows.error(bases._alternated(rows, s, signs) @ signs) for s in starts]
    found = torch.stack(ends).amin(0) + weight.double().square().sum(1)
    best = torch.tensor([exhaustive(row, 2) for row in weight.double().numpy()])
    size = weight.double().square().sum(1)
    assert bool((found >= best - 1e-7 * size).all())
    close = found <= best + 0.01 * size
    assert int(close.sum()) >= 7, (found / size, best / size)


@pytest.mark.parametrize("k", BASES)
@pytest.mark.parametrize("columns", [9, 72, 288])
def test_the_fit_betters_greedy_signs_and_the_uniform_grid(k: int, columns: int):
    for weight in (gauss(6, columns, k), heavy(6, columns, k)):
        found, error = bases.fit(weight, k)
        greedy = bases.greedy(weight, k) @ bases._signs(k)
        by_greedy = (greedy[:, :, None] - weight[:, None].double()).square().amin(1).sum(1)
        _, uniform = grid.fit(weight, k)
        assert bool((error <= 1.05 * by_greedy).all())
        # integers of half steps cost a little where rows are short
        assert float(error.sum()) <= 1.02 * float(uniform.sum())
        exact = (dequantize(quantize(weight, found), found).double() - weight.double()).square()
        assert torch.equal(error, exact.sum(1))
        assert bool(are_bases(found.bits, found.zero, found.coordinates).all())
        assert torch.equal(found.scale.half().float(), found.scale)


def gain_of_four_bases(columns: int) -> float:
    """Four bases' squared error as a share of the uniform grid's."""
    weight = torch.cat([gauss(200, columns, 5), heavy(200, columns, 6)])
    return float(bases.fit(weight, 4)[1].sum() / grid.fit(weight, 4)[1].sum())


def test_the_fit_sets_out_from_enough_places():
    for columns, most in ((9, 0.124), (40, 0.52)):
        assert gain_of_four_bases(columns) < most


def test_four_bases_fit_what_no_uniform_grid_does():
    generator = torch.Generator().manual_seed(0)
    values = torch.tensor([-1.0, -0.9, 0.1, 0.2])
    weight = values[torch.randint(0, 4, (3, 200), generator=generator)]
    _, error = bases.fit(weight, 2)  # −1 + 0.1 b₀ + 1.1 b₁
    _, uniform = grid.fit(weight, 2)
    assert bool((error < 1e-3 * uniform).all())


@st.composite
def multibit(draw: st.DrawFn) -> Grid:
    """Uniform rows and rows of bases."""
    rows = []
    for _ in range(draw(st.integers(1, 5))):
        k = draw(st.integers(2, 4))
        own = draw(st.booleans())
        d = draw(st.lists(st.integers(1, 15), min_size=k, max_size=k))
        zero = draw(st.integers(0, sum(d))) if own else draw(st.integers(2**k - 2, 2**k))
        scale = draw(st.floats(1e-3, 10))
        rows.append((k, scale, zero, [*d, 0, 0][:4] if own else [0] * 4))
    bits, scale, zero, d = zip(*rows, strict=True)
    return Grid(
        torch.tensor(bits), grid.round_scale(torch.tensor(scale)), torch.tensor(zero),
        torch.tensor(d),
    )  # fmt: skip


def nearest_is_nearest(module: Any = grid) -> None:
    d = torch.tensor([[3, 5, 9, 0], [1, 1, 1, 0], [0, 0, 0, 0]])
    found = Grid(torch.tensor([3, 3, 3]), torch.ones(3), torch.tensor([8, 1, 7]), d)
    weight = torch.linspace(-6, 6, 241).expand(3, -1)
    codes = module.quantize(weight, found)
    for row in range(2):
        own = levels(found, row)
        gap = (weight[row].double() - own[codes[row].long()]).abs()
        best = (weight[row].double()[:, None] - own).abs().amin(1)
        assert torch.allclose(gap, best, atol=1e-6)
        assert torch.equal(module.dequantize(codes, found)[row].double(), own[codes[row].long()])
    plain = Grid(found.bits[2:], found.scale[2:], found.zero[2:])
    assert torch.equal(codes[2], grid.quantize(weight[2:], plain)[0])


def test_codes_are_those_of_the_nearest_sum():
    nearest_is_nearest()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("(table[..., 1:] + table[..., :-1]) / 2", "table[..., 1:]"),
        ("return coordinates.float() @ bits / 2", "return coordinates.float() @ bits"),
        ("table = torch.where(codes < 2 ** bits[..., None], table, torch.inf)", "pass"),
    ],
)
def test_another_nearest_is_seen(old: str, new: str):
    with pytest.raises((AssertionError, RuntimeError, IndexError)):
        nearest_is_nearest(mutant("arith.grid", old, new))


@settings(max_examples=60, deadline=None)
@given(multibit(), st.integers(0, 2**31))
def test_the_container_holds_the_same_numbers(found: Grid, seed: int):
    generator = torch.Generator().manual_seed(seed)
    codes = (torch.rand(len(found.bits), 40, generator=generator) * 2 ** found.bits[:, None]).to(
        torch.uint8
    )
    q, t = container(codes, found)
    value = dequantize(codes, found)
    assert torch.equal(q.float() * t[:, None], value)
    assert torch.equal(dequantize(quantize(value, found), found), value)
    held = q[found.multibit & (found.zero <= MAX_LEVEL)]
    assert not held.numel() or int(held.abs().max()) <= MAX_LEVEL


@settings(max_examples=60, deadline=None)
@given(multibit(), st.integers(0, 2**31))
def test_nearest_positions_are_those_of_the_codes(found: Grid, seed: int):
    weight = gauss(len(found.bits), 40, seed) * found.scale[:, None] * 2.0 ** found.bits[:, None]
    at = weight / found.scale[:, None] + found.zero[:, None] / 2
    codes = quantize(weight, found)
    assert torch.equal(grid.nearest(at, found), grid.positions(codes, found))
    assert bool((codes < 2 ** found.bits[:, None]).all())
    every = torch.arange(2 ** BASES[-1], dtype=torch.uint8).expand(len(found.bits), -1)
    there = every < 2 ** found.bits[:, None]
    highest = torch.where(there, grid.positions(every, found), 0).amax(1)
    assert torch.equal(grid.reach(found), highest)


def test_rows_in_groups_are_ordered_as_rows():
    d = torch.tensor([[3, 5, 9, 0], [1, 2, 0, 0], [4, 4, 4, 4], [7, 1, 2, 0]])
    bits = torch.tensor([3, 2, 4, 3])
    flat = grid.ordered(d, bits, torch.float32)
    grouped = grid.ordered(d.unflatten(0, (2, 2)), bits.unflatten(0, (2, 2)), torch.float32)
    assert torch.equal(flat.codes, grouped.codes.flatten(0, 1))
    assert torch.equal(flat.middles, grouped.middles.flatten(0, 1))
    at = torch.linspace(-1, 20, 50).expand(4, -1)
    own = grouped.nearest(at.unflatten(0, (2, 2)))
    assert torch.equal(flat.nearest(at), own.flatten(0, 1))


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_the_greedy_start_is_signs_and_means_of_what_is_left(bits: int):
    weight = gauss(5, 20)
    for row, found in zip(weight.double().numpy(), bases.greedy(weight, bits), strict=True):
        left, alphas = row.copy(), []
        for _ in range(bits):
            alphas.append(np.abs(left).mean())
            left = np.array([v - alphas[-1] if v >= 0 else v + alphas[-1] for v in left])
        assert found.tolist() == pytest.approx([2 * a for a in alphas] + [-sum(alphas)])


def test_joined_grids_are_the_rows_of_all():
    one, _ = grid.fit(gauss(2, 30), 3)
    two, _ = bases.fit(gauss(3, 30), 3)
    both = joined([one, two])
    assert both.multibit.tolist() == [False, False, True, True, True]
    assert torch.equal(both.scale, torch.cat([one.scale, two.scale]))
    assert joined([one, one]).coordinates is None


def test_coordinates_of_one_half_step_are_a_grid_of_bases():
    d = torch.tensor([[1, 1, 0, 0], [1, 2, 4, 8]])
    assert are_bases(torch.tensor([2, 4]), torch.tensor([1, 0]), d).tolist() == [True, True]


@pytest.mark.parametrize(
    ("bits", "zero", "d"),
    [(1, 1, [2, 0, 0, 0]), (5, 1, [2, 2, 2, 2]), (2, 64, [40, 40, 0, 0]), (2, 1, [60, 30, 0, 0]),
     (3, 3, [2, 0, 4, 0]), (2, 3, [2, 4, 4, 0]), (2, -1, [2, 4, 0, 0]), (2, 7, [2, 4, 0, 0])],
)  # fmt: skip
def test_what_is_no_grid_of_bases(bits: int, zero: int, d: list[int]):
    parts = torch.tensor([bits]), torch.tensor([zero]), torch.tensor([d])
    assert not bool(are_bases(*parts))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(value: float):
    weight = gauss(2, 9)
    weight[1, 4] = value
    with pytest.raises(ValueError, match="NaN or infinite"):
        bases.fit(weight, 3)
    with pytest.raises(ValueError, match="NaN or infinite"):
        sketch(weight, 3)


def test_bases_are_two_to_four():
    with pytest.raises(ValueError, match="2 to 4 bases, not 5"):
        bases.fit(gauss(1, 9), 5)


def test_rows_without_spread_are_fitted():
    weight = torch.stack([torch.zeros(20), torch.full((20,), 0.25), torch.full((20,), -0.25)])
    found, error = bases.fit(weight, 3)
    assert bool(error.isfinite().all()) and bool((found.scale > 0).all())
    assert bool(are_bases(found.bits, found.zero, found.coordinates).all())
    assert float(error.max()) < 1e-3
