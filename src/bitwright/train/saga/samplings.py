"""Which rows a step of SAGA sees: proper samplings with their bias-correcting vectors.

A sampling is a law of random sets S ⊆ {0 … n−1} in which every row can appear, and a vector θ_C for
every set C of it with `Σ_{C ∋ i} p_C θ_C^i = 1`: then `Σ_{i∈S} θ_S^i v_i` is `Σ v_i` in the mean
(Qian, Qu, Richtárik, arXiv 1901.08669). Unless given, `θ_C^i = 1/p_i` with p_i = P(i ∈ S).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bitwright.errors import BitwrightError
from bitwright.train.saga.penalty import Vector
from bitwright.train.saga.problem import Problem

Indices = NDArray[np.int64]


class Draw(NamedTuple):
    """The sets of some steps: step t's are `members[starts[t]:starts[t + 1]]`, and their θ."""

    starts: Indices
    members: Indices
    theta: Vector


@dataclass(frozen=True, eq=False)
class Singles:
    """One row a step, with probabilities p. Draws by Walker's aliases."""

    p: Vector

    @property
    def mean_size(self) -> float:
        """E|S|."""
        return 1.0

    @cached_property
    def _alias(self) -> tuple[Vector, Indices]:
        """Per cell: below which fraction it is itself, and which row it is otherwise."""
        from bitwright.train.saga import kernels

        share, other = kernels.aliases(self.p)
        return share, other

    def draw(self, rng: np.random.Generator, steps: int) -> Draw:
        """Sets for so many steps."""
        members = rng.integers(len(self.p), size=steps)
        if self.p.min() < self.p.max():
            share, other = self._alias
            members = np.where(rng.random(steps) < share[members], members, other[members])
        return Draw(np.arange(steps + 1), members, 1 / self.p[members])

    def sets(self) -> Iterator[tuple[float, Indices, Vector]]:
        """Every set: its probability, members, θ."""
        for i, p in enumerate(self.p):
            yield float(p), np.array([i]), np.array([1 / p])


@dataclass(frozen=True, eq=False)
class Nice:
    """All sets of `tau` of n rows, equally likely."""

    n: int
    tau: int

    @property
    def p(self) -> Vector:
        """P(i ∈ S), [n]."""
        return np.full(self.n, self.tau / self.n)

    @property
    def mean_size(self) -> float:
        """E|S|."""
        return float(self.tau)

    def draw(self, rng: np.random.Generator, steps: int) -> Draw:
        """Sets for so many steps."""
        from bitwright.train.saga import kernels

        members = kernels.subsets(self.n, self.tau, rng.random((steps, self.tau)))
        starts = np.arange(steps + 1) * self.tau
        return Draw(starts, members.ravel(), np.full(members.size, self.n / self.tau))

    def sets(self) -> Iterator[tuple[float, Indices, Vector]]:
        """Every set: its probability, members, θ."""
        count = math.comb(self.n, self.tau)
        for members in itertools.combinations(range(self.n), self.tau):
            yield 1 / count, np.array(members), np.full(self.tau, self.n / self.tau)


@dataclass(frozen=True, eq=False)
class Independent:
    """Row i is in the set with probability p_i whatever the others do; a set may be empty."""

    p: Vector

    @property
    def mean_size(self) -> float:
        """E|S|."""
        return float(self.p.sum())

    def draw(self, rng: np.random.Generator, steps: int) -> Draw:
        """Sets for so many steps: the cells (step, row) are thinned from geometric jumps."""
        n, top = len(self.p), float(self.p.max())
        cells: list[Indices] = []
        at = -1
        while at < steps * n:
            jumps = rng.geometric(top, size=int(steps * n * top) + 16)
            cells.append(at + np.cumsum(jumps))
            at = int(cells[-1][-1])
        hit = np.concatenate(cells)
        hit = hit[hit < steps * n]
        hit = hit[rng.random(len(hit)) * top < self.p[hit % n]]
        starts = np.searchsorted(hit, np.arange(steps + 1) * n)
        return Draw(starts, hit % n, 1 / self.p[hit % n])

    def sets(self) -> Iterator[tuple[float, Indices, Vector]]:
        """Every set: its probability, members, θ."""
        for chosen in itertools.product((False, True), repeat=len(self.p)):
            inside = np.array(chosen)
            members = np.flatnonzero(inside)
            p = float(np.prod(np.where(inside, self.p, 1 - self.p)))
            yield p, members, 1 / self.p[members]


@dataclass(frozen=True, eq=False)
class Sets:
    """A list of sets, their probabilities and bias-correcting vectors, each concatenated."""

    n: int
    starts: Indices
    members: Indices
    theta: Vector
    probabilities: Vector

    @cached_property
    def p(self) -> Vector:
        """P(i ∈ S), [n]."""
        each = np.repeat(self.probabilities, np.diff(self.starts))
        found = np.bincount(self.members, weights=each, minlength=self.n)
        return found.astype(np.float64)

    @property
    def mean_size(self) -> float:
        """E|S|."""
        return float(self.probabilities @ np.diff(self.starts))

    def draw(self, rng: np.random.Generator, steps: int) -> Draw:
        """Sets for so many steps."""
        chosen = rng.choice(len(self.probabilities), size=steps, p=self.probabilities)
        sizes = np.diff(self.starts)[chosen]
        starts = np.concatenate([[0], np.cumsum(sizes)])
        places = np.arange(starts[-1]) + np.repeat(self.starts[chosen] - starts[:-1], sizes)
        return Draw(starts, self.members[places], self.theta[places])

    def sets(self) -> Iterator[tuple[float, Indices, Vector]]:
        """Every set: its probability, members, θ."""
        for k, p in enumerate(self.probabilities):
            part = slice(self.starts[k], self.starts[k + 1])
            yield float(p), self.members[part], self.theta[part]


Sampling = Singles | Nice | Independent | Sets


def uniform(n: int) -> Singles:
    """One row a step, all alike."""
    return Singles(np.full(n, 1 / n))


def importance(problem: Problem, curvature: float = 0.0) -> Singles:
    """One row a step, `p_i ∝ λ_i L_i 2/t + 2 μ_ψ + 2 (1 − t) μ_f`: all rows allow the same step.

    L_i = ‖a_i‖²/γ, μ_ψ = l2, μ_f = `curvature`; t as :func:`bitwright.train.saga.step_size` has it
    (docs/decisions/0015-saga.md).
    """
    from bitwright.train.saga.constants import share_of_coercivity

    strong = 0.0 if problem.intercept else problem.penalty.l2
    t = share_of_coercivity(strong, curvature)
    wanted = 2 / t * problem.weights * problem.squared_norms / problem.gamma
    wanted = wanted + 2 * strong + 2 * (1 - t) * curvature
    # where f curves more than is known, the table's age rules: short rows are visited all the same
    wanted = np.maximum(wanted, 0.1 * wanted.mean())
    total = wanted.sum()
    return Singles(wanted / total) if total > 0 else uniform(problem.n)


def singles(p: ArrayLike) -> Singles:
    """One row a step, with the probabilities given.

    Raises:
        BitwrightError: they are not positive or do not sum to 1.
    """
    return Singles(_law(p))


def nice(n: int, tau: int) -> Nice:
    """Sets of `tau` rows, all equally likely.

    Raises:
        BitwrightError: tau is not within 1 … n.
    """
    if not 1 <= tau <= n:
        raise BitwrightError(f"sets of {tau} rows of {n}; give 1 to {n}")
    return Nice(n, tau)


def independent(p: ArrayLike) -> Independent:
    """Every row by itself with its own probability.

    Raises:
        BitwrightError: a probability is not within (0, 1].
    """
    found = np.asarray(p, dtype=np.float64)
    if found.ndim != 1 or not ((found > 0) & (found <= 1)).all():
        raise BitwrightError("every row's probability must be above 0 and at most 1")
    return Independent(found)


def partition(blocks: Sequence[ArrayLike], p: ArrayLike | None = None) -> Sets:
    """One of the blocks of a partition of the rows a step; equally likely unless p says otherwise.

    Raises:
        BitwrightError: a row is missing or in two blocks.
    """
    counts = np.bincount(np.concatenate([np.asarray(b, dtype=np.int64) for b in blocks]))
    if (counts != 1).any():
        row = int(np.flatnonzero(counts != 1)[0])
        raise BitwrightError(f"row {row} is in {counts[row]} blocks; a partition has it in one")
    law = np.full(len(blocks), 1 / len(blocks)) if p is None else p
    return user_sets(len(counts), blocks, law)


def user_sets(
    n: int, sets: Sequence[ArrayLike], p: ArrayLike, theta: Sequence[ArrayLike] | None = None
) -> Sets:
    """Any proper sampling: its sets, their probabilities, and θ beside each set's members.

    Raises:
        BitwrightError: p is no law, a row is in no set, twice in one, or its θ does not correct
            the bias.
    """
    law = _law(p)
    groups = [np.asarray(s, dtype=np.int64) for s in sets]
    if len(groups) != len(law):
        raise BitwrightError(f"{len(groups)} sets but {len(law)} probabilities")
    members = np.concatenate(groups)
    if len(members) and not 0 <= members.min() <= members.max() < n:
        raise BitwrightError(f"sets hold rows {members.min()} to {members.max()} of {n}")
    if any(len(np.unique(g)) < len(g) for g in groups):
        raise BitwrightError("a set holds a row twice")
    starts = np.concatenate([[0], np.cumsum([len(g) for g in groups])])
    each = np.repeat(law, np.diff(starts))
    inside = np.bincount(members, weights=each, minlength=n)
    if (inside <= 0).any():
        raise BitwrightError(f"row {int(np.argmin(inside))} is in no set: not a proper sampling")
    given = 1 / inside[members] if theta is None else _joined(theta, groups)
    mean = np.bincount(members, weights=each * given, minlength=n)
    if (abs(mean - 1) > 1e-9).any():
        row = int(np.argmax(abs(mean - 1)))
        raise BitwrightError(f"Σ p_C θ_C of row {row} is {mean[row]:.6g}; it must be 1")
    return Sets(n, starts, members, given, law)


def _joined(theta: Sequence[ArrayLike], groups: Sequence[Indices]) -> Vector:
    found = [np.asarray(t, dtype=np.float64) for t in theta]
    if [t.shape for t in found] != [g.shape for g in groups]:
        raise BitwrightError("θ needs one number beside every member of every set")
    return np.concatenate(found)


def _law(p: Any) -> Vector:
    found = np.asarray(p, dtype=np.float64)
    if found.ndim != 1 or not (found > 0).all() or abs(found.sum() - 1) > 1e-9:
        raise BitwrightError(f"probabilities must be positive and sum to 1, got {found.sum():.6g}")
    return found / found.sum()
