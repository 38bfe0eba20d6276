"""A problem: what each item would lose and cost at each choice, and a budget."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from bitwright.errors import BitwrightError


@dataclass(frozen=True, eq=False)
class Problem:
    """Choose one width for each item with the least total loss within a total cost.

    Attributes:
        names: n items (output channels).
        choices: m widths in bits, ascending.
        loss: float64 [n, m], predicted increase of the loss; finite.
        cost: int64 [n, m], in bits, strictly increasing along m.
        budget: bound on the total cost, in bits.
        allowed: bool [n, m], at least one choice an item.
        tie: int64 [n]; items with the same number take the same choice.

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
        if (np.diff(self.cost, axis=1) <= 0).any():
            raise ValueError("cost must increase strictly with the width")
        if not self.allowed.any(axis=1).all():
            raise ValueError("every item needs at least one allowed choice")

    @property
    def weights(self) -> int:
        """Total size in weights: what one bit for every item costs."""
        return int(self.cost[:, 0].sum() // self.choices[0])

    def with_budget(self, budget: int) -> Problem:
        """The same problem under another budget."""
        return replace(self, budget=int(budget))

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
    loss = np.zeros((n, len(problem.choices)))
    cost = np.zeros((n, len(problem.choices)), dtype=np.int64)
    blocked = np.zeros((n, len(problem.choices)), dtype=np.int64)
    np.add.at(loss, group, problem.loss)
    np.add.at(cost, group, problem.cost)
    np.add.at(blocked, group, ~problem.allowed)
    first = {int(g): i for i, g in reversed(list(enumerate(group)))}
    names = tuple(problem.names[first[g]] for g in range(n))
    allowed = blocked == 0
    if not allowed.any(axis=1).all():
        name = names[int(np.flatnonzero(~allowed.any(axis=1))[0])]
        raise BitwrightError(f"the items tied to {name} allow no common width; loosen their bounds")
    whole = Problem(names, problem.choices, loss, cost, problem.budget, allowed, np.arange(n))
    return whole, group


def feasible_range(problem: Problem) -> tuple[int, int]:
    """The least and the largest total cost any plan can have, in bits."""
    whole, _ = merged(problem)
    far = np.iinfo(np.int64).max
    least = np.where(whole.allowed, whole.cost, far).min(axis=1)
    most = np.where(whole.allowed, whole.cost, 0).max(axis=1)
    return int(least.sum()), int(most.sum())


def require_feasible(problem: Problem) -> None:
    """Refuse a budget that nothing fits.

    Raises:
        BitwrightError: names the budget and the feasible range.
    """
    least, most = feasible_range(problem)
    if problem.budget < least:
        weights = max(problem.weights, 1)
        raise BitwrightError(
            f"a budget of {problem.budget:,} bits ({problem.budget / weights:.3f} a weight) is "
            f"below the feasible range of {least:,} to {most:,} bits "
            f"({least / weights:.3f} to {most / weights:.3f} a weight); raise the budget"
        )
