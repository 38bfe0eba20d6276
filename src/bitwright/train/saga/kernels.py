"""The loops of SAGA, compiled: draws and dense rows (sparse ones, several classes: next door).

All work in place on x, the table of scalars and `mean = Σ λ_i table_i a_i`, without Python's lock.
`x ← prox(x − α (mean + Σ_{i∈S} θ_i λ_i δ_i a_i))`, δ_i = φ'(a_i·x) − table_i, then the table and
its mean follow. What is constant through a call is in `how = (α, l1, l2, lower, upper)`.

The intercept is a column of ones of its own: last entry of x and mean, never penalized.
"""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np

#: sums may be reordered (vectorized), nothing may be assumed of infinities
_FAST = {"reassoc", "contract", "nsz", "arcp"}
_options: dict[str, Any] = {"nogil": True, "cache": True, "error_model": "numpy"}
_fast = numba.njit(fastmath=_FAST, **_options)
exact = numba.njit(**_options)
inline = numba.njit(inline="always", **{**_options, "cache": False})


@inline
def derivative(logistic: bool, z: float, y: float) -> float:
    """φ'(z, y)."""
    if logistic:
        return 1.0 / (1.0 + math.exp(-z)) - y
    return z - y


@inline
def prox(v: float, bound: float, shrink: float, lower: float, upper: float) -> float:
    """The proximal operator of one entry: bound = α l1, shrink = 1 / (1 + α l2)."""
    v = shrink * (v - min(max(v, -bound), bound))
    return min(max(v, lower), upper)


@exact
def aliases(p: Any) -> Any:
    """Walker's cells of a law: below which fraction a cell is itself, which row it is otherwise."""
    n = len(p)
    share, other = p * n, np.arange(n)
    small, large = np.empty(n, dtype=np.int64), np.empty(n, dtype=np.int64)
    lows = highs = 0
    for i in range(n):
        if share[i] < 1.0:
            small[lows] = i
            lows += 1
        else:
            large[highs] = i
            highs += 1
    while lows > 0 and highs > 0:
        lows -= 1
        low, high = small[lows], large[highs - 1]
        other[low] = high
        share[high] -= 1.0 - share[low]
        if share[high] < 1.0:
            highs -= 1
            small[lows] = high
            lows += 1
    share[small[:lows]] = 1.0  # what rounding left over
    share[large[:highs]] = 1.0
    return share, other


@exact
def subsets(n: int, tau: int, uniforms: Any) -> Any:
    """A random subset of `tau` of n for each row of uniforms, by swaps within one permutation."""
    order = np.arange(n)
    found = np.empty((len(uniforms), tau), dtype=np.int64)
    for t in range(len(uniforms)):
        for k in range(tau):
            other = k + int(uniforms[t, k] * (n - k))
            order[k], order[other] = order[other], order[k]
            found[t, k] = order[k]
    return found


@_fast
def dense_singles(
    rows: Any, y: Any, offsets: Any, logistic: bool, intercept: bool, how: Any,
    members: Any, push: Any, keep: Any, x: Any, table: Any, mean: Any,
) -> None:  # fmt: skip
    """One row a step; `push` = θ λ by step, `keep` = λ by row."""
    step, l1, l2, lower, upper = how
    d = rows.shape[1]
    shrink, bound = 1.0 / (1.0 + step * l2), step * l1
    plain = l1 == 0.0 and lower == -np.inf and upper == np.inf
    for t in range(len(members)):
        i = members[t]
        z = offsets[i] + (x[d] if intercept else 0.0)
        for j in range(d):
            z += rows[i, j] * x[j]
        new = derivative(logistic, z, y[i])
        delta = new - table[i]
        table[i] = new
        ahead, kept = step * push[t] * delta, keep[i] * delta
        if plain:
            for j in range(d):
                a = rows[i, j]
                x[j] = shrink * (x[j] - step * mean[j] - ahead * a)
                mean[j] += kept * a
        else:
            for j in range(d):
                a = rows[i, j]
                v = x[j] - step * mean[j] - ahead * a
                x[j] = prox(v, bound, shrink, lower, upper)
                mean[j] += kept * a
        if intercept:
            x[d] -= step * mean[d] + ahead
            mean[d] += kept


@_fast
def dense_sets(
    rows: Any, y: Any, offsets: Any, logistic: bool, intercept: bool, how: Any,
    starts: Any, members: Any, push: Any, keep: Any, x: Any, table: Any, mean: Any,
) -> None:  # fmt: skip
    """A set of rows a step."""
    step, l1, l2, lower, upper = how
    d = rows.shape[1]
    shrink, bound = 1.0 / (1.0 + step * l2), step * l1
    noise, moved = np.zeros(d), np.zeros(d)
    for t in range(len(starts) - 1):
        noise[:] = 0.0
        moved[:] = 0.0
        noise_b = moved_b = 0.0
        for m in range(starts[t], starts[t + 1]):
            i = members[m]
            z = offsets[i] + (x[d] if intercept else 0.0)
            for j in range(d):
                z += rows[i, j] * x[j]
            new = derivative(logistic, z, y[i])
            delta = new - table[i]
            table[i] = new
            ahead, kept = push[m] * delta, keep[i] * delta
            for j in range(d):
                noise[j] += ahead * rows[i, j]
                moved[j] += kept * rows[i, j]
            noise_b += ahead
            moved_b += kept
        for j in range(d):
            v = x[j] - step * (mean[j] + noise[j])
            x[j] = prox(v, bound, shrink, lower, upper)
            mean[j] += moved[j]
        if intercept:
            x[d] -= step * (mean[d] + noise_b)
            mean[d] += moved_b
