"""Which rows a step of SAGA sees: proper samplings with their bias-correcting vectors.

A sampling is a law of random sets S ⊆ {0 … n−1} in which every row can appear, and a vector θ_C for
every set C of it with `Σ_{C ∋ i} p_C θ_C^i = 1`: then `Σ_{i∈S} θ_S^i v_i` is `Σ v_i` in the mean
(Qian, Qu, Richtárik, arXiv 1901.08669). Unless given, `θ_C^i = 1/p_i` with p_i = P(i ∈ S).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bitwright.train.saga.penalty import Vector

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
