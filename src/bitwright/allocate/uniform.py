"""The baseline: one width for everything, the largest that fits."""

from __future__ import annotations

import numpy as np

from bitwright.allocate.plan import Plan, make_plan
from bitwright.allocate.problem import Problem, require_feasible


def uniform(problem: Problem) -> Plan:
    """Every item at the same width, clipped to what it allows.

    Raises:
        BitwrightError: the budget is below the feasible range.
    """
    require_feasible(problem)
    rows = np.arange(len(problem.names))
    least = np.argmax(problem.allowed, axis=1)
    best = least
    for j in range(len(problem.choices)):
        under = problem.allowed & (np.arange(len(problem.choices)) <= j)
        choice = np.where(
            under.any(axis=1), len(problem.choices) - 1 - np.argmax(under[:, ::-1], axis=1), least
        )
        if problem.cost[rows, choice].sum() <= problem.budget:
            best = choice
    return make_plan(problem, best, "uniform")
