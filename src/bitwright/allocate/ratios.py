"""From ratios of bit widths to a plan: widths are handed out down an order, the widest first.

CW-HAWQ (Qian, Li, Crews, arXiv 2008.08284) searches only the ratios and assigns bits along the
trace order. How a budget binds is not in its abstract; this is our reconstruction: ratios are
tilted, `r_j ∝ r_j · exp(−t·bits_j)`, by the one number t that meets the budget.
"""

from __future__ import annotations

import numpy as np

from bitwright.allocate.plan import Plan, make_plan
from bitwright.allocate.problem import Problem, merged, require_feasible

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
        A plan within the budget that no widening of a boundary item would still fit.

    Raises:
        BitwrightError: the budget is below the feasible range.
    """
    require_feasible(problem)
    line = _Line(problem, order)
    bits = np.array(problem.choices, dtype=float)
    shares = np.maximum(np.asarray(ratios, dtype=float), _FLOOR)
    low, high = -200.0, 200.0  # exp(±200 · bits) covers every tilt of nine orders of magnitude
    for _ in range(80):
        middle = 0.5 * (low + high)
        if line.cost(_tilted(shares, bits, middle)) > problem.budget:
            low = middle
        else:
            high = middle
    choice = line.fill(line.assign(_tilted(shares, bits, high)))
    return make_plan(problem, choice, method)


def ratios_of(problem: Problem, plan: Plan) -> np.ndarray:
    """Share of the weights at each width, float64 [m]."""
    size = problem.cost[:, 0] / problem.choices[0]
    shares = np.bincount(plan.choice, size, len(problem.choices))
    return shares / shares.sum()


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
        size = self.whole.cost[self.order, 0] / self.whole.choices[0]
        end = np.cumsum(size)
        self.middle = (end - size / 2) / end[-1]
        m = len(self.whole.choices)
        allowed = self.whole.allowed[self.order]
        below = np.where(allowed, np.arange(m), -1)
        at_most = np.maximum.accumulate(below, axis=1)
        least = np.argmax(allowed, axis=1)[:, None]
        self.nearest = np.where(at_most >= 0, at_most, least)  # the widest allowed not above

    def assign(self, shares: np.ndarray) -> np.ndarray:
        """Choices of the groups along the line, int64."""
        cuts = np.cumsum(shares[::-1])[:-1]
        wanted = len(shares) - 1 - np.searchsorted(cuts, self.middle, side="left")
        return self.nearest[np.arange(len(wanted)), wanted]

    def cost(self, shares: np.ndarray) -> int:
        return int(self.whole.cost[self.order, self.assign(shares)].sum())

    def fill(self, along: np.ndarray) -> np.ndarray:
        """Widen the first item after each cut while anything fits; choices by item."""
        cost = self.whole.cost[self.order]
        allowed = self.whole.allowed[self.order]
        room = self.whole.budget - int(cost[np.arange(len(along)), along].sum())
        for place in range(len(along)):
            while along[place] + 1 < cost.shape[1] and allowed[place, along[place] + 1]:
                at_cut = place == 0 or along[place - 1] > along[place]
                step = int(cost[place, along[place] + 1] - cost[place, along[place]])
                if not at_cut or step > room:
                    break
                along[place] += 1
                room -= step
        choice = np.empty(len(along), dtype=np.int64)
        choice[self.order] = along
        return choice[self.group]
