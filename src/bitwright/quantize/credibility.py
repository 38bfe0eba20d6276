"""What an embedding's rows will lose on text not seen: Good and Turing, Bühlmann and Straub.

Of n calibration samples, c_t contain token t, with mean curvature m_t in them. Rare tokens say more
than frequent ones, and those seen once stand for those never seen. In a new sample the expectation
of a token's curvature is

    E_t = (c*_t / n) · μ(c_t + 1) · (Z_t θ_t + (1 − Z_t) θ̄) ,   θ_t = m_t / μ(c_t) ,

with the count c* of :func:`smoothed_counts` and the curvature `μ(c) = e^α c^β` of tokens of count
c: leaving one sample out, what has count c in the others has c + 1 (Good, Biometrika 40, 1953). θ_t
is believed by its credibility `Z_t = a / (a + s²/c_t)`, with the variance s² of one occurrence and
a of tokens (Bühlmann and Straub, ASTIN Bulletin 1970). docs/decisions/0033-embeddings.md measures.
"""

from __future__ import annotations

import numpy as np

from bitwright.curvature import Estimate

#: of `d ⟨u, δ⟩² / (‖u‖² ‖δ‖²)` for one direction u: χ² of one degree
_ONE_DIRECTION = 2.0


def smoothed_counts(counts: np.ndarray) -> np.ndarray:
    """What each token's count is expected to be in another sample of the same size, float64.

    With N_c tokens of count c: `c* = N_1 / N_0` for unseen ones (Good), else `c* = c (1 + 1/c)^(b +
    1)`, b the slope of log Z_c over log c, `Z_c = 2 N_c / (c⁺ − c⁻)` with the neighbouring counts
    that occur (Gale and Sampson, J. Quant. Linguistics 2, 1995: their linear estimate throughout).

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


def expected(estimate: Estimate, counts: np.ndarray) -> np.ndarray:
    """E of each row in a new sample, float64 [rows].

    Args:
        estimate: each row's mean over all samples, those without it included; [rows].
        counts: samples that contain each row, int64 [rows].
    """
    n, seen = estimate.samples, counts > 0
    c, v = counts[seen].astype(np.float64), estimate.value[seen]
    if not v.any():
        return np.zeros(len(counts))
    alpha, beta = _by_count(n * v / c, c)
    usual = np.exp(alpha) * c**beta
    theta = n * v / c / usual
    # Σ over samples of squares, from the standard error of their mean; minus the mean's own
    squares = n * (n - 1) * np.nan_to_num(estimate.stderr_data[seen]) ** 2 + n * v**2
    within = np.maximum(squares / usual**2 - c * theta**2, 0)
    again = c > 1
    one = (within[again] / (c[again] - 1)).mean() if again.any() else np.inf
    noise = one / c + (n / c / usual * np.nan_to_num(estimate.stderr_probe[seen])) ** 2
    spread = max(theta.var() - noise.mean(), 0)
    trust = spread / (spread + noise) if spread > 0 else np.zeros(len(c))
    found = np.full(len(counts), theta.mean())
    found[seen] = trust * theta + (1 - trust) * theta.mean()
    return smoothed_counts(counts) / n * np.exp(alpha) * (counts + 1.0) ** beta * found


def _by_count(mean: np.ndarray, c: np.ndarray) -> tuple[float, float]:
    """α and β of `μ(c) = e^α c^β`, by the mean of each count's tokens, weighted by how many."""
    values, place, times = np.unique(c, return_inverse=True, return_counts=True)
    level = np.bincount(place, mean) / times
    live = level > 0
    if live.sum() < 3:
        return float(np.log(mean.mean())), 0.0
    x, y, w = np.log(values[live]), np.log(level[live]), times[live] / times[live].sum()
    x0, y0 = (w * x).sum(), (w * y).sum()
    beta = float(np.clip((w * (x - x0) * (y - y0)).sum() / (w * (x - x0) ** 2).sum(), -1, 0))
    return float(y0 - beta * x0), beta


def directions(forms: np.ndarray, usual: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """How much more a row's own error direction costs than others, float64 [rows, widths].

    The ratio r of a form to `trace · error / d`, shrunk to the layer's: for one occurrence its
    variance is that of one direction, 2 = a + s², of which a stays however often it is seen:
    `E (r − 1)² = a + s² / c`.

    Args:
        forms: measured; usual: `trace · error / d` of the same samples; [rows, widths].
        counts: samples that contain each row, int64 [rows].
    """
    found = np.ones_like(forms)
    for i in range(forms.shape[1]):
        total = usual[:, i].sum()
        if total <= 0:
            continue
        level = forms[:, i].sum() / total
        live = (counts > 0) & (usual[:, i] > 0)
        c, ratio = counts[live], np.ones(live.sum())
        if level > 0:
            ratio = forms[live, i] / usual[live, i] / level
        spare = ((ratio - 1) ** 2 - _ONE_DIRECTION / c)[c > 1].sum()
        own = np.clip(spare / max((1 - 1 / c).sum(), 1e-300), 0, _ONE_DIRECTION)
        trust = own / (own + (_ONE_DIRECTION - own) / c)
        found[:, i] = level
        found[live, i] = level * (1 + trust * (ratio - 1))
    return found
