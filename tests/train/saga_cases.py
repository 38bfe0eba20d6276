"""What the tests of SAGA share: small data, every sampling, every regularizer."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import sparse

from bitwright.train.saga import (
    Penalty,
    Problem,
    importance,
    independent,
    nice,
    partition,
    singles,
    uniform,
    user_sets,
)
from bitwright.train.saga.samplings import Sampling

PENALTIES = {
    "none": Penalty(),
    "l2": Penalty(l2=0.1),
    "l1": Penalty(l1=0.03),
    "elastic net": Penalty(l1=0.03, l2=0.1),
    "box": Penalty(lower=-0.1, upper=0.2),
    "box away from 0": Penalty(lower=0.1, upper=0.3),
    "all": Penalty(l1=0.02, l2=0.05, lower=-0.1, upper=0.2),
}


def made(
    n: int = 30, d: int = 5, loss: str = "squared", seed: int = 0, spread: float = 4.0, **more
) -> Problem:
    """Rows of unlike length, a third of their entries 0."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((n, d)) * rng.uniform(1, spread, (n, 1)) / spread
    rows[rng.random((n, d)) < 1 / 3] = 0
    z = rows @ rng.standard_normal(d) + 0.3 * rng.standard_normal(n)
    y = z if loss == "squared" else rng.uniform(0, 1, n).round(rng.integers(2))
    return Problem(rows, y, loss, **more)


def as_sparse(problem: Problem) -> Problem:
    return Problem(
        sparse.csr_array(problem.features), problem.targets, problem.loss, problem.penalty,
        problem.weights, problem.intercept,
    )  # fmt: skip


def _user(problem: Problem) -> Sampling:
    """Overlapping sets of unlike sizes with θ that is not 1/p: unbiased all the same."""
    n = problem.n
    sets = [np.arange(0, n, 2), np.arange(1, n, 2), np.arange(n // 2), np.arange(n // 3, n)]
    p = np.array([0.3, 0.25, 0.25, 0.2])
    rng = np.random.default_rng(5)
    theta = [rng.uniform(0.5, 2, len(s)) for s in sets]
    total = np.zeros(n)
    for s, t, q in zip(sets, theta, p, strict=True):
        total[s] += q * t
    return user_sets(n, sets, p, [t / total[s] for s, t in zip(sets, theta, strict=True)])


SAMPLINGS: dict[str, Callable[[Problem], Sampling]] = {
    "uniform": lambda problem: uniform(problem.n),
    "importance": importance,
    "singles": lambda problem: singles(np.arange(1.0, problem.n + 1) / sum(range(problem.n + 1))),
    "nice": lambda problem: nice(problem.n, 3),
    "all": lambda problem: nice(problem.n, problem.n),
    "partition": lambda problem: partition(
        np.array_split(np.random.default_rng(1).permutation(problem.n), 3), [0.5, 0.2, 0.3]
    ),
    "independent": lambda problem: independent(np.linspace(0.2, 1, problem.n)),
    "user": _user,
}
