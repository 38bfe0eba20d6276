"""Ranges by percentiles, and rounding inside of them."""

from __future__ import annotations

import pytest
import torch

from bitwright.graph import ranges
from mutants import mutated


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def check_percentiles() -> None:
    values = torch.arange(-100.0, 901.0)[torch.randperm(1001, generator=generator())]
    x = torch.cat([values, torch.zeros(9099)]).reshape(-1, 10)
    low, high = ranges.extremes(x, None, 0.01, generator())
    assert (float(low), float(high)) == (-91.0, 891.0)  # the tenth of 1,000 from either end
    low, high = ranges.extremes(x, None, 0.0, generator())
    assert (float(low), float(high)) == (-100.0, 900.0)


def test_percentiles_are_of_numbers_that_are_not_zero():
    check_percentiles()
    with (
        mutated("graph.ranges", "keep = values != 0", "keep = values == values"),
        pytest.raises(AssertionError),
    ):
        check_percentiles()


def check_protected(percentile: float) -> None:
    x = torch.randn(200, 4, generator=generator())
    protected = torch.zeros(200, dtype=torch.bool)
    protected[::7] = True
    seen = ranges.extremes(x, protected, percentile, generator())
    assert seen == ranges.extremes(x[~protected], None, percentile, generator())
    x[protected] *= 1000
    assert seen == ranges.extremes(x, protected, percentile, generator())


def test_protected_rows_are_not_seen():
    check_protected(0.0)
    check_protected(0.01)
    with (
        mutated("graph.ranges", "keep &= ~protected[rows]", "pass"),
        pytest.raises(AssertionError),
    ):
        check_protected(0.01)


def test_a_sample_is_near_the_percentile():
    x = torch.rand(4000, 50, generator=generator())
    p, n = 0.01, ranges.SAMPLES
    for seed in range(5):
        _, high = ranges.extremes(x, None, p, torch.Generator().manual_seed(seed))
        assert abs(float(high) - (1 - p)) <= 4 * (p * (1 - p) / n) ** 0.5


def test_the_range_holds_zero_and_follows():
    found = ranges.Range(0.0, 0.25)
    found.update(torch.zeros(3, 1), None, generator())
    assert not bool(found.seen)
    found.update(torch.tensor([[2.0], [4.0]]), None, generator())
    assert (float(found.low), float(found.high)) == (0.0, 4.0)
    found.update(torch.tensor([[-4.0], [8.0]]), None, generator())
    assert (float(found.low), float(found.high)) == (-1.0, 5.0)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_rounding_is_to_the_nearest_level_and_clips_gradients(bits: int):
    found = ranges.Range(0.0, 1.0)
    found.update(torch.tensor([[-1.0], [3.0]]), None, generator())
    x = (4 * torch.randn(500, 2, generator=generator())).requires_grad_()
    y = found.round(x, bits)
    step, zero = found.grid(bits)
    levels = step.double() * (torch.arange(2**bits) - int(zero))
    nearest = levels[(x.detach().double()[..., None] - levels).abs().argmin(-1)]
    torch.testing.assert_close(y.detach(), nearest.float())
    assert 0.0 in levels.tolist() and len(y.unique()) <= 2**bits
    y.sum().backward()
    inside = (x > float(levels[0] - step / 2)) & (x < float(levels[-1] + step / 2))
    assert x.grad is not None and torch.equal(x.grad != 0, inside)


def test_what_shows_nothing_leaves_a_range_as_it_was():
    found = ranges.Range(0.0, 0.1)
    x = torch.randn(50, 3, generator=generator())
    found.update(x, None, generator())
    before = found.low.clone(), found.high.clone()
    for _ in range(60):
        found.update(x, torch.ones(50, dtype=torch.bool), generator())
        found.update(torch.zeros(5, 3), None, generator())
    assert (found.low, found.high) == before
    found.update(2 * x, None, generator())
    assert found.high > before[1]
