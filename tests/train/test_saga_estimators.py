"""The estimators are scikit-learn's kind, and find what its own find."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import sparse
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.utils.estimator_checks import parametrize_with_checks

from bitwright.errors import BitwrightError
from bitwright.train.saga.estimators import SagaClassifier, SagaRegressor
from train.saga_cases import made


@parametrize_with_checks([SagaClassifier(), SagaRegressor()])
def test_check_estimator(estimator: Any, check: Any):
    check(estimator)


@pytest.mark.parametrize("intercept", [False, True])
@pytest.mark.parametrize("sampling", ["importance", "uniform", 4])
def test_as_scikit_learn_finds(sampling: str | int, intercept: bool):
    problem = made(n=80)
    x, y, n = problem.features, problem.targets, 80
    options = {"l2": 0.1, "fit_intercept": intercept, "sampling": sampling, "tol": 1e-12}
    known = Ridge(alpha=0.1 * n, fit_intercept=intercept).fit(x, y)
    found = SagaRegressor(**options).fit(x, y)
    np.testing.assert_allclose(found.coef_, known.coef_, atol=1e-10)
    assert found.intercept_ == pytest.approx(known.intercept_, abs=1e-10)
    labels = np.where(y > 0, "yes", "no")
    peer = LogisticRegression(
        C=1 / (0.1 * n), fit_intercept=intercept, tol=1e-14, solver="newton-cholesky"
    )
    for rows in (x, sparse.csr_array(x)):
        mine = SagaClassifier(**options).fit(rows, labels)
        peer.fit(x, labels)
        np.testing.assert_allclose(mine.coef_, peer.coef_, atol=1e-9)
        np.testing.assert_allclose(mine.predict_proba(rows), peer.predict_proba(x), atol=1e-9)
        assert (mine.predict(rows) == peer.predict(x)).all()


def test_more_classes_and_log_probabilities():
    rng = np.random.default_rng(0)
    y = rng.integers(3, size=90)
    x = np.eye(3)[y] * 3 + rng.standard_normal((90, 3))
    found = SagaClassifier(l2=0.01).fit(x, y)
    assert found.score(x, y) > 0.85 and found.coef_.shape == (3, 3)
    np.testing.assert_allclose(np.exp(found.predict_log_proba(x)), found.predict_proba(x))
    np.testing.assert_allclose(found.predict_proba(x).sum(1), 1)


def test_warm_start_goes_on():
    problem = made(n=80)
    for kind, y in ((SagaRegressor, problem.targets), (SagaClassifier, problem.targets > 0)):
        model = kind(warm_start=True).fit(problem.features, y)
        first = np.max(model.n_iter_)
        model.set_params(tol=1e-7).fit(problem.features, y)
        assert np.max(model.n_iter_) <= 1 < first


def test_too_few_passes_are_told_and_an_unknown_sampling_refused():
    problem = made(n=80)
    with pytest.warns(ConvergenceWarning, match="raise max_passes"):
        SagaRegressor(max_passes=1, tol=1e-12).fit(problem.features, problem.targets)
    with pytest.raises(BitwrightError, match="no sampling 'best'"):
        SagaRegressor(sampling="best").fit(problem.features, problem.targets)
