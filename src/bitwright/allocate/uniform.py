"""The baseline: one width for everything, the largest that fits."""

from __future__ import annotations

import numpy as np

from bitwright.allocate.plan import Plan, make_plan
from bitwright.allocate.problem import (
    Problem,
    all_costs,
    freely_widened,
    merged,
    require_feasible,
)


def uniform(problem: Problem) -> Plan:
    """Every item at the same width, clipped to what it allows; wider where that costs nothing.

    Raises:
        BitwrightError: the budget or a limit is below the feasible range.
    """
    require_feasible(problem)
    whole, group = merged(problem)
    costs, bounds = all_costs(whole)
    rows, m = np.arange(len(whole.names)), len(whole.choices)
    least = np.argmax(whole.allowed, axis=1)
    best = least
    for j in range(m):
        under = whole.allowed & (np.arange(m) <= j)
        widest = m - 1 - np.argmax(under[:, ::-1], axis=1)
        choice = np.where(under.any(axis=1), widest, least)
        if (costs[:, rows, choice].sum(axis=1) <= bounds).all():
            best = choice
    return make_plan(problem, freely_widened(problem, best[group]), "uniform")
