"""Rounding within bounded sums against every integer vector there is."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitwright.arith.accumulator import Accumulator, Operands, reach
from bitwright.arith.grid import Grid
from bitwright.arith.project import allowed_sums, codes_within, round_within
from mutants import mutant

LO, HI = -4, 3


def best_cost(target: torch.Tensor, positive: int, negative: int) -> float:
    """The least squared error over all vectors of LO … HI within both sums."""
    grid = torch.tensor(list(itertools.product(range(LO, HI + 1), repeat=len(target))))
    inside = (grid.clamp(min=0).sum(1) <= positive) & ((-grid).clamp(min=0).sum(1) <= negative)
    return float((grid[inside] - target).square().sum(1).min())


def is_optimal(found: object, seed: int = 0) -> None:
    target = 3 * torch.randn(40, 4, generator=torch.Generator().manual_seed(seed)).double()
    target[::4] = target[::4].round() + 0.25  # many steps of equal cost
    for positive, negative in ((0, 0), (1, 2), (3, 5), (20, 20)):
        limits = (torch.full((40,), v).double() for v in (positive, negative))
        ends = (torch.full((40,), v).double() for v in (LO, HI))
        q = found(target, *limits, *ends)  # type: ignore[operator]
        assert torch.equal(q, q.round()) and q.min() >= LO and q.max() <= HI
        assert q.clamp(min=0).sum(1).max() <= positive
        assert (-q).clamp(min=0).sum(1).max() <= negative
        for row, t in zip(q, target, strict=True):
            cost = float((row - t).square().sum())
            assert cost <= best_cost(t, positive, negative) + 1e-6


def test_no_vector_within_is_nearer():
    is_optimal(round_within)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("return found + tied.minimum(", "return found + 0 * tied.minimum("),  # gives none back
        ("nearest = t.round()", "nearest = t.floor()"),
        ("spare = most - found.sum(1)", "spare = most - found.sum(1) + 1"),
    ],
)  # fmt: skip
def test_worse_vectors_are_seen(old: str, new: str):
    with pytest.raises(AssertionError):
        is_optimal(mutant("arith.project", old, new).round_within)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**31), st.integers(12, 20), st.integers(0, 255), st.sampled_from([1, 15, 255])
)
def test_what_is_allowed_cannot_overflow(seed: int, bits: int, zero: int, top: int):
    zero = min(zero, top)
    rounded = torch.randint(-128, 128, (8, 30), generator=torch.Generator().manual_seed(seed))
    within, accumulator = (-zero, top - zero), Accumulator(bits, "saturate")
    limits = allowed_sums(rounded.double(), within, accumulator)
    ends = torch.full((8,), -128.0).double(), torch.full((8,), 127.0).double()
    q = round_within(rounded.double(), *limits, *ends)
    assert (accumulator.excess(*reach(Operands(q.long(), *within), "saturate")) <= 1).all()


def test_codes_within_keep_rows_that_fit_and_grids_without_a_zero():
    grid = Grid(torch.tensor([4, 4, 8]), torch.ones(3), torch.tensor([16, 15, 256]))
    scaled = torch.tensor([[7.6, 8.2, 9.4], [7.6, 8.2, 9.4], [200.3, 90.1, 128.0]])
    accumulator = Accumulator(12)
    wide = codes_within(scaled, grid, within=(0, 15), accumulator=accumulator)
    assert torch.equal(wide, scaled.round())
    narrow = codes_within(scaled, grid, within=(0, 255), accumulator=accumulator)
    assert torch.equal(narrow[:2], scaled[:2].round())  # 1 · 255; the second is not looked at
    assert narrow[2].tolist() == [128 + 8, 128 - 8, 128]  # 2047 // 255 = 8 = 2048 // 255


def test_two_sided_inputs_share_one_factor():
    rounded = torch.tensor([[480.0, 160, -400, -560], [1, 0, -1, 0], [800, 0, 0, 0]]).double()
    plus, minus = allowed_sums(rounded, (-2, 3), Accumulator(12))
    # the first: 3·640 + 2·960 = 3840 of 2047, 3·960 + 2·640 = 4160 of 2048: all times 2048/4160
    assert plus.tolist() == [315, 1, 682] and minus.tolist() == [472, 1, 0]
