"""What SAGA minimizes: `P(x, b) = Σ_i λ_i φ(a_i·x + b + o_i, y_i) + ψ(x)`, rows dense or sparse."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from scipy.special import expit, logsumexp, softmax, xlogy

from bitwright.errors import BitwrightError
from bitwright.train.saga.penalty import Penalty, Vector

#: γ of each loss: its derivative is 1/γ-Lipschitz; λ_max(diag p − p pᵀ) <= ½ for `multinomial`
GAMMA = {"squared": 1.0, "logistic": 4.0, "multinomial": 2.0}


@dataclass(frozen=True, eq=False)
class Problem:
    """A linear model, its data and its regularizer.

    Args:
        features: [n, d] rows a_i, an array or anything sparse (kept as CSR); float64. `multinomial`
            also takes [n, d, k]: rows of their own for every output.
        targets: [n] y_i. `logistic`: the probability of the second class, anywhere in [0, 1].
            `multinomial`: [n, k] probabilities of k classes; x is a matrix then, a column a class.
        loss: `squared` (φ = ½ (z − y)²), `logistic` (φ = log(1 + eᶻ) − y z) or `multinomial`
            (φ = log Σ_c exp(z_c) − y·z).
        penalty: ψ; the intercept is not penalized.
        weights: [n] λ_i > 0; 1/n each where None.
        intercept: whether b is free, else 0. It is the last entry (or row) of a solution then.
        offsets: o, shaped as the targets: what is known of z beforehand; 0 where None.

    Raises:
        BitwrightError: an unknown loss, shapes that differ, or values out of range.
    """

    features: Any
    targets: Any
    loss: str = "squared"
    penalty: Penalty = field(default_factory=Penalty)
    weights: Any = None
    intercept: bool = False
    offsets: Any = None

    def __post_init__(self) -> None:
        if self.loss not in GAMMA:
            raise BitwrightError(f"no loss {self.loss!r}; give one of {', '.join(GAMMA)}")
        many = self.loss == "multinomial"
        rows = _rows(self.features, many)
        n = rows.shape[0]
        y = _numbers("targets", self.targets, (n, _classes(self.targets)) if many else (n,))
        if rows.ndim == 3 and rows.shape[2] != y.shape[1]:
            raise BitwrightError(
                f"features are of {rows.shape[2]} outputs, targets of {y.shape[1]}"
            )
        weights = np.full(n, 1 / n) if self.weights is None else self.weights
        weights = _numbers("weights", weights, (n,))
        if (weights <= 0).any():
            raise BitwrightError("every weight must be above 0; leave rows without weight out")
        if self.loss != "squared" and ((y < 0) | (y > 1)).any():
            raise BitwrightError(
                f"{self.loss} targets are probabilities in [0, 1], got {y.min()} to {y.max()}"
            )
        if many and (worst := float(abs(y.sum(1) - 1).max())) > 1e-6:
            raise BitwrightError(f"a row's probabilities must sum to 1; one is {worst:.2g} off")
        offsets = np.zeros(y.shape) if self.offsets is None else self.offsets
        offsets = _numbers("offsets", offsets, y.shape)
        for name, value in (
            ("features", rows), ("targets", y), ("weights", weights), ("offsets", offsets),
        ):  # fmt: skip
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
    def shape(self) -> tuple[int, ...]:
        """Of a solution: (size,), or (size, k) for k classes."""
        return (self.size, *self.targets.shape[1:])

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
        """‖a_i‖² with the intercept's 1, [n]; the largest of the outputs' where these differ."""
        if self.sparse:
            squares = self.features.copy()
            squares.data **= 2
            found = squares @ np.ones(squares.shape[1])
        elif self.features.ndim == 3:
            found = (self.features**2).sum(1).max(1)
        else:
            found = np.einsum("ij,ij->i", self.features, self.features)
        return np.asarray(found + self.intercept, dtype=np.float64)

    @cached_property
    def top_eigenvalue(self) -> float:
        """σ = λ_max(Σ λ_i a_i a_iᵀ), the intercept's column included: an upper bound to 1e-6."""
        if self.features.ndim == 3:
            return max(one.top_eigenvalue for one in self.each_output())
        scaled = np.sqrt(self.weights)
        if min(self.n, self.size) <= 300:
            rows = self.dense() * scaled[:, None]
            gram = rows.T @ rows if self.size <= self.n else rows @ rows.T
            return float(np.linalg.eigvalsh(gram)[-1])
        operator = sparse.linalg.LinearOperator(
            (self.size, self.size), matvec=lambda v: self.adjoint(self._linear(v)), dtype=float
        )
        start = np.random.default_rng(0).standard_normal(self.size)
        value = sparse.linalg.eigsh(operator, 1, v0=start, tol=1e-8, return_eigenvectors=False)
        return float(value[0]) * (1 + 1e-6)

    def each_output(self) -> Iterator[Problem]:
        """Least squares on the rows of one output after another, where each has its own."""
        for c in range(self.features.shape[2]):
            yield Problem(
                self.features[:, :, c], self.targets[:, c], "squared", self.penalty, self.weights,
                self.intercept,
            )  # fmt: skip

    def dense(self) -> Vector:
        """Rows as an array, with the intercept's column of ones."""
        rows = self.features.toarray() if self.sparse else self.features
        return np.hstack([rows, np.ones((self.n, 1))]) if self.intercept else rows

    def forward(self, x: Vector) -> Vector:
        """`z_i = a_i·x + b + o_i`, [n] or [n, k]."""
        return self._linear(x) + self.offsets

    def _linear(self, x: Vector) -> Vector:
        w, b = self.split(x)
        own = self.features.ndim == 3
        z = np.einsum("ijc,jc->ic", self.features, w) if own else self.features @ w
        return np.asarray(z + b[0] if self.intercept else z)

    def adjoint(self, u: Vector) -> Vector:
        """`Σ λ_i u_i a_i`, the intercept's entry last."""
        weighted = (self.weights * u.T).T
        if self.features.ndim == 3:
            found = np.einsum("ijc,ic->jc", self.features, weighted)
        else:
            found = np.asarray(self.features.T @ weighted)
        return np.concatenate([found, weighted.sum(0)[None]]) if self.intercept else found

    def derivatives(self, z: Vector) -> Vector:
        """φ'(z_i, y_i), as the targets."""
        if self.loss == "multinomial":
            return np.asarray(softmax(z, axis=1) - self.targets)
        return np.asarray((expit(z) if self.loss == "logistic" else z) - self.targets)

    def losses(self, z: Vector) -> Vector:
        """φ(z_i, y_i), [n]."""
        if self.loss == "multinomial":
            return np.asarray(logsumexp(z, axis=1) - (self.targets * z).sum(1))
        if self.loss == "logistic":
            return np.asarray(np.logaddexp(0, z) - self.targets * z)
        return np.asarray(0.5 * (z - self.targets) ** 2)

    def conjugates(self, u: Vector) -> Vector:
        """φ*(u_i, y_i), [n]; u within the range of φ'."""
        if self.loss == "squared":
            return np.asarray(0.5 * u**2 + u * self.targets)
        s = np.clip(u + self.targets, 0, 1)
        if self.loss == "multinomial":
            return np.asarray(xlogy(s, s).sum(1))
        return np.asarray(xlogy(s, s) + xlogy(1 - s, 1 - s))

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
        if rest.any():
            return math.inf
        scale, penalty = 1.0, self.penalty
        unbounded = not penalty.l2 and not (
            math.isfinite(penalty.lower) and math.isfinite(penalty.upper)
        )
        if unbounded and (top := float(np.abs(slope).max(initial=0))) > penalty.l1:
            if not penalty.l1:
                return math.inf
            scale = penalty.l1 / top * (1 - 1e-15)
        z = self.forward(x)  # o is in φ and, as −o·u, in φ*: it cancels
        # z·u and −s slope·x cancel exactly: taken off both, what remains is small at the optimum
        products = (u * z).reshape(self.n, -1).sum(1)
        loss = self.losses(z) + self.conjugates(scale * u) - scale * products
        w = self.split(x)[0]
        rest_gap = penalty.value(w) + penalty.conjugate(scale * slope)
        rest_gap -= scale * float(np.vdot(slope, w))
        return max(float(self.weights @ loss) + rest_gap, 0.0)


def _rows(features: Any, own: bool) -> Any:
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
    if rows.ndim not in ((2, 3) if own else (2,)) or not rows.shape[0]:
        raise BitwrightError(f"features must be [n, d] with n > 0, got {rows.shape}")
    if not np.isfinite(values).all():
        raise BitwrightError("features hold values that are not finite")
    return rows


def _classes(targets: ArrayLike) -> int:
    shape = np.shape(targets)
    if len(shape) != 2 or shape[1] < 2:
        raise BitwrightError(f"multinomial targets are [n, k >= 2] probabilities, got {shape}")
    return int(shape[1])


def _numbers(name: str, values: ArrayLike, shape: tuple[int, ...]) -> NDArray[np.float64]:
    found = np.ascontiguousarray(values, dtype=np.float64)
    if found.shape != shape:
        raise BitwrightError(
            f"{name} have shape {found.shape}, not {shape}: there are {shape[0]} rows"
        )
    if not np.isfinite(found).all():
        raise BitwrightError(f"{name} hold values that are not finite")
    return found
