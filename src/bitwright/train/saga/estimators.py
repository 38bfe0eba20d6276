"""SAGA behind scikit-learn's interface: a classifier and a regressor."""

from __future__ import annotations

import warnings
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike
from scipy import sparse
from scipy.special import expit, log_expit
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

    def _solve(
        self, rows: Any, y: Vector, loss: str, weights: Vector, begin: Vector | None
    ) -> tuple[Vector, float]:
        """The solution, intercept last (0 without one), and its passes."""
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
        zero = np.zeros(problem.size)
        slope = problem.adjoint(problem.derivatives(problem.forward(zero)))
        scale = float(np.linalg.norm(slope)) or 1.0
        if begin is not None:
            begin = np.append(begin[:-1], begin[-1] + mean @ begin[:-1])[: problem.size]
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        found = saga(
            problem, self._law(problem, growth), tolerance=self.tol * scale, stop="gradient",
            max_passes=self.max_passes, curvature=growth, start_from=begin, seed=seed,
        )  # fmt: skip
        if not found.converged:
            warnings.warn(
                f"gradient map {found.gradient_map:.2g} after {found.state.passes:.0f} passes, "
                f"above {self.tol * scale:.2g}: raise max_passes, or scale the features",
                ConvergenceWarning,
                stacklevel=3,
            )
        x = found.x if self.fit_intercept else np.append(found.x, 0.0)
        x[-1] -= mean @ x[:-1]
        return x, found.state.passes


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
        coef_: [d]. intercept_: b. n_iter_: passes.
    """

    coef_: Vector
    intercept_: float

    def fit(self, X: Any, y: ArrayLike, sample_weight: ArrayLike | None = None) -> Self:
        """Fit; rows of weight 0 are as if they were not there."""
        rows, target = validate_data(
            self, X, y, accept_sparse="csr", dtype=np.float64, y_numeric=True
        )
        weights = _check_sample_weight(
            sample_weight, rows, dtype=np.float64, ensure_non_negative=True
        )
        begin = None
        if self.warm_start and hasattr(self, "coef_"):
            begin = np.append(self.coef_, self.intercept_)
        x, passes = self._solve(rows, np.asarray(target, np.float64), "squared", weights, begin)
        self.coef_, self.intercept_ = x[:-1], float(x[-1])
        self.n_iter_ = int(np.ceil(passes))
        return self

    def predict(self, X: Any) -> Vector:
        """`X w + b`."""
        check_is_fitted(self)
        rows = validate_data(self, X, accept_sparse="csr", dtype=np.float64, reset=False)
        return np.asarray(rows @ self.coef_ + self.intercept_)


class SagaClassifier(ClassifierMixin, _Linear):
    """Logistic regression with L1, L2 and box, by SAGA; more than two classes one against the rest.

    Minimizes `mean log(1 + exp(z_i)) − y_i z_i + l1 ‖w‖₁ + ½ l2 ‖w‖²`, `z_i = a_i·w + b`.

    Args:
        l1, l2, lower, upper: of the regularizer; the intercept has none.
        fit_intercept: whether b is free.
        sampling: `importance`, `uniform`, or the number of rows in a set.
        tol: of the gradient map's norm, relative to the gradient at 0.
        max_passes: over the rows, at most.
        warm_start: whether a second fit begins at the first one's solution.
        random_state: of the rows drawn.

    Attributes:
        classes_: [c]. coef_: [c, d], or [1, d] of the second of two classes. intercept_: [c] or
        [1]. n_iter_: [c] or [1], passes.
    """

    coef_: Vector
    intercept_: Vector

    def fit(self, X: Any, y: ArrayLike, sample_weight: ArrayLike | None = None) -> Self:
        """Fit; rows of weight 0 are as if they were not there."""
        rows, target = validate_data(self, X, y, accept_sparse="csr", dtype=np.float64)
        check_classification_targets(target)
        weights = _check_sample_weight(
            sample_weight, rows, dtype=np.float64, ensure_non_negative=True
        )
        self.classes_, index = np.unique(target, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(
                f"a classifier needs two classes; the data has one class, {self.classes_[0]!r}"
            )
        wanted = [1] if len(self.classes_) == 2 else range(len(self.classes_))
        shape = (len(wanted), rows.shape[1])
        warm = self.warm_start and hasattr(self, "coef_") and self.coef_.shape == shape
        found, passes = [], []
        for row, c in enumerate(wanted):
            begin = np.append(self.coef_[row], self.intercept_[row]) if warm else None
            target_c = (index == c).astype(np.float64)
            x, took = self._solve(rows, target_c, "logistic", weights, begin)
            found.append(x)
            passes.append(int(np.ceil(took)))
        solutions = np.array(found)
        self.coef_, self.intercept_ = solutions[:, :-1].copy(), solutions[:, -1].copy()
        self.n_iter_ = np.array(passes)
        return self

    def decision_function(self, X: Any) -> Vector:
        """`X w + b` of every class, or [n] of the second of two."""
        check_is_fitted(self)
        rows = validate_data(self, X, accept_sparse="csr", dtype=np.float64, reset=False)
        z = np.asarray(rows @ self.coef_.T + self.intercept_)
        return z.ravel() if len(self.classes_) == 2 else z

    def predict(self, X: Any) -> Any:
        """The most probable class of every row."""
        z = self.decision_function(X)
        index = (z > 0).astype(int) if z.ndim == 1 else z.argmax(1)
        return self.classes_[index]

    def predict_proba(self, X: Any) -> Vector:
        """[n, c] probabilities, for more than two classes normalized over one against the rest."""
        z = self.decision_function(X)
        p = np.stack([expit(-z), expit(z)], 1) if z.ndim == 1 else expit(z)
        return np.asarray(p / p.sum(1, keepdims=True))

    def predict_log_proba(self, X: Any) -> Vector:
        """Logarithms of :meth:`predict_proba`, without underflow for two classes."""
        z = self.decision_function(X)
        if z.ndim == 1:
            return np.stack([log_expit(-z), log_expit(z)], 1)
        p = log_expit(z)
        return np.asarray(p - np.logaddexp.reduce(p, axis=1, keepdims=True))
