"""SAGA: solutions against direct solvers, the promised rate, the same bytes, going on."""

from __future__ import annotations

import importlib
import math
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import optimize, sparse
from scipy.special import expit

import bitwright
from bitwright.errors import BitwrightError
from bitwright.train.saga import (
    Penalty,
    Problem,
    State,
    curvature,
    importance,
    kernels_sparse,
    load_state,
    nice,
    samplings,
    start,
    step_size,
    uniform,
)
from mutants import mutated
from train.saga_cases import PENALTIES, SAMPLINGS, as_sparse, made, newton

LOSSES = ("squared", "logistic", "multinomial")
#: the function of the same name hides it
solver = importlib.import_module("bitwright.train.saga.solver")


def bounded(problem: Problem) -> np.ndarray:
    """The minimizer by L-BFGS-B in x = u − v with u, v >= 0, polished by its active set."""
    penalty, d = problem.penalty, problem.size
    a, y, weights = problem.dense(), problem.targets, problem.weights

    def value(uv: np.ndarray) -> tuple[float, np.ndarray]:
        x = uv[:d] - uv[d:]
        z = a @ x
        u = problem.derivatives(z)
        g = a.T @ (weights * u) + penalty.l2 * x
        total = weights @ problem.losses(z) + 0.5 * penalty.l2 * x @ x + penalty.l1 * uv.sum()
        return float(total), np.concatenate([g + penalty.l1, penalty.l1 - g])

    box = [(max(penalty.lower, 0), max(penalty.upper, 0))] * d
    box += [(max(-penalty.upper, 0), max(-penalty.lower, 0))] * d
    begin = np.array([low for low, _ in box])
    options = {"ftol": 1e-16, "gtol": 1e-13, "maxiter": 10_000, "maxfun": 100_000}
    found = optimize.minimize(
        value, begin, jac=True, bounds=box, method="L-BFGS-B", options=options
    ).x
    x = found[:d] - found[d:]
    # what is strictly between 0 and the bounds solves its own smooth system
    free = (abs(x) > 1e-6) & (x > penalty.lower + 1e-6) & (x < penalty.upper - 1e-6)
    x = np.where(free, x, np.where(abs(x) <= 1e-6, np.clip(0, penalty.lower, penalty.upper), x))
    for _ in range(20):
        z = a @ x
        second = np.ones(len(y)) if problem.loss == "squared" else expit(z) * expit(-z)
        g = a.T @ (weights * problem.derivatives(z)) + penalty.l2 * x + penalty.l1 * np.sign(x)
        hessian = (a.T * (weights * second)) @ a + penalty.l2 * np.eye(d)
        x[free] -= np.linalg.solve(hessian[np.ix_(free, free)], g[free])
    return x


@pytest.mark.parametrize("intercept", [False, True])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_every_loss_by_newton(sampling: str, loss: str, intercept: bool):
    problem = made(loss=loss, penalty=Penalty(l2=0.1), intercept=intercept)
    offsets = np.sin(np.arange(problem.targets.size)).reshape(problem.targets.shape)
    problem = replace(problem, offsets=offsets)
    problems = [problem, as_sparse(problem)]
    if loss == "multinomial":
        problems.append(made(loss=loss, penalty=Penalty(l2=0.1), intercept=intercept, own=True))
    for each in problems:
        found = bitwright.saga(
            each, SAMPLINGS[sampling](each), stop="gradient", tolerance=1e-12, max_passes=2e4
        )
        assert found.converged
        np.testing.assert_allclose(found.x, newton(each), atol=1e-10)


@pytest.mark.parametrize("loss", ["squared", "logistic"])
@pytest.mark.parametrize("penalty", [p for p in PENALTIES if p not in ("none", "l2")])
def test_other_regularizers_by_an_active_set(penalty: str, loss: str):
    problem = made(loss=loss, penalty=PENALTIES[penalty], d=8)
    known = bounded(problem)
    for same in (problem, as_sparse(problem)):
        for sampling in ("uniform", "importance", "nice", "independent"):
            found = bitwright.saga(
                same, SAMPLINGS[sampling](same), tolerance=1e-13, stop="gradient", max_passes=2e4
            )
            assert found.converged
            np.testing.assert_allclose(found.x, known, atol=1e-10)


def test_l1_as_scikit_learn_has_it():
    linear = pytest.importorskip("sklearn.linear_model")
    problem = made(n=60, d=8, penalty=Penalty(l1=0.02, l2=0.03))
    other = linear.ElasticNet(alpha=0.05, l1_ratio=0.4, fit_intercept=False, tol=1e-14)
    known = other.fit(problem.features, problem.targets).coef_
    found = bitwright.saga(problem, uniform(60), stop="gradient", tolerance=1e-12)
    np.testing.assert_allclose(found.x, known, atol=1e-8)
    assert 0 < (found.x == 0).sum() < 8  # exact zeros


@pytest.mark.parametrize("intercept", [False, True])
@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("sampling", ["uniform", "nice", "independent"])
@pytest.mark.parametrize("loss", ["squared", "multinomial"])
def test_sparse_is_dense_to_rounding(
    loss: str, sampling: str, penalty: str, intercept: bool, monkeypatch: pytest.MonkeyPatch
):
    """Iterate by iterate: lagged steps are the steps themselves, whatever crosses 0 meanwhile."""
    monkeypatch.setattr(solver, "BLOCK_ROWS", 1)
    dense = made(n=40, d=30, loss=loss, penalty=PENALTIES[penalty], intercept=intercept)
    dense.features[np.random.default_rng(2).random((40, 30)) < 0.9] = 0
    begin = np.linspace(-1, 1, math.prod(dense.shape)).reshape(dense.shape)
    paths = []
    for problem in (dense, as_sparse(dense)):
        seen: list[np.ndarray] = []
        bitwright.saga(
            problem, SAMPLINGS[sampling](problem), tolerance=0, max_passes=60,
            start_from=begin, progress=lambda s, k=seen: k.append(s.x + 0),
        )  # fmt: skip
        paths.append(np.array(seen))
    assert len(paths[0]) > 30
    np.testing.assert_allclose(paths[0], paths[1], atol=1e-12)


@pytest.mark.parametrize("penalty", PENALTIES)
def test_many_lagged_steps_are_the_steps_one_by_one(penalty: str):
    p, step = PENALTIES[penalty], 0.7
    how = (step, p.l1, p.l2, p.lower, p.upper)
    shrink = 1 / (1 + step * p.l2)
    rng = np.random.default_rng(0)
    for x, g in rng.uniform(-1, 1, (300, 2)) * [1, 0.1]:
        slow = float(np.clip(x, p.lower, p.upper))
        begin = slow
        for count in range(1, 40):
            slow = float(p.prox(np.array([slow - step * g]), step)[0])
            fast = kernels_sparse.advance(begin, count, g, how, shrink, np.log(shrink))
            assert fast == pytest.approx(slow, abs=1e-13), (x, g, count)


def lyapunov_falls_as_promised(loss: str, sampling: str, *, growth: bool = False) -> float:
    """Mean Ψ over 20 seeds is at most the promise (+ 4 standard errors); its share of that."""
    if growth:  # least squares without full rank: every x* + ker A is a solution
        problem = made(n=24, d=4, loss=loss)
        doubled = np.hstack([problem.features, problem.features])
        problem = Problem(doubled, problem.targets)
        mu = solver_curvature(problem)
        goal = np.linalg.pinv(problem.features) @ problem.targets
    else:
        problem = made(n=24, d=4, loss=loss, penalty=Penalty(l2=0.05))
        mu, goal = 0.0, newton(problem)
    law = SAMPLINGS[sampling](problem)
    table = problem.derivatives(problem.forward(goal))
    paths = []
    for seed in range(20):
        path: list[float] = []
        rate = step_size(problem, law, mu)

        def psi(state: State, path: list[float] = path, rate=rate) -> None:
            far, old = state.x - goal, (state.table - table).reshape(len(table), -1)
            path.append(np.vdot(far, far) + rate.lyapunov @ (old**2).sum(1))

        psi(start(problem))
        solver.saga(problem, law, tolerance=0, max_passes=12, seed=seed, progress=psi, curvature=mu)
        paths.append(path)
    steps = np.ceil(problem.n / law.mean_size)  # in a block
    found = np.array([path[: min(map(len, paths))] for path in paths])
    promised = found[0, 0] * (1 - rate.rate) ** (steps * np.arange(found.shape[1]))
    mean, error = found.mean(0), found.std(0, ddof=1) / np.sqrt(len(found))
    assert 0 < rate.rate < 1
    assert (mean <= promised + 4 * error + 1e-25).all(), (loss, sampling, mean / promised)
    return float(mean[-1] / promised[-1])


def solver_curvature(problem: Problem) -> float:
    values = np.linalg.eigvalsh(problem.features.T @ problem.features / problem.n)
    known = values[values > 1e-10][0]
    assert curvature(problem) == pytest.approx(known)
    return float(known)


@pytest.mark.parametrize("growth", [False, True])
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_the_lyapunov_function_falls_as_promised(
    sampling: str, growth: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(solver, "BLOCK_ROWS", 1)
    assert lyapunov_falls_as_promised("squared", sampling, growth=growth) < 1
    if not growth:
        assert lyapunov_falls_as_promised("logistic", sampling) < 1
        assert lyapunov_falls_as_promised("multinomial", sampling) < 1


@pytest.mark.parametrize("factor", ["4 * low", "low / 20"])
def test_a_wrong_step_is_seen(factor: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(solver, "BLOCK_ROWS", 1)
    right, wrong = "return Rate(low, r, lyapunov)", f"return Rate({factor}, r, lyapunov)"
    with mutated("train.saga.constants", right, wrong), pytest.raises(AssertionError):
        for sampling in ("uniform", "importance"):
            lyapunov_falls_as_promised("squared", sampling)


def steps_are_unbiased(name: str, sparse: bool, intercept: bool, loss: str = "squared") -> None:
    """Over all sets, one step of the loop is in the mean the step of gradient descent (ψ none)."""
    problem = made(n=6, d=4, loss=loss, intercept=intercept, weights=np.linspace(0.1, 0.3, 6))
    problem = as_sparse(problem) if sparse else problem
    law = SAMPLINGS[name](problem)
    begin = start(problem, np.linspace(-1, 1, math.prod(problem.shape)).reshape(problem.shape))
    begin.table[:] = np.linspace(0.5, -0.5, begin.table.size).reshape(begin.table.shape)
    begin.mean = problem.adjoint(begin.table)  # of nowhere
    new = problem.derivatives(problem.forward(begin.x))
    call = solver._kernel(problem, law, 0.1)
    mean, table = np.zeros(problem.shape), np.zeros(begin.table.shape)
    for p, members, theta in law.sets():
        state = replace(begin, x=begin.x.copy(), table=begin.table.copy(), mean=begin.mean.copy())
        call(samplings.Draw(np.array([0, len(members)]), members, theta), state)
        mean += p * state.x
        table += p * state.table
        np.testing.assert_allclose(state.mean, problem.adjoint(state.table), atol=1e-14)
    np.testing.assert_allclose(mean, begin.x - 0.1 * problem.adjoint(new), atol=1e-13)
    expected = begin.table + (law.p * (new - begin.table).T).T
    np.testing.assert_allclose(table, expected, atol=1e-13)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("intercept", [False, True])
@pytest.mark.parametrize("name", SAMPLINGS)
def test_a_step_is_unbiased(name: str, sparse: bool, intercept: bool):
    for loss in LOSSES:
        steps_are_unbiased(name, sparse, intercept, loss)


@pytest.mark.parametrize(
    "new", ["1.01 * draw.theta * keep[draw.members]", "keep[draw.members]", "draw.theta"]
)
def test_a_biased_weight_is_seen(new: str):
    with mutated("train.saga.solver", "draw.theta * keep[draw.members]", new):
        for name in ("uniform", "nice"):
            for sparse in (False, True):
                with pytest.raises(AssertionError):
                    steps_are_unbiased(name, sparse, False)


def test_steps_are_those_of_the_sister_paper_or_larger():
    """Gazagnadou, Gower, Salmon: `1/(4 L_max + n μ)`, and `n / Σ (4 L_i + n μ)` by importance."""
    for l2 in (1e-4, 1e-2, 1.0):
        problem = made(n=50, loss="logistic", penalty=Penalty(l2=l2))
        n, smooth = 50, problem.squared_norms / 4
        for law, known in (
            (uniform(n), 1 / (4 * smooth.max() + n * l2)),
            (importance(problem), n / (4 * smooth + n * l2).sum()),
        ):
            rate = step_size(problem, law)
            assert rate.rate > known * l2  # theirs
            if l2 < 1:  # else the table rules, and our rate needs no larger step
                assert known < rate.step < 4 * known
    full = step_size(problem, nice(50, 50))
    assert full.step == pytest.approx(
        2 / (problem.top_eigenvalue / 4), rel=0.01
    )  # gradient descent


def test_importance_is_promised_what_the_means_promise():
    problem = made(n=100, spread=1000.0, penalty=Penalty(l2=1e-4))
    problem.features[:, 0] *= 1e-4  # hardly curved there but by l2
    plain, better = (
        step_size(problem, s(problem)) for s in map(SAMPLINGS.get, ("uniform", "importance"))
    )
    ratio = problem.squared_norms.max() / problem.squared_norms.mean()
    assert better.rate / plain.rate == pytest.approx(ratio, rel=0.25)


def test_rows_are_seen_at_least_so_often():
    """The less that is known of the curvature, the more; a column of zeros says nothing."""
    strong = made(n=100, spread=1000.0, penalty=Penalty(l2=1e-3))
    for rows, penalty, curved, share in (
        (strong.features, strong.penalty, 0.0, 0.9),
        (np.hstack([strong.features, np.zeros((100, 1))]), strong.penalty, 0.0, 0.9),
        (strong.features * [1, 1, 1, 1, 1e-4], strong.penalty, 0.0, 0.5),
        (strong.features * [1, 1, 1, 1, 1e-4], Penalty(), 0.0, 0.9),
        (strong.features, strong.penalty, 1e-3, 0.5),
    ):
        for same in (rows, sparse.csr_array(rows)):
            p = importance(Problem(same, strong.targets, penalty=penalty), curved).p
            assert share * 0.5 < p.min() * 100 <= share  # of a mean that raising them raises
            assert p.max() > 2 * p.mean()


def test_gap_bounds_and_vanishes():
    for name, penalty in PENALTIES.items():
        for loss in LOSSES:
            problem = made(loss=loss, penalty=penalty)
            offsets = np.linspace(-0.2, 0.2, problem.targets.size).reshape(problem.targets.shape)
            problem = replace(problem, offsets=offsets)
            best = solver.saga(
                problem, uniform(30), stop="gradient", tolerance=1e-12, max_passes=3e4
            )
            if name == "none":
                assert best.gap == np.inf
                continue
            assert best.gap < 1e-11, (name, loss)
            rng = np.random.default_rng(0)
            for _ in range(20):
                x = rng.standard_normal(problem.shape) / 5
                x = np.clip(x, penalty.lower, penalty.upper)
                u = problem.derivatives(problem.forward(x))
                assert problem.gap(x, u) >= problem.value(x) - best.value > 0


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("loss", ["squared", "multinomial"])
def test_same_seed_same_bytes_interrupted_or_not(
    tmp_path: Path, loss: str, sparse: bool, sampling: str
):
    problem = made(loss=loss, penalty=PENALTIES["elastic net"])
    problem = as_sparse(problem) if sparse else problem
    law = SAMPLINGS[sampling](problem)
    file = tmp_path / "state.npz"
    whole = solver.saga(problem, law, tolerance=-1, max_passes=800, seed=3)
    again = solver.saga(problem, law, tolerance=-1, max_passes=800, seed=3)
    solver.saga(problem, law, tolerance=-1, max_passes=400, seed=3, checkpoint=file)
    gone_on = solver.saga(problem, law, tolerance=-1, max_passes=800, seed=3, checkpoint=file)
    warm = solver.saga(problem, law, tolerance=-1, max_passes=400, seed=3)
    state = warm.state.x.copy()
    from_state = solver.saga(
        problem, law, tolerance=-1, max_passes=800, seed=3, start_from=warm.state
    )
    for other in (again, gone_on, from_state):
        assert other.x.tobytes() == whole.x.tobytes()
        assert other.state.table.tobytes() == whole.state.table.tobytes()
    assert (warm.state.x == state).all()
    other_seed = solver.saga(problem, law, tolerance=-1, max_passes=400, seed=4)
    assert sampling == "all" or other_seed.x.tobytes() != warm.x.tobytes()


def test_a_warm_start_at_the_solution_is_done():
    problem = made(penalty=Penalty(l2=0.1))
    cold = solver.saga(problem, uniform(30), tolerance=1e-12)
    warm = solver.saga(problem, uniform(30), tolerance=1e-11, start_from=cold.x)
    assert warm.converged and warm.state.passes == 1


def test_restarts_find_the_solution_without_knowing_the_growth():
    problem = made(n=200, d=20, penalty=Penalty(l1=0.001))
    doubled = Problem(np.hstack([problem.features] * 2), problem.targets, penalty=problem.penalty)
    plain = solver.saga(doubled, uniform(200), tolerance=1e-11, max_passes=20_000)
    found = solver.saga(doubled, uniform(200), tolerance=1e-11, max_passes=20_000, restart=True)
    assert found.converged and plain.converged
    assert abs(found.value - plain.value) < 2e-11
    assert found.state.passes < 3 * plain.state.passes


def test_rows_without_entries():
    """Of nothing but an intercept: the mean of the targets, in every kind of loop."""
    y = np.arange(6.0)
    for rows in (np.zeros((6, 3)), sparse.csr_array((6, 3))):
        for penalty in (Penalty(), Penalty(l1=0.1)):
            problem = Problem(rows, y, penalty=penalty, intercept=True)
            for law in (uniform(6), nice(6, 2)):
                found = solver.saga(problem, law, tolerance=1e-12)
                np.testing.assert_allclose(found.x, [0, 0, 0, 2.5], atol=1e-11)


def test_two_classes_are_a_logistic_problem():
    """z₂ − z₁ is all that counts: of equal and opposite halves, at half the penalty."""
    logistic = made(n=40, loss="logistic", penalty=Penalty(l2=0.05), intercept=True)
    y = logistic.targets
    both = replace(
        logistic, loss="multinomial", targets=np.stack([1 - y, y], 1), offsets=None,
        penalty=Penalty(l2=0.1),
    )  # fmt: skip
    one, two = (
        solver.saga(p, uniform(40), stop="gradient", tolerance=1e-12, max_passes=5000).x
        for p in (logistic, both)
    )
    np.testing.assert_allclose(two[:, 1] - two[:, 0], one, atol=1e-10)
    np.testing.assert_allclose(two.sum(1), 0, atol=1e-10)


def test_offsets_are_part_of_the_answer():
    """Of a squared loss they come off the targets; a part of the solution may be put into them."""
    problem = made(n=40, penalty=Penalty(l1=0.01, l2=0.1))
    offsets = np.cos(np.arange(40.0))
    shifted = replace(problem, targets=problem.targets + offsets, offsets=offsets)
    options = {"stop": "gradient", "tolerance": 1e-12, "max_passes": 5000}
    found = [solver.saga(p, uniform(40), **options).x for p in (problem, shifted)]
    np.testing.assert_allclose(*found, atol=1e-11)
    for loss in LOSSES:
        free = made(n=40, loss=loss, intercept=True)
        whole = newton(free)
        begun = replace(free, offsets=free.forward(0.3 * whole))
        np.testing.assert_allclose(newton(begun), 0.7 * whole, atol=1e-7)
        rest = solver.saga(begun, uniform(40), **{**options, "max_passes": 5e4}).x
        np.testing.assert_allclose(rest, 0.7 * whole, atol=1e-7)


def test_weights_are_repeated_rows():
    problem = made(n=12, penalty=Penalty(l2=0.1, l1=0.01))
    count = np.arange(12) % 3 + 1
    rows = np.repeat(np.arange(12), count)
    weighted = replace(problem, weights=count / count.sum())
    repeated = Problem(problem.features[rows], problem.targets[rows], penalty=problem.penalty)
    found = [
        solver.saga(p, importance(p), stop="gradient", tolerance=1e-12).x
        for p in (weighted, repeated)
    ]
    np.testing.assert_allclose(*found, atol=1e-11)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: made(loss="hinge"), "no loss 'hinge'"),
        (lambda: Problem(np.ones((2, 2)), [0, 2], "logistic"), "probabilities in"),
        (lambda: Problem(np.ones((2, 2)), [0, 1, 1]), "there are 2 rows"),
        (lambda: Problem(np.ones((2, 2)), [0, 1], "multinomial"), "k >= 2"),
        (lambda: Problem(np.ones((2, 2)), [[1], [1]], "multinomial"), "k >= 2"),
        (lambda: Problem(np.ones((2, 2)), np.ones((2, 2)), "multinomial"), "sum to 1; one is 1"),
        (lambda: Problem(np.ones((2, 2)), np.eye(2) * 3 - 1, "multinomial"), r"got -1\.0 to 2"),
        (lambda: Problem(np.ones((2, 3, 3)), np.eye(2), "multinomial"), "of 3 outputs, .* of 2"),
        (lambda: Problem(np.ones((2, 2, 2)), [0, 1]), "must be"),
        (lambda: Problem(np.ones((2, 2)), [0, 1], offsets=[1]), "offsets have shape"),
        (lambda: Problem(np.ones((2, 2)), [0, 1], weights=[1, 0]), "above 0"),
        (lambda: Problem(np.full((2, 2), np.nan), [0, 1]), "not finite"),
        (lambda: Problem(np.ones(2), [0, 1]), "must be"),
        (lambda: Penalty(l1=-1), "l1 is -1"),
        (lambda: Penalty(lower=1, upper=0), "empty"),
        (lambda: solver.saga(made(), uniform(30), stop="soon"), "soon"),
        (lambda: solver.saga(made(), uniform(30), start_from=np.zeros(3)), "needs"),
        (lambda: solver.saga(made(), uniform(30), start_from=start(made(n=4))), "another shape"),
    ],
)
def test_mistakes_are_told(make, says: str):
    with pytest.raises(BitwrightError, match=says):
        make()


def test_a_file_that_is_no_state_is_told(tmp_path: Path):
    file = tmp_path / "state.npz"
    file.write_bytes(b"nothing")
    with pytest.raises(BitwrightError, match="no state"):
        load_state(file, made())
    start(made()).save(file)
    assert not list(tmp_path.glob("*.part"))
    with pytest.raises(BitwrightError, match="30 rows"):
        load_state(file, made(n=31))
    with pytest.raises(BitwrightError, match=r"\(5, 3\)"):
        load_state(file, made(loss="multinomial"))


def test_threads_are_released():
    """Another thread counts while a kernel runs; under the lock it could not."""
    problem = made(n=2000, d=200, penalty=Penalty(l2=1e-3))
    law = nice(2000, 50)
    call = solver._kernel(problem, law, 1e-3)
    draw = law.draw(np.random.default_rng(0), 4000)
    call(law.draw(np.random.default_rng(0), 1), start(problem))  # compiled
    running, counted = threading.Event(), [0]

    def count() -> None:
        while not running.is_set():
            counted[0] += 1
            time.sleep(0)

    thread = threading.Thread(target=count)
    thread.start()
    try:
        before = counted[0]
        call(draw, start(problem))
        during = counted[0] - before
    finally:
        running.set()
        thread.join()
    assert during > 5  # under the lock, what one switch before the call allows


def test_importing_bitwright_loads_neither_numba_nor_scikit_learn():
    code = "import sys, bitwright; print('numba' in sys.modules, 'sklearn' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["False", "False"]
