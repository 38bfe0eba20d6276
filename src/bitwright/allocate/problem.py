"""A problem: what each item would lose and cost at each choice, and a budget."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from bitwright.errors import BitwrightError


@dataclass(frozen=True, eq=False)
class Limit:
    """A bound beside the budget: `Σ_i cost[i, choice_i] ≤ bound`.

    Attributes:
        name: of what is bounded, "BOPs" or "latency".
        unit: of the bound.
        cost: float64 [n, m], finite, never falling along m.
        bound: on the total.
    """

    name: str
    unit: str
    cost: np.ndarray
    bound: float


@dataclass(frozen=True, eq=False)
class Problem:
    """Choose one width for each item with the least total loss within a total cost.

    Attributes:
        names: n items (output channels).
        choices: m widths in bits, ascending.
        loss: float64 [n, m], predicted increase of the loss; finite.
        cost: int64 [n, m], in bits, never falling along m; items such as activations may cost
            nothing here and something in a limit.
        budget: bound on the total cost, in bits.
        allowed: bool [n, m], at least one choice an item.
        tie: int64 [n]; items with the same number take the same choice.
        limits: further bounds, on other costs.

    Raises:
        ValueError: shapes, order or values are not as above.
    """

    names: tuple[str, ...]
    choices: tuple[int, ...]
    loss: np.ndarray
    cost: np.ndarray
    budget: int
    allowed: np.ndarray
    tie: np.ndarray
    limits: tuple[Limit, ...] = ()

    def __post_init__(self) -> None:
        shape = (len(self.names), len(self.choices))
        for name in ("loss", "cost", "allowed"):
            if getattr(self, name).shape != shape:
                raise ValueError(f"{name} has shape {getattr(self, name).shape}, expected {shape}")
        if self.tie.shape != shape[:1]:
            raise ValueError(f"tie has shape {self.tie.shape}, expected {shape[:1]}")
        if list(self.choices) != sorted(set(self.choices)):
            raise ValueError(f"choices must be ascending and distinct, got {self.choices}")
        if not np.isfinite(self.loss).all():
            raise ValueError("loss must be finite")
        if (np.diff(self.cost, axis=1) < 0).any():
            raise ValueError("cost must never fall with the width")
        if not self.allowed.any(axis=1).all():
            raise ValueError("every item needs at least one allowed choice")
        for limit in self.limits:
            if limit.cost.shape != shape:
                raise ValueError(f"{limit.name} has shape {limit.cost.shape}, expected {shape}")
            if not (np.isfinite(limit.cost).all() and (np.diff(limit.cost, axis=1) >= 0).all()):
                raise ValueError(f"{limit.name} must be finite and never fall with the width")

    @property
    def weights(self) -> int:
        """Total size in weights: what one bit for every item costs."""
        return int(self.cost[:, 0].sum() // self.choices[0])

    def with_budget(self, budget: int) -> Problem:
        """The same problem under another budget."""
        return replace(self, budget=int(budget))

    def with_limits(self, *limits: Limit) -> Problem:
        """The same problem with other bounds beside the budget."""
        return replace(self, limits=limits)

    def with_ties(self, tie: np.ndarray) -> Problem:
        """The same problem with other ties."""
        return replace(self, tie=np.asarray(tie, dtype=np.int64))


def merged(problem: Problem) -> tuple[Problem, np.ndarray]:
    """One item for each tie group, and for every item the index of its group.

    Raises:
        BitwrightError: a group has no choice that all its members allow.
    """
    _, group = np.unique(problem.tie, return_inverse=True)
    n = int(group.max()) + 1 if len(group) else 0
    if n == len(problem.names):
        return problem, np.arange(n)
    loss, cost = _grouped(problem.loss, group, n), _grouped(problem.cost, group, n)
    blocked = _grouped((~problem.allowed).astype(np.int64), group, n)
    first = {int(g): i for i, g in reversed(list(enumerate(group)))}
    names = tuple(problem.names[first[g]] for g in range(n))
    allowed = blocked == 0
    if not allowed.any(axis=1).all():
        name = names[int(np.flatnonzero(~allowed.any(axis=1))[0])]
        raise BitwrightError(f"the items tied to {name} allow no common width; loosen their bounds")
    limits = tuple(replace(li, cost=_grouped(li.cost, group, n)) for li in problem.limits)
    whole = Problem(
        names, problem.choices, loss, cost, problem.budget, allowed, np.arange(n), limits
    )
    return whole, group


def _grouped(table: np.ndarray, group: np.ndarray, n: int) -> np.ndarray:
    """Sums of rows of the same group."""
    found = np.zeros((n, table.shape[1]), dtype=table.dtype)
    np.add.at(found, group, table)
    return found


def feasible_range(problem: Problem) -> tuple[int, int]:
    """The least and the largest total cost any plan can have, in bits."""
    whole, _ = merged(problem)
    least, most = _range(whole, whole.cost)
    return int(least), int(most)


def limit_range(problem: Problem, limit: Limit) -> tuple[float, float]:
    """The least and the largest total any plan can have of what a limit bounds."""
    whole, group = merged(problem)
    least, most = _range(whole, _grouped(limit.cost, group, len(whole.names)))
    return float(least), float(most)


def _range(whole: Problem, cost: np.ndarray) -> tuple[np.number, np.number]:
    """Sums over the narrowest and the widest allowed choices: costs never fall with the width."""
    rows, last = np.arange(len(cost)), cost.shape[1] - 1
    narrowest = np.argmax(whole.allowed, axis=1)
    widest = last - np.argmax(whole.allowed[:, ::-1], axis=1)
    return cost[rows, narrowest].sum(), cost[rows, widest].sum()


def within(limit: Limit, total: float) -> bool:
    """Whether a total keeps a limit, up to the rounding of its sum."""
    return total <= limit.bound + 1e-12 * abs(limit.bound)


def all_costs(whole: Problem) -> tuple[np.ndarray, np.ndarray]:
    """What all bounds count, float64 [1 + k, n, m], the budget's first; and the bounds [1 + k].

    A limit's bound carries half the slack of :func:`within`, so that a sum in another order passes.
    """
    costs = np.stack([whole.cost.astype(float), *(li.cost for li in whole.limits)])
    slack = [li.bound + 5e-13 * abs(li.bound) for li in whole.limits]
    return costs, np.array([float(whole.budget), *slack])


def room_left(bounds: np.ndarray, totals: np.ndarray) -> np.ndarray:
    """What a greedy walk may still spend, [1 + k]; limits keep a billionth for rounding."""
    room = bounds - totals
    room[1:] = np.maximum(room[1:] - 1e-9 * np.abs(bounds[1:]), 0)
    return room


def freely_widened(problem: Problem, choice: np.ndarray) -> np.ndarray:
    """Every tie group at the widest allowed choice that costs what its own does, by all bounds."""
    whole, group = merged(problem)
    costs, _ = all_costs(whole)
    along = np.empty(len(whole.names), dtype=np.int64)
    along[group] = choice
    own = costs[:, np.arange(len(along)), along]
    free = whole.allowed & (costs == own[:, :, None]).all(axis=0)
    last = free.shape[1] - 1
    return (last - np.argmax(free[:, ::-1], axis=1))[group]


def require_feasible(problem: Problem) -> None:
    """Refuse a budget or a limit that nothing fits.

    As all costs rise with the width, the narrowest plan keeps all bounds or none does.

    Raises:
        BitwrightError: names the budget or the limit, and its feasible range.
    """
    least, most = feasible_range(problem)
    if problem.budget < least:
        weights = max(problem.weights, 1)
        raise BitwrightError(
            f"a budget of {problem.budget:,} bits ({problem.budget / weights:.3f} a weight) is "
            f"below the feasible range of {least:,} to {most:,} bits "
            f"({least / weights:.3f} to {most / weights:.3f} a weight); raise the budget"
        )
    for limit in problem.limits:
        low, high = limit_range(problem, limit)
        if not within(limit, low):
            raise BitwrightError(
                f"a bound of {limit.bound:.4g} {limit.unit} on {limit.name} is below the feasible "
                f"range of {low:.4g} to {high:.4g} {limit.unit}; raise the bound"
            )
