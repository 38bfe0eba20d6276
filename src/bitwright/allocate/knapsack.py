"""Multiple-choice knapsack by Lagrangian bisection on each item's convex hull, then a finish.

For a multiplier λ every item takes the choice that minimizes `loss + λ·cost`; as λ falls, items
move up their lower convex hulls in the order of gain per bit. The plan at the λ where the budget
is met is optimal for its own cost, and the linear relaxation's optimum (a fraction of one move
more) bounds every plan from below. What is left of the budget after the last whole move goes to a
small integer program over the items nearest to that λ (HiGHS), which is exact when it holds all.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array

from bitwright.allocate.plan import Plan, make_plan
from bitwright.allocate.problem import Problem, merged, require_feasible

#: items the integer program looks at; all of them up to this many
_CORE = 40


def knapsack(problem: Problem, method: str = "channels") -> Plan:
    """The plan with the least predicted loss within the budget.

    Exact up to 40 items (after merging ties), within the core's gap of optimal beyond: the loss is
    never more than one move above the linear bound. Cost: O(n m log(n m)) plus one small program.

    Raises:
        BitwrightError: the budget is below the feasible range.
    """
    require_feasible(problem)
    whole, group = merged(problem)
    choice, critical = _greedy(whole)
    choice = _finish(whole, choice, critical)
    return make_plan(problem, choice[group], method)


def lp_bound(problem: Problem) -> float:
    """The optimum of the linear relaxation: no plan within the budget loses less."""
    require_feasible(problem)
    whole, _ = merged(problem)
    moves = Moves(whole)
    cost, loss = moves.start_cost, moves.start_loss
    for c, g in zip(moves.cost, moves.gain, strict=True):
        if cost + c > whole.budget:
            return float(loss - g * (whole.budget - cost) / c)
        cost, loss = cost + c, loss - g
    return float(loss)


class Moves:
    """Moves along all hulls by falling gain per bit."""

    def __init__(self, whole: Problem) -> None:
        hulls = _hulls(whole)
        self.start = hulls[:, 0].copy()
        rows = np.arange(len(hulls))
        self.start_cost = int(whole.cost[rows, self.start].sum())
        self.start_loss = float(whole.loss[rows, self.start].sum())
        source, target = hulls[:, :-1], hulls[:, 1:]
        item, step = np.nonzero(target >= 0)
        before, after = source[item, step], target[item, step]
        cost = whole.cost[item, after] - whole.cost[item, before]
        gain = whole.loss[item, before] - whole.loss[item, after]
        order = np.lexsort((step, item, -(gain / cost)))
        self.item, self.after = item[order], after[order]
        self.cost, self.gain = cost[order], gain[order]


def _hulls(whole: Problem) -> np.ndarray:
    """Lower convex hulls, int64 [n, m]: choices by rising cost, padded with −1.

    All items at once: from each hull point the next is the allowed, dearer choice with the largest
    gain per bit, as long as that gain is positive.
    """
    n, m = whole.loss.shape
    rows = np.arange(n)
    hull = np.full((n, m), -1, dtype=np.int64)
    first = np.argmax(whole.allowed, axis=1)
    hull[:, 0] = first
    current = first.copy()
    columns = np.arange(m)
    for step in range(1, m):
        extra = whole.cost - whole.cost[rows, current][:, None]
        gain = whole.loss[rows, current][:, None] - whole.loss
        open_ = whole.allowed & (columns > current[:, None]) & (gain > 0)
        rate = np.where(open_, gain / np.maximum(extra, 1), -np.inf)
        best = m - 1 - np.argmax(rate[:, ::-1], axis=1)  # the dearest of equals: fewer moves
        alive = rate[rows, best] > 0
        hull[alive, step] = best[alive]
        current = np.where(alive, best, current)
        if not alive.any():
            break
    return hull


def _greedy(whole: Problem) -> tuple[np.ndarray, float]:
    """Whole moves by falling gain per bit while they fit; and the rate where they stopped."""
    moves = Moves(whole)
    room = whole.budget - moves.start_cost
    running = np.cumsum(moves.cost)
    taken = int(np.searchsorted(running, room, side="right"))
    choice = moves.start.copy()
    choice[moves.item[:taken]] = moves.after[:taken]  # later moves of an item overwrite earlier
    room -= int(running[taken - 1]) if taken else 0
    rate = float(moves.gain[taken] / moves.cost[taken]) if taken < len(moves.cost) else 0.0
    blocked: set[int] = set()
    for i in range(taken, min(len(moves.cost), taken + 2000)):  # fill the gap with what still fits
        item = int(moves.item[i])
        if item in blocked:
            continue
        if moves.cost[i] <= room:
            choice[item] = moves.after[i]
            room -= int(moves.cost[i])
        else:
            blocked.add(item)
    return choice, rate


def _finish(whole: Problem, choice: np.ndarray, rate: float) -> np.ndarray:
    """Solve exactly over the items that come closest to another choice at the critical rate."""
    rows = np.arange(len(choice))
    priced = np.where(whole.allowed, whole.loss + rate * whole.cost, np.inf)
    kept = priced[rows, choice]
    priced[rows, choice] = np.inf
    core = np.argsort(priced.min(axis=1) - kept, kind="stable")[:_CORE]
    room = whole.budget - int(whole.cost[rows, choice].sum())
    room += int(whole.cost[core, choice[core]].sum())
    best = solve(whole.loss[core], whole.cost[core], whole.allowed[core], room)
    if best is not None:
        trial = choice.copy()
        trial[core] = best
        if whole.loss[rows, trial].sum() < whole.loss[rows, choice].sum():
            return trial
    return choice


def solve(
    loss: np.ndarray, cost: np.ndarray, allowed: np.ndarray, budget: int
) -> np.ndarray | None:
    """The exact optimum as an integer program (HiGHS), or None if it finds none in 10 s.

    Args:
        loss, cost, allowed: [n, m]; budget: bound on the total cost.

    Returns:
        int64 [n], the choices.
    """
    n, m = loss.shape
    item = np.repeat(np.arange(n), m)
    spread = max(float(np.abs(loss).max()), 1e-300)
    # HiGHS keeps rows to within 1e-6: at this scale that is less than one unit of cost
    unit = min(float(cost.max()), 1e5)
    one = coo_array((np.ones(n * m), (item, np.arange(n * m))), shape=(n, n * m))
    result = milp(
        (loss / spread).ravel(),
        integrality=np.ones(n * m),
        bounds=Bounds(0, allowed.ravel().astype(float)),
        constraints=[
            LinearConstraint(one.tocsr(), 1, 1),
            LinearConstraint(cost.ravel()[None] / unit, -np.inf, budget / unit),
        ],
        options={"time_limit": 10.0, "mip_rel_gap": 1e-9},
    )
    if result.x is None:
        return None
    choice = np.argmax(result.x.reshape(n, m), axis=1)
    return choice if int(cost[np.arange(n), choice].sum()) <= budget else None
