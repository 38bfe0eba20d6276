"""SAGA behind scikit-learn's interface: a classifier and a regressor."""

from __future__ import annotations

import warnings
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike
from scipy import sparse
from scipy.special import log_expit, log_softmax
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from bitwright.errors import BitwrightError
from bitwright.train.saga.constants import curvature
from bitwright.train.saga.penalty import Penalty, Vector
from bitwright.train.saga.problem import Problem
from bitwright.train.saga.proper import importance, nice, uniform
from bitwright.train.saga.samplings import Sampling
from bitwright.train.saga.solver import saga

#: up to so many columns the curvature of a squared loss is computed, n d² of work
_CURVATURE_COLUMNS = 200
#: sparse rows of so many entries at most are made dense, to be centred
_DENSE_ENTRIES = 1_000_000


class _Linear(BaseEstimator):
    """What both share: `mean_i φ(a_i·w + b, y_i) + l1 ‖w‖₁ + ½ l2 ‖w‖²` over weighted rows."""

    coef_: Any
    intercept_: Any

    def __init__(
        self,
        *,
        l1: float = 0.0,
        l2: float = 1e-2,
        lower: float = -np.inf,
        upper: float = np.inf,
        fit_intercept: bool = True,
        sampling: str | int = "importance",
        tol: float = 1e-8,
        max_passes: float = 5000,
        warm_start: bool = False,
        random_state: Any = None,
    ) -> None:
        self.l1 = l1
        self.l2 = l2
        self.lower = lower
        self.upper = upper
        self.fit_intercept = fit_intercept
        self.sampling = sampling
        self.tol = tol
        self.max_passes = max_passes
        self.warm_start = warm_start
        self.random_state = random_state

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags

    def _law(self, problem: Problem, growth: float) -> Sampling:
        if self.sampling == "importance":
            return importance(problem, growth)
        if self.sampling == "uniform":
            return uniform(problem.n)
        if isinstance(self.sampling, int):
            return nice(problem.n, min(self.sampling, problem.n))
        raise BitwrightError(
            f"no sampling {self.sampling!r}; give importance, uniform or a number of rows"
        )

    def _read(
        self, X: Any, y: ArrayLike, sample_weight: ArrayLike | None, **how: Any
    ) -> tuple[Any, Any, Vector]:
        """Rows, targets and weights as scikit-learn's rules have them."""
        rows, target = validate_data(self, X, y, accept_sparse="csr", dtype=np.float64, **how)
        weights = _check_sample_weight(
            sample_weight, rows, dtype=np.float64, ensure_non_negative=True
        )
        return rows, target, weights

    def _answers(self, X: Any) -> Any:
        """`X w + b`, a column for every class."""
        check_is_fitted(self)
        rows = validate_data(self, X, accept_sparse="csr", dtype=np.float64, reset=False)
        return np.asarray(rows @ self.coef_.T + self.intercept_)

    def _solve(self, rows: Any, y: Vector, loss: str, weights: Vector) -> tuple[Vector, Vector]:
        """Weights and intercept (0 without one) of what minimizes, `n_iter_` set to its passes.

        Begins at those of before for a warm start, if they have the same shape.
        """
        kept = weights > 0
        if not kept.any():
            raise BitwrightError("every row's weight is 0; give at least one row a weight")
        rows, y, weights = rows[kept], y[kept], weights[kept] / weights[kept].sum()
        # b is free, so that rows may be centred: b + mean·w takes its place, far better conditioned
        mean = np.zeros(rows.shape[1])
        if self.fit_intercept and (dense := _as_dense(rows)) is not None:
            mean = weights @ dense
            rows = dense - mean
        penalty = Penalty(self.l1, self.l2, self.lower, self.upper)
        problem = Problem(rows, y, loss, penalty, weights, self.fit_intercept)
        narrow = loss == "squared" and problem.size <= _CURVATURE_COLUMNS
        growth = curvature(problem) if narrow else 0.0
        # relative to the gradient at 0, so that the units of y do not matter
        slope = problem.adjoint(problem.derivatives(problem.forward(np.zeros(problem.shape))))
        scale = float(np.linalg.norm(slope)) or 1.0
        found = saga(
            problem, self._law(problem, growth), tolerance=self.tol * scale, stop="gradient",
            max_passes=self.max_passes, curvature=growth, start_from=self._begin(problem, mean),
            seed=int(check_random_state(self.random_state).randint(2**31 - 1)),
        )  # fmt: skip
        if not found.converged:
            warnings.warn(
                f"gradient map {found.gradient_map:.2g} after {found.state.passes:.0f} passes, "
                f"above {self.tol * scale:.2g}: raise max_passes, or scale the features",
                ConvergenceWarning,
                stacklevel=3,
            )
        self.n_iter_ = np.array([int(np.ceil(found.state.passes))])
        w, b = problem.split(found.x)
        return w, (b[0] if self.fit_intercept else np.zeros(problem.shape[1:])) - mean @ w

    def _begin(self, problem: Problem, mean: Vector) -> Vector | None:
        """The solution of before, for rows that `mean` was taken off; None where there is none."""
        if not self.warm_start or not hasattr(self, "coef_"):
            return None
        w = self.coef_.T.reshape(-1, *problem.shape[1:])
        b = np.asarray(self.intercept_).reshape(problem.shape[1:]) + mean @ w
        x = np.concatenate([w, b[None]]) if self.fit_intercept else w
        return x if x.shape == problem.shape else None


def _as_dense(rows: Any) -> Any:
    """Rows as an array; None where they are sparse and many."""
    if not sparse.issparse(rows):
        return rows
    return rows.toarray() if rows.shape[0] * rows.shape[1] <= _DENSE_ENTRIES else None  # type: ignore[attr-defined]


class SagaRegressor(RegressorMixin, _Linear):
    """Least squares with L1, L2 and box, by SAGA.

    Minimizes `mean ½ (a_i·w + b − y_i)² + l1 ‖w‖₁ + ½ l2 ‖w‖²` over `lower <= w <= upper`.

    Args:
        l1, l2, lower, upper: of the regularizer; the intercept has none.
        fit_intercept: whether b is free.
        sampling: `importance`, `uniform`, or the number of rows in a set.
        tol: of the gradient map's norm, relative to the gradient at 0.
        max_passes: over the rows, at most.
        warm_start: whether a second fit begins at the first one's solution.
        random_state: of the rows drawn.

    Attributes:
        coef_: [d]. intercept_: b. n_iter_: [1] passes.
    """

    coef_: Vector
    intercept_: float

    def fit(self, X: Any, y: ArrayLike, sample_weight: ArrayLike | None = None) -> Self:
        """Fit; rows of weight 0 are as if they were not there."""
        rows, target, weights = self._read(X, y, sample_weight, y_numeric=True)
        w, b = self._solve(rows, np.asarray(target, np.float64), "squared", weights)
        self.coef_, self.intercept_ = w, float(b)
        return self

    def predict(self, X: Any) -> Vector:
        """`X w + b`."""
        found: Vector = self._answers(X)
        return found


class SagaClassifier(ClassifierMixin, _Linear):
    """Logistic regression with L1, L2 and box, by SAGA; multinomial for more than two classes.

    Minimizes `mean log(1 + exp(z_i)) − y_i z_i + l1 ‖w‖₁ + ½ l2 ‖w‖²`, `z_i = a_i·w + b`, of two
    classes; `mean log Σ_c exp(z_ic) − z_iy + …` with a column of w and a b for each of more.

    Args:
        l1, l2, lower, upper: of the regularizer; the intercept has none.
        fit_intercept: whether b is free.
        sampling: `importance`, `uniform`, or the number of rows in a set.
        tol: of the gradient map's norm, relative to the gradient at 0.
        max_passes: over the rows, at most.
        warm_start: whether a second fit begins at the first one's solution.
        random_state: of the rows drawn.

    Attributes:
        classes_: what y held. coef_: [1 or c, d]. intercept_: [1 or c]. n_iter_: [1] passes.
    """

    coef_: Vector
    intercept_: Vector

    def fit(self, X: Any, y: ArrayLike, sample_weight: ArrayLike | None = None) -> Self:
        """Fit; rows of weight 0 are as if they were not there."""
        rows, target, weights = self._read(X, y, sample_weight)
        check_classification_targets(target)
        self.classes_, index = np.unique(target, return_inverse=True)
        count = len(self.classes_)
        if count < 2:
            raise ValueError(
                f"a classifier needs two classes; the data has one class, {self.classes_[0]!r}"
            )
        if count == 2:
            w, b = self._solve(rows, index.astype(np.float64), "logistic", weights)
        else:
            w, b = self._solve(rows, np.eye(count)[index], "multinomial", weights)
        self.coef_, self.intercept_ = np.atleast_2d(w.T).copy(), np.atleast_1d(b)
        return self

    def decision_function(self, X: Any) -> Vector:
        """`X w + b` of every class, or [n] of the second of two."""
        z: Vector = self._answers(X)
        return z.ravel() if len(self.classes_) == 2 else z

    def predict(self, X: Any) -> Any:
        """The most probable class of every row."""
        z = self.decision_function(X)
        index = (z > 0).astype(int) if z.ndim == 1 else z.argmax(1)
        return self.classes_[index]

    def predict_proba(self, X: Any) -> Vector:
        """[n, c] probabilities."""
        return np.exp(self.predict_log_proba(X))

    def predict_log_proba(self, X: Any) -> Vector:
        """Logarithms of :meth:`predict_proba`, without underflow."""
        z = self.decision_function(X)
        if z.ndim == 1:
            return np.stack([log_expit(-z), log_expit(z)], 1)
        return np.asarray(log_softmax(z, axis=1))
