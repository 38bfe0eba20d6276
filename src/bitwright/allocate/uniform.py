"""The baseline: one width for everything, the largest that fits."""

from __future__ import annotations

import itertools

import numpy as np

from bitwright.allocate.plan import Plan, make_plan
from bitwright.allocate.problem import (
    Bounds,
    Problem,
    freely_widened,
    merged,
    require_feasible,
)


def uniform(problem: Problem) -> Plan:
    """Every item at the same width, clipped to what it allows; wider where that costs nothing.

    With two parts each has a width of its own (W4A8): of the pairs that fit, and of which neither
    width can grow, the one with the least predicted loss.

    Raises:
        BitwrightError: the budget or a limit is below the feasible range.
    """
    require_feasible(problem)
    whole, group = merged(problem)
    bounds, m = Bounds(whole), len(whole.choices)
    least = np.argmax(whole.allowed, axis=1)

    def clipped(widths: tuple[int, ...]) -> np.ndarray:
        under = whole.allowed & (np.arange(m) <= np.array(widths)[whole.part][:, None])
        widest = m - 1 - np.argmax(under[:, ::-1], axis=1)
        return np.where(under.any(axis=1), widest, least)

    fitting = {
        widths: choice
        for widths in itertools.product(range(m), repeat=whole.parts)
        if bounds.fit(choice := clipped(widths))
    }
    best, lowest = least, np.inf
    for widths, choice in fitting.items():
        wider = itertools.product(*[(w, w + 1) for w in widths])
        if any(w in fitting for w in wider if w != widths):
            continue
        loss = float(whole.loss[np.arange(len(choice)), choice].sum())
        if loss < lowest:
            best, lowest = choice, loss
    return make_plan(problem, freely_widened(problem, best[group]), "uniform")
