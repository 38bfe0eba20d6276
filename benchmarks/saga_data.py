"""Data for the benchmarks of SAGA: problems by name, and their solutions by Newton's method."""

from __future__ import annotations

import gzip
import importlib
import math
import os
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse
from scipy.special import expit
from sklearn.datasets import load_svmlight_file

from bitwright.train.saga import Penalty, Problem, State, start
from bitwright.train.saga.samplings import Sampling

#: the function of the same name hides its package
solver = importlib.import_module("bitwright.train.saga.solver")

#: MNIST rows taken: odd against even digits
MNIST_ROWS = 20_000


def _root() -> Path:
    return Path(os.environ["BITWRIGHT_DATA_ROOT"])


def extra() -> tuple[str, ...]:
    """Another LIBSVM file, if one was given (`--libsvm FILE`)."""
    path = os.environ.get("BITWRIGHT_LIBSVM")
    return (path,) if path else ()


@cache
def rows(name: str) -> tuple[Any, np.ndarray]:
    """Features and targets in {0, 1} of a9a (sparse), german, mnist (both dense), or a file's.

    A file's classes may have any numbers; of more than two, every other one is 1.
    """
    if name in extra():
        x, y = load_svmlight_file(name)
        x = x if x.nnz < 0.3 * x.shape[0] * x.shape[1] else x.toarray()
        return x, (np.unique(y, return_inverse=True)[1] % 2).astype(float)
    if name == "mnist":
        with np.load(_root() / "mnist" / "mnist.npz", allow_pickle=False) as file:
            images, labels = (file[k][:MNIST_ROWS] for k in ("train_images", "train_labels"))
        return images.reshape(len(images), -1) / 255, (labels % 2).astype(float)
    if name == "a9a":
        with gzip.open(_root() / "libsvm" / "a9a.gz") as file:
            x, y = load_svmlight_file(file, n_features=123)
        x = sparse.csr_matrix(
            (x.data, x.indices.astype(np.int32), x.indptr.astype(np.int32)), shape=x.shape
        )
        return x, (y > 0).astype(float)
    x, y = load_svmlight_file(str(_root() / "libsvm" / "german.numer_scale"))
    x = x.toarray()
    if name == "german unscaled":  # duration, amount and age on their ranges before [−1, 1]
        for column, low, high in ((1, 4, 72), (3, 2, 184), (9, 19, 75)):
            x[:, column] = low + (x[:, column] + 1) / 2 * (high - low)
    return x, (y > 0).astype(float)


def spread(name: str, quick: bool) -> tuple[Any, np.ndarray]:
    """Rows that are unlike: `german unscaled`, `a9a rescaled`, `synthetic`, else isotropic."""
    rng = np.random.default_rng(0)
    if name in ("german unscaled", *extra()):
        return rows(name)
    if name == "a9a rescaled":
        x, y = rows("a9a")
        return sparse.diags(rng.lognormal(0, 1, len(y))) @ x, y
    n, d = (500, 10) if quick else (2000, 20)
    x = rng.standard_normal((n, d))
    if name == "synthetic":  # some directions hardly curve; in "isotropic" all do
        x *= np.geomspace(1, 1e-2, d)
    x *= (np.sqrt(10.0 ** rng.uniform(0, 3, n)) / np.linalg.norm(x, axis=1))[:, None]
    return x, (rng.random(n) < expit(x @ rng.standard_normal(d))).astype(float)


def problem(
    data: tuple[Any, np.ndarray], loss: str = "logistic", l2: float | None = None
) -> Problem:
    """Mean loss and `½ l2 ‖x‖²`, 1/n unless given."""
    x, y = data
    return Problem(x, y, loss, Penalty(l2=1 / len(y) if l2 is None else l2))


def newton(p: Problem) -> np.ndarray:
    """The minimizer, by Newton's method with halved steps on dense matrices."""
    a, x = p.features, np.zeros(p.size)
    for _ in range(60):
        z = a @ x
        second = np.ones(p.n) if p.loss == "squared" else expit(z) * expit(-z)
        weighted = (
            sparse.diags(p.weights * second) @ a if p.sparse else a * (p.weights * second)[:, None]
        )
        hessian = a.T @ weighted
        hessian = (hessian.toarray() if p.sparse else hessian) + p.penalty.l2 * np.eye(p.size)
        gradient = p.adjoint(p.derivatives(z)) + p.penalty.l2 * x
        direction = np.linalg.solve(hessian, gradient)
        step = 1.0
        while p.value(x - step * direction) > p.value(x) + 1e-15 and step > 1e-4:
            step /= 2
        x = x - step * direction
        if np.linalg.norm(direction) < 1e-14 * max(1.0, float(np.linalg.norm(x))):
            break
    return x


def passes(p: Problem, law: Sampling, best: float, target: float, **more: Any) -> float:
    """Passes until the suboptimality is `target` of the one at 0.

    It is looked at once a pass and taken to fall by a constant factor within one.
    """
    goal = math.log(target * (p.value(np.zeros(p.size)) - best))
    seen: list[tuple[float, float]] = []

    class Done(Exception):
        pass

    def look(state: State) -> None:
        seen.append((state.passes - 1, math.log(max(p.value(state.x) - best, 1e-300))))
        if seen[-1][1] <= goal:
            raise Done

    kept, solver.BLOCK_ROWS = solver.BLOCK_ROWS, 1
    try:
        look(start(p))
        solver.saga(p, law, tolerance=-1, max_passes=20_000, progress=look, **more)
    except Done:
        (before, above), (after, below) = seen[-2:]
        below = max(below, math.log(1e-16))
        return before + (after - before) * min((above - goal) / (above - below), 1.0)
    finally:
        solver.BLOCK_ROWS = kept
    return math.inf
