"""Quartz, the primal-dual method that SAGA's rates are to match: a plain reference beside it."""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np
from harness import Rows
from saga_data import newton, problem, rows
from saga_data import passes as passes_to

from bitwright.train.saga import step_size, uniform


@numba.njit
def _quartz(
    a: Any, y: Any, l2: float, theta: float, members: Any, w: Any, u: Any, mean: Any
) -> None:
    """Serial Quartz (Qu, Richtárik, Zhang, NIPS 2015, equations 6–8), logistic, g = ½ ‖w‖²."""
    n, d = a.shape
    for i in members:
        z = 0.0
        for j in range(d):
            w[j] = (1 - theta) * w[j] + theta * mean[j]
            z += a[i, j] * w[j]
        change = -theta * n * (u[i] + 1 / (1 + math.exp(-z)) - y[i])
        u[i] += change
        for j in range(d):
            mean[j] += change * a[i, j] / (l2 * n)


def quartz(out: Rows, quick: bool) -> None:
    """SAGA beside Quartz, both uniform: passes to 1e-8, and each one's rate beside its promise.

    The rate is that of the suboptimality from 1e-4 to 1e-8 of the first one.
    """
    for name in ("german",) if quick else ("german", "german unscaled"):
        for scale in (1, 10, 100):
            x, y = rows(name)
            n = len(y)
            p = problem((x, y), l2=float((x * x).sum(1).max()) / 4 / n / scale)
            best, l2 = p.value(newton(p)), p.penalty.l2
            theta = 1 / (n + float(p.squared_norms.max()) / 4 / l2)
            w, u, mean = np.zeros(p.size), np.zeros(n), np.zeros(p.size)
            first, passes, middle = p.value(w) - best, 0, 0
            rng = np.random.default_rng(0)
            while p.value(w) - best > 1e-8 * first and passes < 20_000:
                _quartz(x, y, l2, theta, rng.integers(n, size=n), w, u, mean)
                passes += 1
                middle = passes if p.value(w) - best > 1e-4 * first else middle
            half, mine = (
                float(np.mean([passes_to(p, uniform(n), best, to, seed=s) for s in range(3)]))
                for to in (1e-4, 1e-8)
            )
            rate = step_size(p, uniform(n)).rate
            promised = theta / rate
            out.add(
                f"passes to 1e-8 on {name}, κ = {scale} n: SAGA / Quartz", mine / passes,
                "<= promised × 1.2", mine / passes <= 1.2 * promised, "promised", promised,
                saga_passes=mine, saga_promised=math.log(1e8) / rate / n,
                quartz_passes=passes, quartz_promised=math.log(1e8) / theta / n,
            )  # fmt: skip
            kept = math.log(1e4) / n / (mine - half) / rate
            out.add(
                f"rate on {name}, κ = {scale} n: SAGA's over its promise", kept, ">= 1", kept >= 1,
                "Quartz's over its own", math.log(1e4) / n / max(passes - middle, 1) / theta,
            )  # fmt: skip
