"""From ratios of bit widths to a plan: widths are handed out down an order, the widest first.

CW-HAWQ (Qian, Li, Crews, arXiv 2008.08284) searches only the ratios and assigns bits along the
trace order. How a budget binds is not in its abstract; this is our reconstruction: ratios are
tilted, `r_j ∝ r_j · exp(−t·bits_j)`, by the least number t that meets the budget and every bound.
Weights and activations, where both are free, each have ratios and an order of their own and share
the number t.
"""

from __future__ import annotations

import numpy as np

from bitwright.allocate.plan import Plan, make_plan
from bitwright.allocate.problem import (
    Bounds,
    Problem,
    freely_widened,
    merged,
    require_feasible,
    room_left,
)

_FLOOR = 1e-9
#: a coordinate of ±1 multiplies a ratio by e^±SPAN before tilting: any width can all but vanish
SPAN = 5.0


def plan_from_ratios(
    problem: Problem, order: np.ndarray, ratios: np.ndarray, method: str = "cw-hawq"
) -> Plan:
    """The plan whose widths along `order` have (tilted) `ratios` of the weights.

    Args:
        problem: items, costs, budget.
        order: int64 [n], items by falling sensitivity; of two parts each for itself.
        ratios: float [parts · m] >= 0, share of the weights for each width, as in
            `problem.choices`, part after part. Items that cost nothing are counted by what they
            add to products, or else one by one.
        method: name of the plan.

    Returns:
        A plan within the budget that no widening of a boundary item would still fit; items whose
        widths all cost nothing are as wide as they may be.

    Raises:
        BitwrightError: the budget or a limit is below the feasible range.
    """
    require_feasible(problem)
    whole, group = merged(problem)
    bounds = Bounds(whole)
    ranked = group[np.asarray(order)]
    lines = [_Line(whole, ranked, part) for part in range(whole.parts)]
    bits = np.array(problem.choices, dtype=float)
    wanted = np.maximum(np.asarray(ratios, dtype=float), _FLOOR).reshape(whole.parts, len(bits))

    def tilted(t: float) -> np.ndarray:
        choice = np.empty(len(whole.names), dtype=np.int64)
        for line, shares in zip(lines, wanted, strict=True):
            choice[line.order] = line.assign(_tilted(shares, bits, t))
        return choice

    low, high = -200.0, 200.0  # exp(±200 · bits) covers every tilt of nine orders of magnitude
    for _ in range(80):
        middle = 0.5 * (low + high)
        if not bounds.fit(tilted(middle)):
            low = middle
        else:
            high = middle
    choice = tilted(high)
    for line in lines:
        line.fill(choice, bounds)
    return make_plan(problem, freely_widened(problem, choice[group]), method)


def ratios_of(problem: Problem, plan: Plan) -> np.ndarray:
    """Share of the weights at each width, float64 [parts · m], part after part."""
    m, sizes = len(problem.choices), _sizes(problem)
    shares = np.bincount(problem.part * m + plan.choice, sizes, problem.parts * m)
    shares = shares.reshape(problem.parts, m)
    return np.asarray((shares / shares.sum(axis=1, keepdims=True)).ravel())


class Points:
    """Points `p ∈ [−1, 1]^(parts · m)` as plans: the ratios `start_j · exp(SPAN · p_j)`, tilted.

    Args:
        problem, order, method: as for :func:`plan_from_ratios`.
        start: a plan whose ratios, every width kept possible, are the point 0; without one, equal
            shares.
    """

    def __init__(
        self, problem: Problem, order: np.ndarray, start: Plan | None, method: str
    ) -> None:
        self.problem, self.order, self.method = problem, order, method
        m = len(problem.choices)
        if start is None:
            self.start = np.full(problem.parts * m, 1 / m)
        else:
            self.start = (ratios_of(problem, start) + 0.01) / (1 + 0.01 * m)

    def __len__(self) -> int:
        return len(self.start)

    def plan(self, point: np.ndarray) -> tuple[Plan, tuple[float, ...]]:
        """The plan of a point, and the point as it is logged."""
        ratios = self.start * np.exp(SPAN * np.clip(point, -1, 1))
        plan = plan_from_ratios(self.problem, self.order, ratios, self.method)
        return plan, tuple(float(p) for p in point)

    def idle(self) -> np.ndarray:
        """What changes no plan: directions that normalizing and tilting undo, [len, parts + 1]."""
        m, parts = len(self.problem.choices), self.problem.parts
        bits = np.array(self.problem.choices, dtype=float)
        common = np.kron(np.eye(parts), np.ones((m, 1)))
        return np.linalg.qr(np.hstack([common, np.tile(bits, parts)[:, None]]))[0]


def widest_not_above(allowed: np.ndarray) -> np.ndarray:
    """For each choice the widest allowed not above it, or else the narrowest, int64 [n, m]."""
    below = np.where(allowed, np.arange(allowed.shape[1]), -1)
    at_most = np.maximum.accumulate(below, axis=1)
    return np.where(at_most >= 0, at_most, np.argmax(allowed, axis=1)[:, None])


def _sizes(problem: Problem) -> np.ndarray:
    """Weights in each item; where a part costs nothing, what products count, or else 1."""
    size = problem.cost[:, 0] / problem.choices[0]
    for part in range(problem.parts):
        own = problem.part == part
        if not size[own].any():
            paired = sum(
                (p.slopes(np.ones(len(own))) for p in problem.products), np.zeros(len(own))
            )
            size[own] = paired[own] if paired[own].any() else 1.0
    return size


def _tilted(shares: np.ndarray, bits: np.ndarray, t: float) -> np.ndarray:
    logs = np.log(shares) - t * (bits - bits.mean())
    shares = np.exp(logs - logs.max())
    return shares / shares.sum()


class _Line:
    """Tie groups of a part in the order of their first member, as intervals of weight on [0, 1]."""

    def __init__(self, whole: Problem, ranked: np.ndarray, part: int) -> None:
        ranked = ranked[whole.part[ranked] == part]
        _, first = np.unique(ranked, return_index=True)
        self.order = ranked[np.sort(first)]
        size = _sizes(whole)[self.order]
        size = np.maximum(size, 1e-9 * size.max())  # what costs nothing has a place on the line
        end = np.cumsum(size)
        self.middle = (end - size / 2) / end[-1]
        self.nearest = widest_not_above(whole.allowed)[self.order]
        self.allowed = whole.allowed[self.order]

    def assign(self, shares: np.ndarray) -> np.ndarray:
        """Choices of the groups along the line, int64."""
        cuts = np.cumsum(shares[::-1])[:-1]
        wanted = len(shares) - 1 - np.searchsorted(cuts, self.middle, side="left")
        return self.nearest[np.arange(len(wanted)), wanted]

    def fill(self, choice: np.ndarray, bounds: Bounds) -> None:
        """Widen the first item after each cut while anything fits, in place."""
        room = room_left(bounds.bounds, bounds.totals(choice))
        for place, item in enumerate(self.order):
            while (
                choice[item] + 1 < self.allowed.shape[1] and (self.allowed[place, choice[item] + 1])
            ):
                if place and choice[self.order[place - 1]] <= choice[item]:
                    break
                step = bounds.step(choice, item, choice[item] + 1)
                if (step > room).any():
                    break
                choice[item] += 1
                room -= step
