"""Credibility of tokens: closed forms, and a population whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest

from bitwright.curvature import Estimate
from bitwright.quantize import credibility
from mutants import mutated


def test_unseen_tokens_share_what_was_seen_once():
    """Good's estimate: the expected count of all unseen tokens together is N₁."""
    counts = np.array([0] * 10 + [1] * 4 + [2] * 2 + [9])
    found = credibility.smoothed_counts(counts)
    assert found[:10] == pytest.approx(0.4)
    assert (found[counts > 0] < counts[counts > 0]).all() and (found[counts > 0] > 0).all()
    assert credibility.smoothed_counts(np.array([0, 0, 5]))[:2] == pytest.approx(0.5)


def population(seed: int, n: int = 400) -> tuple[np.ndarray, Estimate, np.ndarray]:
    """Zipf's tokens, each with a mean curvature of its own: the truth, what n samples tell."""
    rng = np.random.default_rng(seed)
    tokens = 3000
    rate = np.minimum(0.9, 3 / (1.0 + np.arange(tokens)))
    mean = rng.gamma(2.0, 0.5, tokens)
    held = rng.random((n, tokens)) < rate
    x = held * mean * rng.exponential(1.0, (n, tokens))
    stderr = x.std(0, ddof=1) / np.sqrt(n)
    return rate * mean, Estimate(x.mean(0), np.zeros(tokens), stderr, n), held.sum(0)


def losses() -> tuple[float, float, float]:
    """Squared errors of expected curvature per token: ours, as measured, at their mean."""
    found = np.zeros(3)
    for seed in range(3):
        truth, estimate, counts = population(seed)
        ours = credibility.expected(estimate, counts)
        for i, guess in enumerate((ours, estimate.value, np.full_like(truth, truth.mean()))):
            # relative, as the logarithm of a loss is what a bit buys
            found[i] += np.square(np.log((guess + 1e-9) / truth)).mean()
    return tuple(found / 3)  # type: ignore[return-value]


def test_expected_curvature_is_nearer_to_the_truth():
    ours, measured, mean = losses()
    assert ours < 0.5 * mean and ours < 0.1 * measured


def test_of_tokens_that_do_not_differ_all_have_the_mean():
    rng = np.random.default_rng(0)
    held = rng.random((300, 200)) < 0.1
    x = held * rng.exponential(1.0, held.shape)
    estimate = Estimate(x.mean(0), np.zeros(200), x.std(0, ddof=1) / np.sqrt(300), 300)
    found = credibility.per_occurrence(estimate, held.sum(0))
    assert found.std() < 0.15 and abs(found.mean() - 1) < 0.1


def test_the_variances_of_the_credibility_formula():
    """Two samples a token, by hand: s² is the mean variance within, a the rest between."""
    x = np.array([[1.0, 3.0, 0, 0], [2.0, 6.0, 0, 0], [0, 0, 5.0, 7.0], [0, 0, 9.0, 1.0]])
    estimate = Estimate(x.mean(1), np.zeros(4), x.std(1, ddof=1) / 2, 4)
    counts = np.array([2, 2, 2, 2])
    mean = np.array([2.0, 4.0, 6.0, 5.0])
    within = (2.0 + 8.0 + 2.0 + 32.0) / 4
    between = (2 * np.square(mean - 4.25).sum() - 3 * within) / (8 - 2)
    assert between < 0  # so that nothing is believed
    assert credibility.per_occurrence(estimate, counts) == pytest.approx(4.25)
    x[3] = [0, 0, 14.0, 16.0]
    estimate = Estimate(x.mean(1), np.zeros(4), x.std(1, ddof=1) / 2, 4)
    mean[3], within = 15.0, (2.0 + 8.0 + 2.0 + 2.0) / 4
    between = (2 * np.square(mean - 6.75).sum() - 3 * within) / (8 - 2)
    trust = 2 / (2 + within / between)
    expected = trust * mean + (1 - trust) * 6.75
    assert credibility.per_occurrence(estimate, counts) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("found[unseen] = once", "found[unseen] = 0 * once"),
        ("within / c + noise", "0 * within / c + noise"),
        ("n * (n - 1) * np", "n * np"),
    ],
)
def test_wrong_variants_are_seen(old: str, new: str):
    checks = (
        test_unseen_tokens_share_what_was_seen_once,
        test_the_variances_of_the_credibility_formula,
    )
    with mutated("quantize.credibility", old, new), pytest.raises(AssertionError):
        for check in checks:
            check()
