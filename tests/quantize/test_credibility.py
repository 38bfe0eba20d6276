"""Credibility of tokens: closed forms, and a population whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest

from bitwright.curvature import Estimate
from bitwright.quantize import credibility
from mutants import mutant


def test_unseen_tokens_share_what_was_seen_once():
    """Good's estimate: the expected count of all unseen tokens together is N₁."""
    counts = np.array([0] * 10 + [1] * 4 + [2] * 2 + [9])
    found = credibility.smoothed_counts(counts)
    assert found[:10] == pytest.approx(0.4)
    assert (found[counts > 0] < counts[counts > 0]).all() and (found[counts > 0] > 0).all()
    assert credibility.smoothed_counts(np.array([0, 0, 5]))[:2] == pytest.approx(0.5)


def population(seed: int, n: int = 400) -> tuple[np.ndarray, Estimate, np.ndarray]:
    """Zipf's tokens, rare ones more sensitive: the truth, and what n samples tell of it."""
    rng = np.random.default_rng(seed)
    tokens = 3000
    rate = np.minimum(0.9, 3 / (1.0 + np.arange(tokens)))
    mean = rng.gamma(2.0, 0.5, tokens) * rate**-0.4
    held = rng.random((n, tokens)) < rate
    x = held * mean * rng.exponential(1.0, (n, tokens))
    stderr = x.std(0, ddof=1) / np.sqrt(n)
    return rate * mean, Estimate(x.mean(0), np.zeros(tokens), stderr, n), held.sum(0)


def misses() -> dict[str, float]:
    """Mean squared errors of log E, which is what bits follow, and of the unseen ones' sum."""
    found = dict.fromkeys(("ours", "as measured", "all alike", "unseen"), 0.0)
    for seed in range(3):
        truth, estimate, counts = population(seed)
        ours = credibility.expected(estimate, counts)
        alike = np.full_like(truth, estimate.value.mean())
        for name, guess in (("ours", ours), ("as measured", estimate.value), ("all alike", alike)):
            found[name] += np.square(np.log((guess + 1e-6) / truth)).mean() / 3
        unseen = counts == 0
        found["unseen"] += np.log(ours[unseen].sum() / truth[unseen].sum()) / 3
    return found


def test_expected_curvature_is_nearer_to_the_truth():
    found = misses()
    assert found["ours"] < 0.7 * found["all alike"], found
    assert found["ours"] < 0.1 * found["as measured"], found
    assert abs(found["unseen"]) < 0.3, found  # the sum that unseen tokens will cost


def test_tokens_that_are_alike_are_believed_alike():
    rng = np.random.default_rng(0)
    held = rng.random((300, 200)) < 0.1
    x = held * rng.exponential(1.0, held.shape)
    estimate = Estimate(x.mean(0), np.zeros(200), x.std(0, ddof=1) / np.sqrt(300), 300)
    found = credibility.expected(estimate, held.sum(0)) / credibility.smoothed_counts(held.sum(0))
    assert found.std() < 0.15 * found.mean() and found.mean() == pytest.approx(1 / 300, rel=0.1)


def by_hand() -> np.ndarray:
    """Four tokens, two samples each: E over c*/n, which is the shrunk mean."""
    x = np.array([[1.0, 3.0, 0, 0], [2.0, 6.0, 0, 0], [0, 0, 5.0, 7.0], [0, 0, 29.0, 31.0]])
    estimate = Estimate(x.mean(1), np.zeros(4), x.std(1, ddof=1) / 2, 4)
    counts = np.array([2, 2, 2, 2])
    return credibility.expected(estimate, counts) * 4 / credibility.smoothed_counts(counts)


def test_the_variances_of_the_credibility_formula():
    mean, middle = np.array([2.0, 4.0, 6.0, 30.0]), 10.5
    theta = mean / middle
    within = np.array([2.0, 8.0, 2.0, 2.0]).mean() / middle**2
    between = theta.var() - within / 2
    trust = between / (between + within / 2)
    assert by_hand() == pytest.approx(middle * (1 + trust * (theta - 1)))


def test_a_direction_is_believed_as_far_as_it_stays():
    """Tokens seen often whose ratios differ keep them; of one occurrence nothing is known."""
    rng = np.random.default_rng(0)
    counts = np.full(4000, 10)
    usual = np.ones((4000, 1))
    alike = rng.chisquare(10, (4000, 1)) / 10  # the mean of ten directions, none of its own
    assert credibility.directions(alike, usual, counts).std() < 0.1 * alike.std()
    same = rng.chisquare(1, (4000, 1))  # the same direction ten times
    found = credibility.directions(same, usual, counts)
    np.testing.assert_allclose(found, same, rtol=0.05, atol=0.05)
    unseen = credibility.directions(same, usual, np.zeros(4000, dtype=int))
    assert np.ptp(unseen) == 0


@pytest.mark.parametrize(
    ("old", "new", "check"),
    [
        ("found[unseen] = once", "found[unseen] = 2 * once", "good"),
        ("noise = one / c", "noise = 0 * one / c", "formula"),
        ("squares = n * (n - 1)", "squares = n * n", "formula"),
        ("* (counts + 1.0) ** beta", "", "population"),
        ("- _ONE_DIRECTION / c)", "- 0 / c)", "direction"),
    ],
)
def test_wrong_variants_are_seen(old: str, new: str, check: str):
    checks = {
        "good": test_unseen_tokens_share_what_was_seen_once,
        "formula": test_the_variances_of_the_credibility_formula,
        "population": test_expected_curvature_is_nearer_to_the_truth,
        "direction": test_a_direction_is_believed_as_far_as_it_stays,
    }
    copy = mutant("quantize.credibility", old, new)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("expected", "directions", "smoothed_counts"):
            patch.setattr(credibility, name, getattr(copy, name))
        with pytest.raises(AssertionError):
            checks[check]()
