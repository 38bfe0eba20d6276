"""Prices for the budget and every limit: the Lagrangian dual, by cutting planes (Kelley 1960).

    max_{μ ≥ 0}  v(μ) = Σ_i min_j (loss_ij + Σ_k μ_k cost_kij) − Σ_k μ_k bound_k

`v` is concave and piecewise linear, and every `v(μ)` bounds all plans from below; its maximum is
the optimum of the linear relaxation (Geoffrion 1974). Each `v(μ)` has the slope `Σ_i cost − bound`
of its own plan; the next μ maximizes the lowest of all tangents so far, a linear program with a
variable for each bound.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.optimize import linprog

from bitwright.allocate.problem import Problem, all_costs, feasible_range, merged

#: tangents at most, and how close the bound has to come, as a share of what widths can gain; the
#: linear program's own tolerance ends the search a little earlier or later
_MOST, _TOLERANCE = 300, 1e-9


def multipliers(whole: Problem) -> tuple[np.ndarray, float]:
    """The multipliers, float64 [1 + k], in loss per unit of each cost; and the bound `v` there.

    A bound that only the narrowest plan meets has no finite price: items that would cost more
    there are held at what the narrowest costs, see :func:`held`, and its multiplier is 0.

    The plan must be feasible. Cost: some tens of passes over the n·m choices.
    """
    whole = held(whole)
    costs, bounds = all_costs(whole)
    rows = np.arange(len(whole.names))
    narrowest = np.argmax(whole.allowed, axis=1)
    loss = np.where(whole.allowed, whole.loss, np.inf)
    flat = np.ascontiguousarray(costs.reshape(len(bounds), -1))

    def cheapest(price: np.ndarray) -> tuple[float, np.ndarray]:
        priced = loss + (price @ flat).reshape(loss.shape)
        choice = np.argmin(priced, axis=1)
        return float(priced[rows, choice].sum()), costs[:, rows, choice].sum(axis=1)

    room = bounds - costs[:, rows, narrowest].sum(axis=1)
    return highest(cheapest, bounds, room, float(whole.loss[rows, narrowest].sum()))


def price(problem: Problem) -> float:
    """What a bit of the budget is worth in loss: its multiplier in the linear relaxation.

    0 where the budget does not bind, and where no plan but the narrowest fits.
    """
    whole, _ = merged(problem)
    if problem.budget < feasible_range(problem)[0]:
        return 0.0
    return float(multipliers(whole)[0][0])


def highest(
    cheapest: Callable[[np.ndarray], tuple[float, np.ndarray]],
    bounds: np.ndarray,
    room: np.ndarray,
    narrowest: float,
) -> tuple[np.ndarray, float]:
    """Where `v(μ) = min over plans (loss + μ·totals) − μ·bounds` is highest, and how high.

    Args:
        cheapest: prices μ -> the least loss + μ·totals of a plan, and that plan's totals.
        bounds: float64 [k]; room: what they leave above the narrowest plan's totals.
        narrowest: the loss of that plan.
    """
    count = len(bounds)
    free, _ = cheapest(np.zeros(count))
    most = narrowest - free
    counts = _counts(room, bounds)
    if not counts.any() or most <= 0:
        return np.zeros(count), free
    # v(0) ≤ v(μ) ≤ loss of the narrowest − Σ μ_k room_k: in these units Σ μ ≤ 1
    unit = np.where(counts, most / np.where(counts, room, 1), 0.0)
    tangents: list[np.ndarray] = []
    values: list[float] = []
    best, at = -np.inf, np.zeros(count)
    point, above = np.zeros(count), np.inf
    for _ in range(_MOST):
        price = point * unit
        priced, totals = cheapest(price)
        value = priced - float(price @ bounds)
        if value > best:
            best, at = value, price
        slope = (totals - bounds) * unit / most
        tangents.append(slope)
        values.append((value / most) - float(slope @ point))
        if above - best <= _TOLERANCE * most:
            break
        proposed, above = _highest(np.array(tangents), np.array(values), counts)
        above *= most
        if np.abs(proposed - point).max() <= 1e-12:
            break
        point = proposed
    return at, best


def held(whole: Problem) -> Problem:
    """Without the choices that a bound met by the narrowest plan alone rules out."""
    costs, bounds = all_costs(whole)
    narrowest = np.argmax(whole.allowed, axis=1)
    least = np.take_along_axis(costs, narrowest[None, :, None], axis=2)
    tight = ~_counts(bounds - least.sum(axis=(1, 2)), bounds)
    if not tight.any():
        return whole
    allowed = whole.allowed & (costs[tight] <= least[tight]).all(axis=0)
    return Problem(
        whole.names, whole.choices, whole.loss, whole.cost, whole.budget, allowed, whole.tie,
        whole.limits,
    )  # fmt: skip


def _counts(room: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """Bounds that leave any room above the narrowest plan."""
    return room > 1e-11 * np.abs(bounds)


def _highest(
    tangents: np.ndarray, values: np.ndarray, counts: np.ndarray
) -> tuple[np.ndarray, float]:
    """Where the lowest tangent is highest, and how high, on {μ ≥ 0, Σ μ ≤ 1}."""
    k = tangents.shape[1]
    rows = np.concatenate(
        [np.hstack([-tangents, np.ones((len(tangents), 1))]), np.ones((1, k + 1))]
    )
    rows[-1, -1] = 0
    result = linprog(
        np.append(np.zeros(k), -1.0),
        A_ub=rows,
        b_ub=np.append(values, 1.0),
        bounds=[(0, 1 if c else 0) for c in counts] + [(None, None)],
        method="highs",
    )
    assert result.x is not None  # feasible, and bounded by the tangents
    return np.asarray(result.x[:k]), float(result.x[-1])
