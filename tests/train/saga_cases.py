"""What the tests of SAGA share: small data, every sampling, every regularizer."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import sparse
from scipy.special import expit, softmax

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


#: classes of multinomial problems
CLASSES = 3


def made(
    n: int = 30, d: int = 5, loss: str = "squared", seed: int = 0, spread: float = 4.0,
    own: bool = False, **more,
) -> Problem:  # fmt: skip
    """Rows of unlike length, a third of their entries 0; `own`: others for every class."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((n, d)) * rng.uniform(1, spread, (n, 1)) / spread
    rows[rng.random((n, d)) < 1 / 3] = 0
    z = rows @ rng.standard_normal(d) + 0.3 * rng.standard_normal(n)
    y = z if loss == "squared" else rng.uniform(0, 1, n).round(rng.integers(2))
    if loss == "multinomial":
        y = softmax(3 * rng.standard_normal((n, CLASSES)), 1)
        y[: n // 2] = np.eye(CLASSES)[y[: n // 2].argmax(1)]
    if own:
        rows = rows[:, :, None] * rng.uniform(0.5, 1.5, CLASSES)
    return Problem(rows, y, loss, **more)


def as_sparse(problem: Problem) -> Problem:
    return Problem(
        sparse.csr_array(problem.features), problem.targets, problem.loss, problem.penalty,
        problem.weights, problem.intercept, problem.offsets,
    )  # fmt: skip


def newton(problem: Problem) -> np.ndarray:
    """The minimizer with ψ none or L2, by Newton's method on dense matrices."""
    k = problem.targets.shape[1] if problem.loss == "multinomial" else 1
    rows = problem.features.toarray() if problem.sparse else problem.features
    a = rows if rows.ndim == 3 else np.repeat(rows[:, :, None], k, 2)
    if problem.intercept:
        a = np.concatenate([a, np.ones((problem.n, 1, k))], 1)
    x, y = np.zeros(a.shape[1:]), problem.targets.reshape(problem.n, k)
    offsets = problem.offsets.reshape(problem.n, k)
    ridge = np.full(a.shape[1], problem.penalty.l2)
    ridge[rows.shape[1] :] = 0
    for _ in range(60):
        z = np.einsum("ijc,jc->ic", a, x) + offsets
        if problem.loss == "multinomial":
            p = softmax(z, 1)
            first, second = p - y, p[:, :, None] * (np.eye(k) - p[:, None])
        elif problem.loss == "logistic":
            first, second = expit(z) - y, (expit(z) * expit(-z))[:, :, None]
        else:
            first, second = z - y, np.ones((problem.n, 1, 1))
        gradient = np.einsum("i,ijc,ic->jc", problem.weights, a, first) + ridge[:, None] * x
        hessian = np.einsum("i,ijc,ice,ile->jcle", problem.weights, a, second, a)
        hessian = hessian.reshape(x.size, x.size) + np.diag(np.repeat(ridge, k))
        # of classes, one shift of all biases changes nothing: the least solution
        x = x - np.linalg.lstsq(hessian, gradient.ravel(), rcond=1e-12)[0].reshape(x.shape)
    return x.reshape(problem.shape)


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
