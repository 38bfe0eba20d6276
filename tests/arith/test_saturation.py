"""Pairs of products against every input there is, and against the runtime's own rule."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitwright.arith.saturation import HIGHEST, LOWEST, excess, pairs, reach, saturated

weights = st.lists(st.integers(-128, 127), min_size=1, max_size=7)


@settings(max_examples=200, deadline=None)
@given(weights, st.sampled_from([1, 3, 15, 127, 255]))
def test_the_reach_of_pairs_is_attained_and_never_passed(row: list[int], top: int):
    weight = torch.tensor([row])
    low, high = reach(weight, top)
    sums = set()
    for first, second in pairs(weight)[0].tolist():
        sums |= {x * first + y * second for x, y in itertools.product((0, top), repeat=2)}
    assert low.item() == min(sums) and high.item() == max(sums)  # extremes of a bilinear form


@settings(max_examples=200, deadline=None)
@given(weights, st.sampled_from([1, 3, 15, 127, 255]), st.integers(0, 2**31))
def test_excess_says_whether_any_input_saturates(row: list[int], top: int, seed: int):
    weight = torch.tensor([row])
    worst = []
    for sign in (1, -1):  # the inputs that reach the bound: all weights of one sign switched on
        worst.append((sign * weight > 0).long() * top)
    x = torch.cat([*worst, torch.randint(0, top + 1, (50, len(row)), generator=seeded(seed))])
    exact = x @ weight.T
    spoiled = bool((saturated(x, weight) != exact).any())
    assert spoiled == bool(excess(weight, top).item() > 1)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_bound_is_sharp_at_one_unit():
    """128 · 255 fits in 16 bits, 129 · 255 does not; below zero there is one more."""
    assert 128 * 255 <= HIGHEST < 129 * 255
    for fits, spills in (((64, 64), (65, 64)), ((-64, -64), (-65, -64)), ((1, 127), (2, 127))):
        assert excess(torch.tensor([fits]), 255).item() <= 1
        assert excess(torch.tensor([spills]), 255).item() > 1
    assert reach(torch.tensor([[-128, 0]]), 256)[0].item() == LOWEST
    assert excess(torch.tensor([[-128, 0]]), 256).item() == 1.0
    assert excess(torch.tensor([[127, -127]]), 255).item() < 1  # signs that differ do not add up


def test_channels_of_one_position_are_neighbours():
    weight = torch.arange(2 * 4 * 3).reshape(2, 4, 3)
    found = pairs(weight)[0].tolist()
    assert found == [[0, 3], [6, 9], [1, 4], [7, 10], [2, 5], [8, 11]]
    odd = pairs(torch.arange(3 * 2).reshape(1, 3, 2))[0].tolist()
    assert odd == [[0, 2], [4, 1], [3, 5]]  # over the border of two positions
    assert pairs(torch.tensor([[5, 6, 7]])).tolist() == [[[5, 6], [7, 0]]]
    image = torch.arange(2 * 4 * 3 * 3).reshape(2, 4, 3, 3)
    assert torch.equal(pairs(image), pairs(image.flatten(2)))


@pytest.mark.parametrize("size", [1, 2, 9, 64])
def test_saturated_is_the_instruction(size: int):
    rng = np.random.default_rng(size)
    x, w = rng.integers(0, 256, (20, size)), rng.choice([-128, -90, 3, 127], (5, size))
    expected = np.zeros((20, 5), np.int64)
    for n, r in itertools.product(range(20), range(5)):
        for k in range(0, size, 2):  # vpmaddubsw, then vpmaddwd with ones
            pair = x[n, k : k + 2].astype(np.int64) @ w[r, k : k + 2]
            expected[n, r] += min(max(pair, -32768), 32767)
    assert np.array_equal(saturated(torch.from_numpy(x), torch.from_numpy(w)).numpy(), expected)
    if size > 1:
        assert not np.array_equal(expected, x @ w.T)  # it does happen
