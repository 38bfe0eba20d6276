"""The estimators are scikit-learn's kind, and find what its own find."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from scipy import sparse
from sklearn.datasets import dump_svmlight_file, load_svmlight_file
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


@pytest.mark.parametrize("intercept", [False, True])
@pytest.mark.parametrize("sampling", ["importance", 4])
def test_more_classes_as_scikit_learn_finds(sampling: str | int, intercept: bool):
    rng = np.random.default_rng(0)
    y = rng.integers(3, size=90)
    x = np.eye(3)[y] * 2 + rng.standard_normal((90, 3)) + 5
    labels = np.array(["b", "c", "a"])[y]
    known = LogisticRegression(
        C=1 / (0.02 * 90), fit_intercept=intercept, tol=1e-12, solver="newton-cg", max_iter=5000
    ).fit(x, labels)
    for rows in (x, sparse.csr_array(x)):
        found = SagaClassifier(
            l2=0.02, fit_intercept=intercept, sampling=sampling, tol=1e-11, max_passes=2e4
        ).fit(rows, labels)
        np.testing.assert_allclose(found.coef_, known.coef_, atol=1e-7)
        np.testing.assert_allclose(found.intercept_, known.intercept_, atol=1e-6)
        np.testing.assert_allclose(found.predict_proba(rows), known.predict_proba(x), atol=1e-7)
        assert (found.predict(rows) == known.predict(x)).all()
        np.testing.assert_allclose(np.exp(found.predict_log_proba(x)), found.predict_proba(x))


#: rows as files of LIBSVM may hold them
ODD = {
    "constant column": lambda x: np.hstack([x, np.full((len(x), 1), 7.0)]),
    "column of zeros": lambda x: np.hstack([x, np.zeros((len(x), 1))]),
    "rows of zeros": lambda x: np.where(np.arange(len(x))[:, None] % 3 == 0, 0.0, x),
    "rows that stand twice": lambda x: np.repeat(x[::2], 2, 0),
    "columns of unlike units": lambda x: x * np.geomspace(0.1, 10, x.shape[1]),
    "fewer columns than given": lambda x: np.hstack([x, np.zeros((len(x), 40))]),
    "no entry at all": np.zeros_like,
}


@pytest.mark.parametrize("labels", [(1, 2), (0, 1), (-1, 1), (2, 4)])
@pytest.mark.parametrize("odd", ODD)
def test_odd_files(odd: str, labels: tuple[float, float]):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((80, 4))
    y = np.array(labels)[(x @ rng.standard_normal(4) + rng.standard_normal(80) > 0) * 1]
    x = ODD[odd](x)
    file = io.BytesIO()
    dump_svmlight_file(x, y, file)
    file.seek(0)
    read, target = load_svmlight_file(file, n_features=x.shape[1])
    peer = LogisticRegression(C=1 / (0.05 * 80), tol=1e-12, solver="newton-cholesky", max_iter=5000)
    known = peer.fit(x, target).predict_proba(x)
    for rows in (read, read.toarray()):
        for sampling in ("importance", 8):
            model = SagaClassifier(l2=0.05, sampling=sampling, tol=1e-10, max_passes=2e5)
            found = model.fit(rows, target)
            np.testing.assert_allclose(found.predict_proba(x), known, atol=1e-6)
            assert set(found.predict(rows)) <= set(labels)


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
