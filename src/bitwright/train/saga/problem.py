"""What SAGA minimizes: `P(x, b) = Σ_i λ_i φ(a_i·x + b, y_i) + ψ(x)` over dense or sparse rows."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from scipy.special import expit, xlogy

from bitwright.errors import BitwrightError
from bitwright.train.saga.penalty import Penalty, Vector

#: γ of each loss: its derivative is 1/γ-Lipschitz
GAMMA = {"squared": 1.0, "logistic": 4.0}


@dataclass(frozen=True, eq=False)
class Problem:
    """A linear model, its data and its regularizer.

    Args:
        features: [n, d] rows a_i, an array or anything sparse (kept as CSR); float64.
        targets: [n] y_i. `logistic`: the probability of the second class, anywhere in [0, 1].
        loss: `squared` (φ = ½ (z − y)²) or `logistic` (φ = log(1 + eᶻ) − y z).
        penalty: ψ; the intercept is not penalized.
        weights: [n] λ_i > 0; 1/n each where None.
        intercept: whether b is free, else 0. It is the last entry of a solution then.

    Raises:
        BitwrightError: an unknown loss, shapes that differ, or values out of range.
    """

    features: Any
    targets: Any
    loss: str = "squared"
    penalty: Penalty = field(default_factory=Penalty)
    weights: Any = None
    intercept: bool = False

    def __post_init__(self) -> None:
        if self.loss not in GAMMA:
            raise BitwrightError(f"no loss {self.loss!r}; give one of {', '.join(GAMMA)}")
        rows = _rows(self.features)
        n = rows.shape[0]
        y = _vector("targets", self.targets, n)
        given = np.full(n, 1 / n) if self.weights is None else self.weights
        weights = _vector("weights", given, n)
        if (weights <= 0).any():
            raise BitwrightError("every weight must be above 0; leave rows without weight out")
        if self.loss == "logistic" and ((y < 0) | (y > 1)).any():
            raise BitwrightError(
                f"logistic targets are probabilities in [0, 1], got {y.min()} to {y.max()}"
            )
        for name, value in (("features", rows), ("targets", y), ("weights", weights)):
            object.__setattr__(self, name, value)

    @property
    def n(self) -> int:
        """Rows."""
        return int(self.features.shape[0])

    @property
    def size(self) -> int:
        """Entries of a solution: columns, and the intercept."""
        return int(self.features.shape[1]) + self.intercept

    @property
    def gamma(self) -> float:
        """γ: φ' is 1/γ-Lipschitz."""
        return GAMMA[self.loss]

    @property
    def sparse(self) -> bool:
        """Whether rows are CSR."""
        return bool(sparse.issparse(self.features))

    @cached_property
    def squared_norms(self) -> Vector:
        """‖a_i‖² with the intercept's 1, [n]."""
        if self.sparse:
            squares = self.features.copy()
            squares.data **= 2
            found = squares @ np.ones(squares.shape[1])
        else:
            found = np.einsum("ij,ij->i", self.features, self.features)
        return np.asarray(found + self.intercept, dtype=np.float64)

    @cached_property
    def top_eigenvalue(self) -> float:
        """σ = λ_max(Σ λ_i a_i a_iᵀ), the intercept's column included: an upper bound to 1e-6."""
        scaled = np.sqrt(self.weights)
        if min(self.n, self.size) <= 300:
            rows = self.dense() * scaled[:, None]
            gram = rows.T @ rows if self.size <= self.n else rows @ rows.T
            return float(np.linalg.eigvalsh(gram)[-1])
        operator = sparse.linalg.LinearOperator(
            (self.size, self.size), matvec=lambda v: self.adjoint(self.forward(v)), dtype=float
        )
        start = np.random.default_rng(0).standard_normal(self.size)
        value = sparse.linalg.eigsh(operator, 1, v0=start, tol=1e-8, return_eigenvectors=False)
        return float(value[0]) * (1 + 1e-6)

    def dense(self) -> Vector:
        """Rows as an array, with the intercept's column of ones."""
        rows = self.features.toarray() if self.sparse else self.features
        return np.hstack([rows, np.ones((self.n, 1))]) if self.intercept else rows

    def forward(self, x: Vector) -> Vector:
        """`z_i = a_i·x + b`, [n]."""
        d = self.features.shape[1]
        z = self.features @ x[:d]
        return np.asarray(z + x[d] if self.intercept else z)

    def adjoint(self, u: Vector) -> Vector:
        """`Σ λ_i u_i a_i`, the intercept's entry last."""
        weighted = self.weights * u
        found = self.features.T @ weighted
        return np.append(found, weighted.sum()) if self.intercept else np.asarray(found)

    def derivatives(self, z: Vector) -> Vector:
        """φ'(z_i, y_i), [n]."""
        return np.asarray((expit(z) if self.loss == "logistic" else z) - self.targets)

    def losses(self, z: Vector) -> Vector:
        """φ(z_i, y_i), [n]."""
        if self.loss == "logistic":
            return np.asarray(np.logaddexp(0, z) - self.targets * z)
        return np.asarray(0.5 * (z - self.targets) ** 2)

    def conjugates(self, u: Vector) -> Vector:
        """φ*(u_i, y_i), [n]; u within the range of φ'."""
        if self.loss == "logistic":
            s = np.clip(u + self.targets, 0, 1)
            return np.asarray(xlogy(s, s) + xlogy(1 - s, 1 - s))
        return np.asarray(0.5 * u**2 + u * self.targets)

    def split(self, x: Vector) -> tuple[Vector, Vector]:
        """The penalized entries and the intercept (empty where there is none)."""
        d = self.features.shape[1]
        return x[:d], x[d:]

    def value(self, x: Vector) -> float:
        """P(x)."""
        return float(self.weights @ self.losses(self.forward(x))) + self.penalty.value(
            self.split(x)[0]
        )

    def prox(self, v: Vector, step: float) -> Vector:
        """prox of ψ; the intercept stays."""
        w, b = self.split(v)
        return np.concatenate([self.penalty.prox(w, step), b])

    def gradient_map(self, x: Vector, gradient: Vector, step: float) -> float:
        """`‖x − prox(x − step ∇f(x))‖ / step`: 0 at a minimizer only."""
        return float(np.linalg.norm(x - self.prox(x - step * gradient, step)) / step)

    def gap(self, x: Vector, u: Vector) -> float:
        """P(x) minus the dual value at s u, u [n] the derivatives, s in (0, 1] as feasible.

        `Σ λ_i (φ(z_i) + φ*(s u_i)) + ψ(x) + ψ*(−Σ λ_i s u_i a_i)`. Infinite where no s > 0 gives a
        dual point: no penalty at all, or an intercept whose `Σ λ_i u_i` is not 0.
        """
        slope, rest = self.split(-self.adjoint(u))
        if rest.size and abs(rest[0]) > 0:
            return math.inf
        scale, penalty = 1.0, self.penalty
        unbounded = not penalty.l2 and not (
            math.isfinite(penalty.lower) and math.isfinite(penalty.upper)
        )
        if unbounded and (top := float(np.abs(slope).max(initial=0))) > penalty.l1:
            if not penalty.l1:
                return math.inf
            scale = penalty.l1 / top * (1 - 1e-15)
        z = self.forward(x)
        # z·u and −s slope·x cancel exactly: taken off both, what remains is small at the optimum
        loss = self.losses(z) + self.conjugates(scale * u) - scale * u * z
        w = self.split(x)[0]
        rest_gap = penalty.value(w) + penalty.conjugate(scale * slope) - scale * float(slope @ w)
        return max(float(self.weights @ loss) + rest_gap, 0.0)


def _rows(features: Any) -> Any:
    rows: Any = features
    if sparse.issparse(features):
        rows = rows.tocsr()
        if not rows.has_canonical_format:
            rows = rows.copy()
            rows.sum_duplicates()
        small = max(rows.nnz, *rows.shape) < 2**31  # half the memory to read
        index = np.int32 if small else np.int64
        parts = rows.data.astype(np.float64, copy=False), rows.indices.astype(index, copy=False)
        indptr = rows.indptr.astype(index, copy=False)
        rows = sparse.csr_array((*parts, indptr), shape=rows.shape)
        values = rows.data
    else:
        rows = np.ascontiguousarray(features, dtype=np.float64)
        values = rows
    if rows.ndim != 2 or not rows.shape[0]:
        raise BitwrightError(f"features must be [n, d] with n > 0, got {rows.shape}")
    if not np.isfinite(values).all():
        raise BitwrightError("features hold values that are not finite")
    return rows


def _vector(name: str, values: ArrayLike, n: int) -> NDArray[np.float64]:
    found = np.ascontiguousarray(values, dtype=np.float64)
    if found.shape != (n,):
        raise BitwrightError(f"{name} have shape {found.shape}, but there are {n} rows")
    if not np.isfinite(found).all():
        raise BitwrightError(f"{name} hold values that are not finite")
    return found
