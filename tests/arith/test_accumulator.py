"""The bound against every input and every order, and the sums against exact integers."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from bitwright.arith import accumulator as module
from bitwright.arith.accumulator import Accumulator, Operands, reach, reduced, worst_inputs
from bitwright.arith.narrow_sums import met, narrow_sums
from bitwright.errors import BitwrightError
from mutants import mutant

RANGES = ((0, 3), (-2, 1), (-3, 0), (-1, 2))


def all_inputs(low: int, high: int, n: int) -> np.ndarray:
    """Every vector of n integers of a range, [count, n]."""
    return np.array(list(itertools.product(range(low, high + 1), repeat=n)))


def some_rows() -> Tensor:
    rng = np.random.default_rng(0)
    return torch.from_numpy(rng.integers(-5, 6, (12, 4)))


def check_bound(found: object, low: int, high: int) -> None:
    """Both ends of every partial sum of every input in every order, by enumeration."""
    weight = some_rows()
    least, most = found(Operands(weight, low, high), "saturate")  # type: ignore[operator]
    x = all_inputs(low, high, 4)
    for row, a, b in zip(weight.numpy(), least.tolist(), most.tolist(), strict=True):
        sums = [
            (x[:, order] * row[list(order)]).cumsum(1)
            for order in map(list, itertools.permutations(range(4)))
        ]
        assert min(s.min() for s in sums) == a <= 0 <= b == max(s.max() for s in sums)
        whole = x @ row
        assert whole.min() == a and whole.max() == b  # the last sum alone reaches both ends


@pytest.mark.parametrize(("low", "high"), RANGES)
def test_the_bound_is_what_enumeration_finds_in_any_order(low: int, high: int):
    check_bound(reach, low, high)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("high * plus - low * minus", "high * plus.maximum(minus)"),  # the bound for low = 0
        ("low * plus - high * minus", "low * minus - high * plus"),
        ("high * plus - low * minus", "high * (plus + minus)"),  # A2Q's, twice as careful
    ],
)
def test_other_bounds_are_seen(old: str, new: str):
    wrong = mutant("arith.accumulator", old, new)
    with pytest.raises(AssertionError):
        for low, high in RANGES:
            check_bound(lambda o, k: wrong.reach(o, k), low, high)


@pytest.mark.parametrize("depthwise", [False, True])
def test_the_bound_of_pairs_is_what_enumeration_finds(depthwise: bool):
    weight = some_rows()
    least, most = reach(Operands(weight, -1, 2, depthwise), "pairs")
    x = all_inputs(0, 3, 4)  # as stored
    for row, a, b in zip(weight.numpy(), least.tolist(), most.tolist(), strict=True):
        products = x * row
        sums = products if depthwise else products.reshape(-1, 2, 2).sum(2)
        assert (min(sums.min(), 0), max(sums.max(), 0)) == (a, b)


@pytest.mark.parametrize(("low", "high"), RANGES)
def test_worst_inputs_reach_the_bound(low: int, high: int):
    given = Operands(some_rows(), low, high)
    least, most = reach(given, "wrap")
    for worst, end in zip(worst_inputs(given), (least, most), strict=True):
        assert worst.min() >= low and worst.max() <= high
        assert torch.equal((worst * given.weight).sum(1), end)


@pytest.mark.parametrize("kind", ["wrap", "saturate"])
def test_rows_within_the_bound_never_differ_and_rows_beyond_it_do(kind: str):
    """In 12 bits, on the worst inputs of every row and on random ones."""
    accumulator = Accumulator(12, kind)
    rng = np.random.default_rng(1)
    for low, high in ((0, 255), (-100, 155)):
        size = np.repeat([1, 2, 4, 8], 13)[:, None]
        given = Operands(torch.from_numpy(rng.integers(-size, size + 1, (52, 9))), low, high)
        fits = (accumulator.excess(*reach(given, kind)) <= 1).numpy()
        assert fits.any() and not fits.all()
        x = np.concatenate([w.numpy() for w in worst_inputs(given)])
        x = np.concatenate([x, rng.integers(low, high + 1, (2000, 9))])
        matrix = given.weight.numpy()
        same = (narrow_sums(x, matrix, accumulator) == x @ matrix.T).all(0)
        assert np.array_equal(same, fits)


def slow(x: np.ndarray, row: np.ndarray, accumulator: Accumulator) -> tuple[int, list[int]]:
    """One sum in Python's integers, and what the register was asked to hold."""
    low, high = accumulator.lowest, accumulator.highest
    products = [int(a) * int(b) for a, b in zip(x, row, strict=True)]
    if accumulator.kind == "wrap":
        return (sum(products) - low) % (high - low + 1) + low, [sum(products)]
    if accumulator.kind == "pairs":
        pairs = [sum(products[i : i + 2]) for i in range(0, len(products), 2)]
        return sum(min(max(p, low), high) for p in pairs), pairs
    total = 0
    for p in products:
        total = min(max(total + p, low), high)
    return total, list(itertools.accumulate(products))


@pytest.mark.parametrize("kind", module.KINDS)
@pytest.mark.parametrize("length", [1, 6, 7])
def test_sums_and_what_they_meet_equal_python_s_integers(kind: str, length: int):
    accumulator = Accumulator(12, kind)
    rng = np.random.default_rng(2)
    x, w = rng.integers(-60, 256, (40, length)), rng.integers(-20, 21, (5, length))
    x[::3, ::2] = 0
    expected = [[slow(a, row, accumulator) for row in w] for a in x]
    assert narrow_sums(x, w, accumulator).tolist() == [[total for total, _ in r] for r in expected]
    if kind == "wrap":
        return
    low, high, over = met(x, w, accumulator)
    for r in range(len(w)):
        seen = [expected[i][r][1] for i in range(len(x))]
        assert low[r] == min(0, *(min(s) for s in seen))
        assert high[r] == max(0, *(max(s) for s in seen))
        outside = [any(not -2048 <= v <= 2047 for v in s) for s in seen]
        assert over[r] == sum(outside)
    assert over.sum() > 0 or length == 1


@pytest.mark.parametrize("kind", ["saturate", "pairs"])
def test_a_sum_at_the_limit_fits_and_zero_is_met(kind: str):
    w = np.array([[1, 1]])
    for at, over in ((2047, 0), (2048, 1), (-2048, 0), (-2049, 1)):
        low, high, found = met(np.array([[at, 0]]), w, Accumulator(12, kind))
        assert (low[0], high[0], found[0]) == (min(0, at), max(0, at), over)


def test_rows_are_divided_by_their_common_power_of_two_alone():
    q = torch.tensor([[4, -8, 12], [3, 6, 0], [0, 0, 0], [-6, 2, 10], [-128, 64, 64]])
    found, factor = reduced(q)
    assert factor.tolist() == [4, 1, 1, 2, 64]
    assert torch.equal(found * factor[:, None], q)


@pytest.mark.parametrize(
    ("bits", "kind", "says"),
    [(11, "wrap", "12 to 32 bits, not 11"), (33, "wrap", "33"), (16, "clip", "'clip' is unknown")],
)
def test_other_registers_are_refused(bits: int, kind: str, says: str):
    with pytest.raises(BitwrightError, match=says):
        Accumulator(bits, kind)
