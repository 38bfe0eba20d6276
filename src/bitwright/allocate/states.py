"""Partial plans that may still be the best for some budget: what dynamic programs carry along."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bitwright.allocate.exact import undominated
from bitwright.allocate.multipliers import multipliers
from bitwright.allocate.plan import Plan, make_plan
from bitwright.allocate.problem import Problem, all_costs, feasible_range, require_feasible

#: states up to which domination in several costs is looked for, pair by pair
_PAIRS = 3000
#: prices of the limits at which states are compared, as shares of their multipliers
_FACTORS = (0.0, 0.1, 0.3, 0.7, 1.0, 1.5, 4.0, 100.0)


@dataclass(frozen=True)
class States:
    """Choices of the first items, s of them.

    Attributes:
        costs: float64 [1 + k, s], totals so far, the budget's first.
        loss: float64 [s], totals so far.
        taken: int16 [s], column of the last item.
        parent: int32 [s], index into the states before.
    """

    costs: np.ndarray
    loss: np.ndarray
    taken: np.ndarray
    parent: np.ndarray

    def part(self, kept: np.ndarray) -> States:
        """Some of the states."""
        return States(self.costs[:, kept], self.loss[kept], self.taken[kept], self.parent[kept])

    def after(self, kept: np.ndarray, costs: np.ndarray, loss: float, column: int) -> States:
        """Some of the states, each with the next item at `column`, costing [1 + k] and losing."""
        taken = np.full(len(kept), column, dtype=np.int16)
        return States(
            self.costs[:, kept] + costs[:, None],
            self.loss[kept] + loss,
            taken,
            kept.astype(np.int32),
        )


@dataclass(frozen=True, eq=False)
class Frontier:
    """A plan for every budget: each costs more and loses less than the one before.

    Attributes:
        problem: what it was made for; its budget bounds nothing here, its limits bound every plan.
        exact: whether no state was left out but for another that cost and lost no more.
        method: name of its plans.
        trail: the states after each item, in `order`.
        order: int64, tie groups in the order of the program.
        columns: int64 [groups, m], the choice that each column stands for.
        group: int64 [n], tie group of each item.
    """

    problem: Problem
    exact: bool
    method: str
    trail: tuple[States, ...]
    order: np.ndarray
    columns: np.ndarray
    group: np.ndarray

    def __len__(self) -> int:
        return len(self.trail[-1].loss)

    @property
    def points(self) -> list[tuple[int, float]]:
        """(cost in bits, predicted loss), rising in the one and falling in the other."""
        last = self.trail[-1]
        return [(int(c), float(v)) for c, v in zip(last.costs[0], last.loss, strict=True)]

    def choice(self, index: int) -> np.ndarray:
        """int64 [n], the choices of a point."""
        return self._along(np.array([index]))[0, self.group]

    def choices(self, items: np.ndarray) -> np.ndarray:
        """int64 [points, k], the choices of all points for k of the items."""
        return self._along(np.arange(len(self)))[:, self.group[items]]

    def _along(self, indices: np.ndarray) -> np.ndarray:
        """int64 [k, groups], the choices of some points."""
        along = np.empty((len(indices), len(self.order)), dtype=np.int64)
        for item, states in zip(self.order[::-1], reversed(self.trail), strict=True):
            along[:, item] = self.columns[item, states.taken[indices]]
            indices = states.parent[indices]
        return along

    def plan(self, budget: int) -> Plan:
        """The best of the plans within a budget, in bits.

        Raises:
            BitwrightError: the budget is below the cheapest plan.
        """
        require_feasible(self.problem.with_budget(budget))
        cost = self.trail[-1].costs[0]
        index = int(np.searchsorted(cost, budget, side="right")) - 1
        return make_plan(self.problem.with_budget(budget), self.choice(index), self.method)


class Pruning:
    """Which states to go on with: within all limits, undominated, at most about `resolution`.

    Where more are left, the range of the cost in bits is divided into buckets and of every bucket
    the state of least loss is kept, with its true costs; and the cheapest of all. With limits it is
    the state of least `loss + f · Σ_k μ_k cost_k` for each of eight factors f, the multipliers μ of
    the problem's own budget, in a 32nd of the buckets, once a quarter of `resolution` is exceeded.
    """

    def __init__(self, whole: Problem, order: np.ndarray, resolution: int) -> None:
        costs, bounds = all_costs(whole)
        self.bounds = np.append(np.inf, bounds[1:])  # a plan for every budget
        least = np.where(whole.allowed, costs, np.inf).min(axis=2)[:, order]
        most = np.where(whole.allowed, costs, -np.inf).max(axis=2).sum(axis=1)
        self.to_come = least[:, ::-1].cumsum(axis=1)[:, ::-1] - least
        several = len(bounds) > 1
        resolution = (
            max(resolution // 4, 1) if several else resolution
        )  # eight sorts in place of one
        count = max(resolution // len(_FACTORS), 1) if several else resolution
        self.bucket = max(float(most[0] - least[0].sum()) / count, 1e-300)
        self.prices = _limit_prices(whole) if several else np.zeros(0)
        self.factors = _FACTORS if several else (0.0,)
        self.resolution, self.exact = resolution, True

    def __call__(self, states: States, place: int) -> States:
        """The states to go on with after the item at `place` in the order."""
        due = states.costs + self.to_come[:, place][:, None]
        slack = 1e-13 * np.abs(self.bounds[1:, None])
        states = states.part(np.flatnonzero((due[1:] <= self.bounds[1:, None] + slack).all(axis=0)))
        if len(states.costs) == 1:
            states = states.part(undominated(states.costs[0], states.loss))
        elif len(states.loss) <= _PAIRS:
            states = states.part(_undominated_in_all(states))
        if len(states.loss) <= self.resolution:
            return states
        self.exact = False
        cells = np.floor(states.costs[0] / self.bucket).astype(np.int64)
        kept = [np.lexsort((states.loss, states.costs.sum(axis=0)))[:1]]
        for factor in self.factors:
            priced = states.loss + factor * (self.prices @ states.costs[1:])
            order = np.lexsort((states.costs[0], priced, cells))
            first = np.ones(len(order), dtype=bool)
            first[1:] = cells[order[1:]] != cells[order[:-1]]
            kept.append(order[first])
        return states.part(np.unique(np.concatenate(kept)))


def _limit_prices(whole: Problem) -> np.ndarray:
    """The limits' multipliers, float64 [k], none of them nothing."""
    low, high = feasible_range(whole)
    prices = multipliers(whole.with_budget(min(max(whole.budget, low), high)))[0][1:]
    spread = float(np.ptp(whole.loss, axis=1).sum())
    ranges = np.array([np.ptp(li.cost, axis=1).sum() for li in whole.limits])
    return np.maximum(prices, 0.01 * spread / np.maximum(ranges, 1e-300))


def joined(parts: Sequence[States]) -> States:
    """One list of all states."""
    return States(
        np.concatenate([p.costs for p in parts], axis=1),
        np.concatenate([p.loss for p in parts]),
        np.concatenate([p.taken for p in parts]),
        np.concatenate([p.parent for p in parts]),
    )


def in_cost(states: States) -> States:
    """The frontier proper, once all items are in: cost in bits against loss."""
    return states.part(undominated(states.costs[0], states.loss))


def nothing(bounds: int, column: int) -> States:
    """The plan of no items."""
    zero = np.zeros(1, dtype=np.int32)
    return States(np.zeros((bounds, 1)), np.zeros(1), np.full(1, column, dtype=np.int16), zero)


def require_limits(problem: Problem) -> None:
    """Refuse limits that nothing fits; a frontier has no budget to refuse."""
    require_feasible(problem.with_budget(max(feasible_range(problem)[1], 0)))


def _undominated_in_all(states: States) -> np.ndarray:
    """Indices of states that no other matches in all costs and the loss; of equals the first."""
    order = np.lexsort((*states.costs[::-1], states.loss))  # whatever dominates comes before
    table = np.vstack([states.costs, states.loss[None]])[:, order]
    front: np.ndarray = np.empty_like(table)
    kept: list[int] = []
    for i in range(len(order)):
        if not (front[:, : len(kept)] <= table[:, i : i + 1]).all(axis=0).any():
            front[:, len(kept)] = table[:, i]
            kept.append(i)
    return np.sort(order[kept])
