"""Multiple-choice knapsack by Lagrangian multipliers on each item's convex hull, then a finish.

For a multiplier λ every item takes the choice that minimizes `loss + λ·cost`; as λ falls, items
move up their lower convex hulls in the order of gain per bit. The plan at the λ where the budget
is met is optimal for its own cost, and the linear relaxation's optimum (a fraction of one move
more) bounds every plan from below. With further limits the cost is a surrogate, `Σ_k μ_k cost_k`
at the multipliers μ of the linear relaxation, and moves stop at the first bound. What is left after
the last whole move goes to an exact search over the items nearest to another choice.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array

from bitwright.allocate.exact import exact
from bitwright.allocate.ilp import solve
from bitwright.allocate.joint import joint, lower_bound
from bitwright.allocate.multipliers import held, multipliers
from bitwright.allocate.plan import Plan, make_plan
from bitwright.allocate.problem import Problem, all_costs, merged, require_feasible, room_left

#: items the finish looks at; all of them up to this many
_CORE = 40
#: items that it tries before, and the partial plans that each holds at once
_WIDE, _WIDE_STATES, _CORE_STATES = 200, 4_000, 50_000
#: choices up to which the linear relaxation with limits is solved as a linear program
_LP = 20_000
#: moves tried one by one after the first that does not fit
_TRIED = 2000


def knapsack(problem: Problem, method: str = "channels") -> Plan:
    """The plan with the least predicted loss within the budget and the limits.

    Exact up to 40 items (after merging ties), mostly up to 200. Beyond, the loss is never more than
    one move above the linear bound without limits, and within a few moves of it with them. Cost:
    O(n m log(n m)), some tens of passes more with limits, plus one small exact search. With bounds
    on products of widths it is :func:`~bitwright.allocate.joint.joint`, which proves nothing but is
    near its bound.

    Raises:
        BitwrightError: the budget or a limit is below the feasible range.
    """
    require_feasible(problem)
    whole, group = merged(problem)
    choice = joint(whole, _linear) if whole.products else _linear(whole)
    return make_plan(problem, choice[group], method)


def _linear(whole: Problem) -> np.ndarray:
    prices = multipliers(whole)[0] if whole.limits else None
    choice, critical = _greedy(whole, prices)
    return _finish(whole, choice, critical)


def lp_bound(problem: Problem) -> float:
    """A bound that no plan within the budget and the limits stays under.

    The optimum of the linear relaxation: from the hulls without limits, as a linear program
    (HiGHS, to its tolerance of 1e-7) with limits up to 20,000 choices. Beyond, the Lagrangian
    bound of :func:`bitwright.allocate.multipliers.multipliers`, still valid, and about 1e-8 of
    what widths can gain below the same optimum.

    Raises:
        BitwrightError: the budget or a limit is below the feasible range.
    """
    require_feasible(problem)
    whole, _ = merged(problem)
    if whole.products:
        return lower_bound(whole)
    if whole.limits:
        return _relaxed(whole) if whole.loss.size <= _LP else multipliers(whole)[1]
    moves = Moves(whole)
    cost, loss = moves.start_cost, moves.start_loss
    for c, g in zip(moves.cost, moves.gain, strict=True):
        if cost + c > whole.budget:
            return float(loss - g * (whole.budget - cost) / c)
        cost, loss = cost + c, loss - g
    return float(loss)


def _relaxed(whole: Problem) -> float:
    """The linear relaxation with limits, by HiGHS."""
    n, m = whole.loss.shape
    costs, bounds = all_costs(whole)
    unit = np.maximum(np.abs(bounds), costs.max(axis=(1, 2), initial=1e-300))
    scale = max(float(np.abs(whole.loss).max()), 1e-300)
    column = np.arange(n * m)
    one = coo_array((np.ones(n * m), (column // m, column)), shape=(n, n * m))
    result = milp(
        whole.loss.ravel() / scale,
        integrality=np.zeros(n * m),
        bounds=Bounds(0, whole.allowed.ravel().astype(float)),
        constraints=[
            LinearConstraint(one.tocsr(), 1, 1),
            LinearConstraint(
                costs.reshape(len(bounds), -1) / unit[:, None], -np.inf, bounds / unit
            ),
        ],
    )
    assert result.x is not None  # the narrowest plan is feasible
    return float(whole.loss.ravel() @ result.x)


class Moves:
    """Moves along all hulls by falling gain per bit, or per unit of another cost [n, m].

    Every item starts from the best of its cheapest choices, so that all moves cost something.
    """

    def __init__(self, whole: Problem, cost: np.ndarray | None = None) -> None:
        price = whole.cost if cost is None else cost
        hulls = _hulls(whole, price)
        self.start = hulls[:, 0].copy()
        rows = np.arange(len(hulls))
        self.start_cost = int(whole.cost[rows, self.start].sum())
        self.start_loss = float(whole.loss[rows, self.start].sum())
        source, target = hulls[:, :-1], hulls[:, 1:]
        item, step = np.nonzero(target >= 0)
        before, after = source[item, step], target[item, step]
        row = item * price.shape[1]
        cost = price.take(row + after) - price.take(row + before)
        gain = whole.loss.take(row + before) - whole.loss.take(row + after)
        order = np.argsort(-(gain / cost), kind="stable")  # of equals by item, then by step
        self.item, self.before, self.after = item[order], before[order], after[order]
        self.cost, self.gain = cost[order], gain[order]


def _hulls(whole: Problem, cost: np.ndarray) -> np.ndarray:
    """Lower convex hulls, int64 [n, m]: choices by rising cost, padded with −1.

    All items at once: from each hull point the next is the allowed, dearer choice with the largest
    gain per bit, as long as that gain is positive. The first is the best of the cheapest.
    """
    n, m = whole.loss.shape
    rows = np.arange(n)
    hull = np.full((n, m), -1, dtype=np.int64)
    narrowest = cost[rows, np.argmax(whole.allowed, axis=1)]
    free = whole.allowed & (cost <= narrowest[:, None])
    first = np.argmin(np.where(free, whole.loss, np.inf), axis=1)
    hull[:, 0] = first
    current = first.copy()
    columns = np.arange(m)
    for step in range(1, m):
        extra = cost - cost[rows, current][:, None]
        gain = whole.loss[rows, current][:, None] - whole.loss
        open_ = whole.allowed & (columns > current[:, None]) & (gain > 0) & (extra > 0)
        rate = np.where(open_, gain / np.where(open_, extra, 1), -np.inf)
        best = m - 1 - np.argmax(rate[:, ::-1], axis=1)  # the dearest of equals: fewer moves
        alive = rate[rows, best] > 0
        hull[alive, step] = best[alive]
        current = np.where(alive, best, current)
        if not alive.any():
            break
    return hull


def _greedy(whole: Problem, prices: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Whole moves by falling gain per price while they fit; and the multipliers.

    Args:
        whole: without ties.
        prices: float64 [1 + k], of the budget and the limits; without limits None: the multiplier
            is the gain per bit where the moves stop.
    """
    costs, bounds = all_costs(whole)
    if prices is None:
        moves = Moves(whole)
    else:
        moves = Moves(held(whole), np.tensordot(_positive(prices, costs), costs, 1))
    rows = np.arange(len(moves.start))
    room = room_left(bounds, costs[:, rows, moves.start].sum(axis=1))
    row, flat = moves.item * costs.shape[2], costs.reshape(len(costs), -1)
    steps = flat.take(row + moves.after, axis=1) - flat.take(row + moves.before, axis=1)
    running = np.cumsum(steps, axis=1)
    taken = min(
        int(np.searchsorted(r, b, side="right")) for r, b in zip(running, room, strict=True)
    )
    choice = moves.start.copy()
    choice[moves.item[:taken]] = moves.after[:taken]  # later moves of an item overwrite earlier
    room -= running[:, taken - 1] if taken else 0
    rate = float(moves.gain[taken] / moves.cost[taken]) if taken < len(moves.cost) else 0.0
    blocked: set[int] = set()
    for i in range(taken, min(len(moves.cost), taken + _TRIED)):  # fill the gap with what fits
        item = int(moves.item[i])
        if item in blocked:
            continue
        if (steps[:, i] <= room).all():
            choice[item] = moves.after[i]
            room -= steps[:, i]
        else:
            blocked.add(item)
    return choice, np.array([rate]) if prices is None else prices


def _positive(prices: np.ndarray, costs: np.ndarray) -> np.ndarray:
    """A price for every bound that anything costs: what does not bind must not be used up."""
    dearest = costs.max(axis=(1, 2), initial=0)
    worth = float((prices * dearest).max()) or 1.0
    return np.where(dearest > 0, np.maximum(prices, 1e-9 * worth / np.maximum(dearest, 1e-300)), 0)


def _finish(whole: Problem, choice: np.ndarray, prices: np.ndarray) -> np.ndarray:
    """Solve exactly over the items that come closest to another choice at these multipliers."""
    rows = np.arange(len(choice))
    costs, _ = all_costs(whole)
    priced = np.where(whole.allowed, whole.loss + np.tensordot(prices, costs, 1), np.inf)
    kept = priced[rows, choice]
    priced[rows, choice] = np.inf
    near = np.argsort(priced.min(axis=1) - kept, kind="stable")
    few = len(near) <= _CORE
    for items, states in ((near[:_WIDE], _WIDE_STATES), (near[:_CORE], _CORE_STATES))[few:]:
        core = _part(whole, choice, items)
        found, proven = exact(core, prices, choice[items], states)
        if few and not proven:
            solved = solve(core)
            found = found if solved is None else solved
        trial = choice.copy()
        trial[items] = found
        if whole.loss[rows, trial].sum() < whole.loss[rows, choice].sum():
            choice = trial
        if proven:
            break
    return choice


def _part(whole: Problem, choice: np.ndarray, items: np.ndarray) -> Problem:
    """The problem of some items, the others staying as they are."""
    rest = np.ones(len(choice), dtype=bool)
    rest[items] = False
    others, taken = np.flatnonzero(rest), choice[rest]
    return Problem(
        tuple(whole.names[i] for i in items),
        whole.choices,
        whole.loss[items],
        whole.cost[items],
        whole.budget - int(whole.cost[others, taken].sum()),
        whole.allowed[items],
        np.arange(len(items)),
        tuple(
            replace(li, cost=li.cost[items], bound=li.bound - float(li.cost[others, taken].sum()))
            for li in whole.limits
        ),
    )
