"""The optimum of a small problem: dynamic programming over its items, pruned by multipliers.

For multipliers μ ≥ 0 every item has a least price `min_j loss_j + μ·cost_j`, and

    Σ loss = bound(μ) + Σ regret + μ·(bounds − Σ cost),    bound(μ) = Σ least price − μ·bounds,

where a choice's regret is its price above its item's least. A plan within the bounds that loses at
most `bound(μ) + gap` has a total regret of at most `gap`. So all such plans are enumerated, item by
item, for a gap that grows until it holds a plan (Pisinger's core, European Journal of Operational
Research 83, 1995, without the core's order). With one bound, states that cost and lose more than
another are dropped as well.
"""

from __future__ import annotations

import numpy as np

from bitwright.allocate.problem import Problem, all_costs


def exact(
    whole: Problem, multipliers: np.ndarray, known: np.ndarray, most_states: int = 50_000
) -> tuple[np.ndarray, bool]:
    """The optimum's choices, int64 [n], and True; where that takes too many states, the best met.

    Args:
        whole: without ties.
        multipliers: float64 [1 + k] ≥ 0, of the budget and the limits; any are right, good ones
            are fast.
        known: a plan within the bounds.
        most_states: held at once.
    """
    costs, bounds = all_costs(whole)
    rows = np.arange(len(known))
    priced = np.where(whole.allowed, whole.loss + np.tensordot(multipliers, costs, 1), np.inf)
    least = priced.min(axis=1)
    regret = priced - least[:, None]
    below = float(least.sum() - multipliers @ bounds)
    rounding = 1e-12 * (float(np.abs(least).sum()) + float(multipliers @ np.abs(bounds)))
    best, ceiling = known, float(whole.loss[rows, known].sum()) - below
    gap = max(ceiling / 64, rounding)
    while True:
        gap = min(gap, ceiling)
        found = _within(whole.loss, costs, bounds, regret, gap + rounding, most_states)
        if found is None:
            return best, False
        choice, loss = found
        if choice is not None and loss - below < ceiling:
            best, ceiling = choice, loss - below
        if ceiling <= gap + rounding:
            return best, True
        gap *= 4


def _within(
    loss: np.ndarray,
    costs: np.ndarray,
    bounds: np.ndarray,
    regret: np.ndarray,
    gap: float,
    most_states: int,
) -> tuple[np.ndarray | None, float] | None:
    """The best plan of total regret ≤ gap, if any, and its loss; None: too many states."""
    near = regret <= gap
    # the least that each item, and all items still to come, will cost
    cheapest = np.where(near, costs, np.inf).min(axis=2)
    second = np.where(near, regret, np.inf)
    second = np.partition(second, 1, axis=1)[:, 1] if loss.shape[1] > 1 else second[:, 0]
    order = np.argsort(-second, kind="stable")  # single choices (∞) first, close calls last
    to_come = cheapest[:, order][:, ::-1].cumsum(axis=1)[:, ::-1] - cheapest[:, order]
    spent, lost, due = np.zeros((len(bounds), 1)), np.zeros(1), np.zeros(1)
    trail: list[tuple[np.ndarray, np.ndarray]] = []
    slack = 1e-13 * np.abs(bounds)
    for place, item in enumerate(order):
        options = np.flatnonzero(near[item])
        states = len(due)
        due = (due[None] + regret[item, options][:, None]).ravel()
        spent = (spent[:, None] + costs[:, item, options][:, :, None]).reshape(len(bounds), -1)
        lost = (lost[None] + loss[item, options][:, None]).ravel()
        fits = (spent + (to_come[:, place] - slack)[:, None] <= bounds[:, None]).all(axis=0)
        kept = np.flatnonzero(fits & (due <= gap))
        if len(bounds) == 1:
            kept = kept[undominated(spent[0, kept], lost[kept])]
        if not len(kept):
            return None, np.inf
        if len(kept) > most_states:
            return None
        due, spent, lost = due[kept], spent[:, kept], lost[kept]
        trail.append((options[kept // states], kept % states))
    within = np.flatnonzero((spent <= bounds[:, None]).all(axis=0))
    if not len(within):
        return None, np.inf
    at = int(within[np.argmin(lost[within])])
    best = float(lost[at])
    choice = np.empty(len(order), dtype=np.int64)
    for item, (taken, parent) in zip(order[::-1], reversed(trail), strict=True):
        choice[item], at = taken[at], int(parent[at])
    return choice, best


def undominated(cost: np.ndarray, loss: np.ndarray) -> np.ndarray:
    """Indices of the pairs that no other pair matches in both, by rising cost."""
    order = np.lexsort((loss, cost))
    ahead = np.minimum.accumulate(loss[order])
    better = np.empty(len(order), dtype=bool)
    better[:1] = True
    better[1:] = loss[order][1:] < ahead[:-1]
    return order[better]
