"""The oracle: every assignment is tried."""

from __future__ import annotations

import itertools

import numpy as np

from bitwright.allocate.plan import Plan, make_plan
from bitwright.allocate.problem import Bounds, Problem, merged, require_feasible

LIMIT = 2_000_000


def brute_force(problem: Problem) -> Plan:
    """The optimum by enumeration; refuses more than two million assignments.

    Raises:
        ValueError: too many assignments.
        BitwrightError: the budget or a limit is below the feasible range.
    """
    require_feasible(problem)
    whole, group = merged(problem)
    options = [np.flatnonzero(a) for a in whole.allowed]
    count = int(np.prod([float(len(o)) for o in options]))
    if count > LIMIT:
        raise ValueError(f"{count:,} assignments are too many to enumerate")
    rows = np.arange(len(options))
    bounds = Bounds(whole)
    best, best_loss = None, np.inf
    for combination in itertools.product(*options):
        choice = np.array(combination, dtype=np.int64)
        if bounds.fit(choice):
            loss = whole.loss[rows, choice].sum()
            if loss < best_loss:
                best, best_loss = choice, loss
    assert best is not None
    return make_plan(problem, best[group], "brute-force")
