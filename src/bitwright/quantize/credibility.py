"""Credibility of what was seen of an embedding's rows (Bühlmann and Straub, 1970).

A token t that c_t of n calibration samples contain has a mean curvature m_t in them. In a new
sample it is expected to have

    E_t = (c*_t / n) · m̂_t ,   m̂_t = Z_t m_t + (1 − Z_t) μ ,   Z_t = c_t / (c_t + s²/a) ,

with the variance s² of one occurrence around its token's mean, the variance a of tokens' means,
μ = Σ Z m / Σ Z, and the Good–Turing count c* of :func:`smoothed_counts`. Tokens that calibration
never shows have Z = 0, the mean curvature of the others and a small expected count: most of a
vocabulary, which would be rounded to nothing if unseen were taken for insensitive.
docs/decisions/0033-embeddings.md has what it is worth.
"""

from __future__ import annotations

import numpy as np

from bitwright.curvature import Estimate


def smoothed_counts(counts: np.ndarray) -> np.ndarray:
    """What each token's count is expected to be in another sample of the same size, float64.

    With N_c tokens of count c: `c* = N_1 / N_0` for unseen ones (Good, Biometrika 40, 1953), else
    `c* = c (1 + 1/c)^(b + 1)`, b the slope of log Z_c over log c, `Z_c = 2 N_c / (c⁺ − c⁻)` with
    the neighbouring counts that occur (Gale and Sampson, J. Quant. Linguistics 2, 1995: their
    linear estimate throughout).

    Args:
        counts: int64 [tokens].
    """
    found = counts.astype(np.float64)
    values, times = np.unique(counts[counts > 0], return_counts=True)
    if len(values) > 2:
        before = np.concatenate([[0], values[:-1]])
        after = np.concatenate([values[1:], [2 * values[-1] - values[-2]]])
        slope = np.polyfit(np.log(values), np.log(2 * times / (after - before)), 1)[0]
        seen = counts > 0
        found[seen] *= (1 + 1 / found[seen]) ** min(slope + 1, 0)
    once = max(int((counts == 1).sum()), 1)  # one more might come, whatever was seen
    unseen = counts == 0
    found[unseen] = once / max(int(unseen.sum()), 1)
    return found


def per_occurrence(estimate: Estimate, counts: np.ndarray) -> np.ndarray:
    """m̂ of each row for one sample that contains it, float64 [rows].

    Args:
        estimate: of each row's mean over all samples, those without it included; [rows].
        counts: samples that contain each row, int64 [rows].
    """
    n, seen = estimate.samples, counts > 0
    c, v = counts[seen].astype(np.float64), estimate.value[seen]
    if not len(c):
        return np.zeros(len(counts))
    mean = n * v / c
    # Σ over samples of squares, from the standard error of their mean; minus the mean's own
    squares = n * (n - 1) * np.nan_to_num(estimate.stderr_data[seen]) ** 2 + n * v**2
    within = np.maximum(squares - c * mean**2, 0).sum() / max((c - 1).sum(), 1)
    noise = (n / c * np.nan_to_num(estimate.stderr_probe[seen])) ** 2
    total = c.sum()
    around = (c * (mean - (c * mean).sum() / total) ** 2).sum() - (len(c) - 1) * within
    spread = (around - (c * noise).sum()) / max(total - (c**2).sum() / total, 1e-300)
    trust = spread / (spread + within / c + noise) if spread > 0 else np.zeros(len(c))
    weight = trust if trust.any() else c
    prior = (weight * mean).sum() / weight.sum()
    found = np.full(len(counts), prior)
    found[seen] = trust * mean + (1 - trust) * prior
    return found


def expected(estimate: Estimate, counts: np.ndarray) -> np.ndarray:
    """E of each row in a new sample, float64 [rows]; arguments as for :func:`per_occurrence`."""
    return smoothed_counts(counts) / estimate.samples * per_occurrence(estimate, counts)
