"""The loops of SAGA for several classes, compiled: x, its mean [size, k] and the table [n, k].

Arguments are those of `kernels`; dense rows are [n, d], or [n, d, k] where every class has its own.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from bitwright.train.saga.kernels import _fast, exact, prox
from bitwright.train.saga.kernels_sparse import advance


@exact
def entry(rows: Any, i: int, j: int, c: int) -> float:
    """Entry j of row i as class c sees it; which of both is known when it is compiled."""
    if rows.ndim == 2:
        return rows[i, j]
    return rows[i, j, c]


@exact
def change(z: Any, y: Any, table: Any) -> None:
    """z becomes what softmax(z) − y changes in the row of the table, which takes it."""
    top, total = z.max(), 0.0
    for c in range(len(z)):
        z[c] = math.exp(z[c] - top)
        total += z[c]
    for c in range(len(z)):
        new = z[c] / total - y[c]
        z[c] = new - table[c]
        table[c] = new


@_fast
def dense_classes(
    rows: Any, y: Any, offsets: Any, logistic: bool, intercept: bool, how: Any,
    starts: Any, members: Any, push: Any, keep: Any, x: Any, table: Any, mean: Any,
) -> None:  # fmt: skip
    """A set of rows a step; the changes of all of them first, then x entry by entry."""
    step, l1, l2, lower, upper = how
    d, k = rows.shape[1], y.shape[1]
    shrink, bound = 1.0 / (1.0 + step * l2), step * l1
    most = 0
    for t in range(len(starts) - 1):
        most = max(most, starts[t + 1] - starts[t])
    deltas, noise, moved = np.empty((most, k)), np.empty(k), np.empty(k)
    for t in range(len(starts) - 1):
        first, count = starts[t], starts[t + 1] - starts[t]
        for m in range(count):
            i, delta = members[first + m], deltas[m]
            for c in range(k):
                delta[c] = offsets[i, c] + (x[d, c] if intercept else 0.0)
            for j in range(d):
                for c in range(k):
                    delta[c] += entry(rows, i, j, c) * x[j, c]
            change(delta, y[i], table[i])
        for j in range(d + intercept):
            noise[:] = 0.0
            moved[:] = 0.0
            for m in range(count):
                i = members[first + m]
                ahead, kept, delta = push[first + m], keep[i], deltas[m]
                for c in range(k):
                    a = entry(rows, i, j, c) if j < d else 1.0
                    noise[c] += ahead * a * delta[c]
                    moved[c] += kept * a * delta[c]
            for c in range(k):
                v = x[j, c] - step * (mean[j, c] + noise[c])
                x[j, c] = prox(v, bound, shrink, lower, upper) if j < d else v
                mean[j, c] += moved[c]


@exact
def sparse_classes(
    data: Any, columns: Any, edges: Any, y: Any, offsets: Any, logistic: bool, intercept: bool,
    how: Any, starts: Any, members: Any, push: Any, keep: Any, x: Any, table: Any, mean: Any,
) -> None:  # fmt: skip
    """A set of sparse rows a step: a row of x catches up when a row of the data next touches it."""
    step, l1, l2, lower, upper = how
    k = y.shape[1]
    d = len(x) - 1 if intercept else len(x)
    shrink, bound = 1.0 / (1.0 + step * l2), step * l1
    log_shrink, one = math.log(shrink), np.uint64(1)
    seen, mark = np.zeros(d, dtype=np.int64), np.full(d, -1, dtype=np.int64)
    touched = np.empty(d, dtype=np.int64)
    noise, moved = np.zeros(x.shape), np.zeros(x.shape)
    delta = np.empty(k)
    steps = len(starts) - 1
    for t in range(steps):
        count = 0
        for m in range(starts[t], starts[t + 1]):
            i = members[m]
            for c in range(k):
                delta[c] = offsets[i, c] + (x[d, c] if intercept else 0.0)
            for e in range(edges[i], edges[i + one]):
                j = columns[e]
                if mark[j] != t:
                    mark[j] = t
                    touched[count] = j
                    count += 1
                    for c in range(k):
                        x[j, c] = advance(x[j, c], t - seen[j], mean[j, c], how, shrink, log_shrink)
                    seen[j] = t + 1
                for c in range(k):
                    delta[c] += data[e] * x[j, c]
            change(delta, y[i], table[i])
            for e in range(edges[i], edges[i + one]):
                for c in range(k):
                    noise[columns[e], c] += push[m] * data[e] * delta[c]
                    moved[columns[e], c] += keep[i] * data[e] * delta[c]
            if intercept:
                for c in range(k):
                    noise[d, c] += push[m] * delta[c]
                    moved[d, c] += keep[i] * delta[c]
        for s in range(count + intercept):
            j = touched[s] if s < count else d
            for c in range(k):
                v = x[j, c] - step * (mean[j, c] + noise[j, c])
                x[j, c] = prox(v, bound, shrink, lower, upper) if s < count else v
                mean[j, c] += moved[j, c]
                noise[j, c] = moved[j, c] = 0.0
    for j in range(d):
        for c in range(k):
            x[j, c] = advance(x[j, c], steps - seen[j], mean[j, c], how, shrink, log_shrink)
