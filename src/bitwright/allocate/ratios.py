"""From ratios of bit widths to a plan: widths are handed out down an order, the widest first.

CW-HAWQ (Qian, Li, Crews, arXiv 2008.08284) searches only the ratios and assigns bits along the
trace order. How a budget binds is not in its abstract; this is our reconstruction: ratios are
tilted, `r_j ∝ r_j · exp(−t·bits_j)`, by the least number t that meets the budget and every limit.
"""

from __future__ import annotations

import numpy as np

from bitwright.allocate.plan import Plan, make_plan
from bitwright.allocate.problem import (
    Problem,
    all_costs,
    freely_widened,
    merged,
    require_feasible,
    room_left,
)

_FLOOR = 1e-9


def plan_from_ratios(
    problem: Problem, order: np.ndarray, ratios: np.ndarray, method: str = "cw-hawq"
) -> Plan:
    """The plan whose widths along `order` have (tilted) `ratios` of the weights.

    Args:
        problem: items, costs, budget.
        order: int64 [n], items by falling sensitivity.
        ratios: float [m] >= 0, share of the weights for each width, as in `problem.choices`.
        method: name of the plan.

    Returns:
        A plan within the budget that no widening of a boundary item would still fit; items whose
        widths all cost nothing are as wide as they may be.

    Raises:
        BitwrightError: the budget or a limit is below the feasible range.
    """
    require_feasible(problem)
    line = _Line(problem, order)
    bits = np.array(problem.choices, dtype=float)
    shares = np.maximum(np.asarray(ratios, dtype=float), _FLOOR)
    low, high = -200.0, 200.0  # exp(±200 · bits) covers every tilt of nine orders of magnitude
    for _ in range(80):
        middle = 0.5 * (low + high)
        if not line.fits(_tilted(shares, bits, middle)):
            low = middle
        else:
            high = middle
    choice = line.fill(line.assign(_tilted(shares, bits, high)))
    return make_plan(problem, freely_widened(problem, choice), method)


def ratios_of(problem: Problem, plan: Plan) -> np.ndarray:
    """Share of the weights at each width, float64 [m]."""
    shares = np.bincount(plan.choice, _sizes(problem), len(problem.choices))
    return shares / shares.sum()


def widest_not_above(allowed: np.ndarray) -> np.ndarray:
    """For each choice the widest allowed not above it, or else the narrowest, int64 [n, m]."""
    below = np.where(allowed, np.arange(allowed.shape[1]), -1)
    at_most = np.maximum.accumulate(below, axis=1)
    return np.where(at_most >= 0, at_most, np.argmax(allowed, axis=1)[:, None])


def _sizes(problem: Problem) -> np.ndarray:
    """Weights in each item; where nothing costs anything, every item counts the same."""
    size = problem.cost[:, 0] / problem.choices[0]
    return size if size.any() else np.ones(len(size))


def _tilted(shares: np.ndarray, bits: np.ndarray, t: float) -> np.ndarray:
    logs = np.log(shares) - t * (bits - bits.mean())
    shares = np.exp(logs - logs.max())
    return shares / shares.sum()


class _Line:
    """Tie groups in the order of their first member, as intervals of weight on [0, 1]."""

    def __init__(self, problem: Problem, order: np.ndarray) -> None:
        self.whole, self.group = merged(problem)
        ranked = self.group[np.asarray(order)]
        _, first = np.unique(ranked, return_index=True)
        self.order = ranked[np.sort(first)]
        size = _sizes(self.whole)[self.order]
        size = np.maximum(size, 1e-9 * size.max())  # what costs nothing has a place on the line
        end = np.cumsum(size)
        self.middle = (end - size / 2) / end[-1]
        costs, self.bounds = all_costs(self.whole)
        self.costs = costs[:, self.order]
        self.nearest = widest_not_above(self.whole.allowed)[self.order]

    def assign(self, shares: np.ndarray) -> np.ndarray:
        """Choices of the groups along the line, int64."""
        cuts = np.cumsum(shares[::-1])[:-1]
        wanted = len(shares) - 1 - np.searchsorted(cuts, self.middle, side="left")
        return self.nearest[np.arange(len(wanted)), wanted]

    def fits(self, shares: np.ndarray) -> bool:
        """Whether the plan of these shares keeps the budget and every limit."""
        choice = self.assign(shares)
        return bool((self._total(choice) <= self.bounds).all())

    def fill(self, along: np.ndarray) -> np.ndarray:
        """Widen the first item after each cut while anything fits; choices by item."""
        allowed = self.whole.allowed[self.order]
        room = room_left(self.bounds, self._total(along))
        for place in range(len(along)):
            while along[place] + 1 < allowed.shape[1] and allowed[place, along[place] + 1]:
                if place and along[place - 1] <= along[place]:
                    break
                now = self.costs[:, place, along[place]]
                step = self.costs[:, place, along[place] + 1] - now
                if (step > room).any():
                    break
                along[place] += 1
                room -= step
        choice = np.empty(len(along), dtype=np.int64)
        choice[self.order] = along
        return choice[self.group]

    def _total(self, along: np.ndarray) -> np.ndarray:
        return self.costs[:, np.arange(len(along)), along].sum(axis=1)
