"""The loops of SAGA over sparse rows, compiled; entries that no row touches catch up later.

Indices come unsigned: a signed one is looked at for whether it counts from the end.
Arguments are those of `kernels`; rows are CSR: data, columns, edges.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from bitwright.train.saga.kernels import derivative, exact, prox


@exact
def sparse_singles(
    data: Any, columns: Any, edges: Any, y: Any, offsets: Any, logistic: bool, intercept: bool,
    how: Any, members: Any, push: Any, keep: Any, x: Any, table: Any, mean: Any,
) -> None:  # fmt: skip
    """One sparse row a step, ψ none or L2: untouched entries follow a closed form of the time.

    With a = 1/(1 + α l2), an entry that no row touches goes x ← a (x − α g), g its mean. So
    `x(t) = aᵗ (u − g C(t))` with u and g constant and `C(t) = α Σ_{s<t} a⁻ˢ`: only touched entries
    are computed, and no entry keeps a time. It starts afresh before a⁻ᵗ costs digits.
    """
    step, _, l2, _, _ = how
    d = len(x) - 1 if intercept else len(x)
    shrink = 1.0 / (1.0 + step * l2)
    power, total, one = 1.0, 0.0, np.uint64(1)
    pairs = np.empty((d, 2))
    pairs[:, 0] = x[:d]
    pairs[:, 1] = mean[:d]
    b, mean_b = (x[d], mean[d]) if intercept else (0.0, 0.0)
    touch, last, end = 0.0, len(members) - 1, np.uint64(len(data) - 1)
    for t in range(len(members)):
        i = members[t]
        # the row after next is on its way from memory meanwhile: a fifth of the time
        coming = members[min(t + 2, last)]
        at = min(edges[coming], end)
        touch += data[at] + columns[at] + table[coming] + y[coming] + keep[coming]
        z, z_mean = 0.0, 0.0
        for k in range(edges[i], edges[i + one]):
            j = columns[k]
            z += data[k] * pairs[j, 0]
            z_mean += data[k] * pairs[j, 1]
        new = derivative(logistic, power * (z - total * z_mean) + b + offsets[i], y[i])
        delta = new - table[i]
        table[i] = new
        ahead, kept = step * push[t] * delta, keep[i] * delta
        following = total + step / power
        change = kept * following - ahead / power
        for k in range(edges[i], edges[i + one]):
            j = columns[k]
            pairs[j, 0] += change * data[k]
            pairs[j, 1] += kept * data[k]
        if intercept:
            b -= step * mean_b + ahead
            mean_b += kept
        total = following
        power *= shrink
        if power < 1e-3:
            for j in range(d):
                pairs[j, 0] = power * (pairs[j, 0] - pairs[j, 1] * total)
            power, total = 1.0, 0.0
    if touch == -0.5:  # never, but the compiler cannot know
        mean_b += 0.0
    for j in range(d):
        x[j] = power * (pairs[j, 0] - pairs[j, 1] * total)
        mean[j] = pairs[j, 1]
    if intercept:
        x[d], mean[d] = b, mean_b


@exact
def advance(
    x: float, count: int, g: float, how: Any, shrink: float, log_shrink: float
) -> float:  # fmt: skip
    """`count` proximal steps of one entry with a constant gradient g, in closed form.

    A step is monotone, so that its orbit is: it leaves x > 0 or x < 0 at most once. Within a side
    a step is affine, x ← a (x − c) with c = α (g ± l1).
    """
    step, l1, _, lower, upper = how
    bound = step * l1
    while count > 0:
        if x == 0.0:
            if abs(step * g) <= bound:
                return min(max(0.0, lower), upper)
            x = prox(-step * g, bound, shrink, lower, upper)
            count -= 1
            if x == 0.0:  # the box begins here
                return x
            continue
        sign = 1.0 if x > 0 else -1.0
        c = step * (g + sign * l1)
        if shrink == 1.0:
            end = x - count * c
        else:
            rest = c * shrink / (1.0 - shrink)
            end = math.exp(count * log_shrink) * (x + rest) - rest
        if end * sign > 0 or (x > 0 and lower >= 0) or (x < 0 and upper <= 0):
            return min(max(end, lower), upper)
        # where it crosses: the last time on this side, then one step as it stands
        if shrink == 1.0:
            inside = min(max(math.ceil(x / c) - 1, 0), count - 1)
            x -= inside * c
        else:
            inside = int(math.log(rest / (x + rest)) / log_shrink)
            inside = min(max(inside, 0), count - 1)
            x = math.exp(inside * log_shrink) * (x + rest) - rest
        x = prox(x - step * g, bound, shrink, lower, upper)
        count -= inside + 1
    return x


@exact
def sparse_sets(
    data: Any, columns: Any, edges: Any, y: Any, offsets: Any, logistic: bool, intercept: bool,
    how: Any, starts: Any, members: Any, push: Any, keep: Any, x: Any, table: Any, mean: Any,
) -> None:  # fmt: skip
    """A set of sparse rows a step, any ψ: an entry catches up when a row next touches it."""
    step, l1, l2, lower, upper = how
    d = len(x) - 1 if intercept else len(x)
    shrink, bound = 1.0 / (1.0 + step * l2), step * l1
    log_shrink, one = math.log(shrink), np.uint64(1)
    seen = np.zeros(d, dtype=np.int64)
    mark = np.full(d, -1, dtype=np.int64)
    noise, moved = np.zeros(d), np.zeros(d)
    touched = np.empty(d, dtype=np.int64)
    for t in range(len(starts) - 1):
        count = 0
        noise_b = moved_b = 0.0
        for m in range(starts[t], starts[t + 1]):
            i = members[m]
            z = offsets[i] + (x[d] if intercept else 0.0)
            for k in range(edges[i], edges[i + one]):
                j = columns[k]
                if mark[j] != t:
                    mark[j] = t
                    touched[count] = j
                    count += 1
                    if seen[j] < t:
                        x[j] = advance(x[j], t - seen[j], mean[j], how, shrink, log_shrink)
                    seen[j] = t + 1
                z += data[k] * x[j]
            new = derivative(logistic, z, y[i])
            delta = new - table[i]
            table[i] = new
            ahead, kept = push[m] * delta, keep[i] * delta
            for k in range(edges[i], edges[i + one]):
                noise[columns[k]] += ahead * data[k]
                moved[columns[k]] += kept * data[k]
            noise_b += ahead
            moved_b += kept
        for k in range(count):
            j = touched[k]
            v = x[j] - step * (mean[j] + noise[j])
            x[j] = prox(v, bound, shrink, lower, upper)
            mean[j] += moved[j]
            noise[j] = moved[j] = 0.0
        if intercept:
            x[d] -= step * (mean[d] + noise_b)
            mean[d] += moved_b
    steps = len(starts) - 1
    for j in range(d):
        if seen[j] < steps:
            x[j] = advance(x[j], steps - seen[j], mean[j], how, shrink, log_shrink)
