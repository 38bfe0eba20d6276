"""Samplings: unbiased over all their sets, drawn by their law, bounded by their constants."""

from __future__ import annotations

import numpy as np
import pytest

from bitwright.errors import BitwrightError
from bitwright.train.saga import (
    constants,
    independent,
    moments,
    nice,
    partition,
    proper,
    singles,
    uniform,
    user_sets,
)
from mutants import mutated
from train.saga_cases import SAMPLINGS, as_sparse, made


def estimates_are_unbiased() -> None:
    """Over all sets, `Jλ + Σ_{i∈S} θ_S^i λ_i (∇f_i(x) − J_i)` is ∇f(x) in the mean."""
    for n in range(1, 9):
        problem = made(n=n, d=4, weights=np.random.default_rng(n).uniform(0.1, 1, n))
        rng = np.random.default_rng(n)
        gradients, table = rng.standard_normal((2, n, 4))
        for name, make in SAMPLINGS.items():
            if (name in ("partition", "user", "nice")) and n < 4:
                continue
            sampling = make(problem)
            mean, inside, total = np.zeros(4), np.zeros(n), 0.0
            for p, members, theta in sampling.sets():
                weights = (theta * problem.weights[members])[:, None]
                g = problem.weights @ table
                mean += p * (g + (weights * (gradients - table)[members]).sum(0))
                inside[members] += p
                total += p
            np.testing.assert_allclose(mean, problem.weights @ gradients, atol=1e-12, err_msg=name)
            np.testing.assert_allclose(inside, sampling.p, err_msg=name)
            assert total == pytest.approx(1)


def test_unbiased_over_all_sets():
    estimates_are_unbiased()


@pytest.mark.parametrize(
    ("module", "old", "new"),
    [
        (
            "samplings",
            "yield float(p), np.array([i]), np.array([1 / p])",
            "yield p, np.array([i]), np.ones(1)",
        ),
        ("proper", "given = 1 / inside[members] if", "given = 1.01 / inside[members] if"),
        (
            "samplings",
            "yield p, members, 1 / self.p[members]",
            "yield p, members, 1 / self.p[members] ** 0.9",
        ),
        ("samplings", "np.full(self.tau, self.n / self.tau)", "np.ones(self.tau)"),
    ],
)
def test_a_biased_weight_is_seen(module: str, old: str, new: str):
    def check() -> None:
        for make in ("uniform", "nice", "independent", "partition"):
            _check_one(make)

    check()
    with mutated(f"train.saga.{module}", old, new), pytest.raises((AssertionError, BitwrightError)):
        check()


def _check_one(make: str) -> None:
    """As above, with what the mutated module itself makes."""
    own = vars(proper)
    arguments = {
        "uniform": (5,),
        "nice": (5, 2),
        "independent": (np.linspace(0.2, 1, 5),),
        "partition": ([[0, 3], [1, 2, 4]],),
    }[make]
    mean = np.zeros(5)
    for p, members, theta in own[make](*arguments).sets():
        mean[members] += p * theta
    np.testing.assert_allclose(mean, 1)


@pytest.mark.parametrize("name", SAMPLINGS)
def test_draws_follow_the_law(name: str):
    problem = made(n=8)
    sampling = SAMPLINGS[name](problem)
    steps = 4000
    law: dict[tuple[int, ...], tuple[float, np.ndarray]] = {}
    for p, members, theta in sampling.sets():
        law[tuple(sorted(members))] = p, theta
    for seed in range(3):
        starts, members, theta = sampling.draw(np.random.default_rng(seed), steps)
        assert len(starts) == steps + 1 and starts[-1] == len(members) == len(theta)
        seen: dict[tuple[int, ...], int] = {}
        for t in range(steps):
            part = slice(starts[t], starts[t + 1])
            key = tuple(sorted(members[part]))
            assert np.sort(theta[part]).tolist() == np.sort(law[key][1]).tolist()
            seen[key] = seen.get(key, 0) + 1
        for key, (p, _) in law.items():
            assert abs(seen.get(key, 0) - steps * p) <= 5 * np.sqrt(steps * p * (1 - p)) + 1e-9, key
        assert len(members) / steps == pytest.approx(sampling.mean_size, rel=0.05)


def forms(problem, sampling) -> tuple[np.ndarray, np.ndarray]:
    """The exact quadratic forms in `√λ_i δ_i` of second moment and variance, by enumeration."""
    n = problem.n
    a = problem.dense() * np.sqrt(problem.weights)[:, None]
    q = np.zeros((n, n))
    for p, members, theta in sampling.sets():
        full = np.zeros(n)
        full[members] = theta
        q += p * np.outer(full, full)
    gram = a @ a.T
    return gram * q, gram * (q - 1)


def bounds_hold(name: str, **more) -> tuple[float, float]:
    """The largest eigenvalues of both forms relative to K and R: at most 1."""
    problem = made(n=8, d=3, **more)
    sampling = SAMPLINGS[name](problem)
    found = []
    for form, bound in zip(
        forms(problem, sampling), constants.moments(problem, sampling), strict=True
    ):
        scale = 1 / np.sqrt(np.maximum(bound, 1e-300))
        small = bound < 1e-12
        assert np.abs(form[small]).max(initial=0) < 1e-12
        scale[small] = 0
        found.append(float(np.linalg.eigvalsh(form * np.outer(scale, scale))[-1]))
    assert max(found) <= 1 + 1e-9, (name, found)
    return found[0], found[1]


@pytest.mark.parametrize("intercept", [False, True])
@pytest.mark.parametrize("name", SAMPLINGS)
def test_constants_bound_the_forms(name: str, intercept: bool):
    for seed in range(4):
        weights = np.random.default_rng(seed).uniform(0.01, 1, 8)
        second, _ = bounds_hold(name, seed=seed, intercept=intercept, weights=weights)
        if name in ("uniform", "importance", "singles", "all"):
            assert second == pytest.approx(1)  # tight
        else:
            assert second > 0.3


def test_partition_is_tight_where_one_block_rules():
    problem = made(n=6)
    sampling = partition([[0, 1, 2], [3, 4, 5]])
    form, _ = forms(problem, sampling)
    k = moments(problem, sampling).second
    for block in ([0, 1, 2], [3, 4, 5]):
        inside = form[np.ix_(block, block)]
        assert np.linalg.eigvalsh(inside)[-1] == pytest.approx(k[block[0]])


def test_big_sets_are_bounded_without_gram_matrices(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(constants, "LARGEST_GRAM", 0)
    for name in ("partition", "user"):
        for seed in range(4):
            bounds_hold(name, seed=seed)


def test_nice_goes_from_the_longest_row_to_the_whole_problem():
    """The sister paper's `L(τ) = n (τ − 1) / (τ (n − 1)) L + (n − τ) / (τ (n − 1)) L_max`."""
    problem = made(n=20, d=4, loss="logistic")
    smooth = problem.top_eigenvalue / 4
    longest = problem.squared_norms.max() / 4
    for tau in range(1, 21):
        known = 20 * (tau - 1) / (tau * 19) * smooth + (20 - tau) / (tau * 19) * longest
        second = moments(problem, nice(20, tau)).second
        assert second.max() / problem.gamma == pytest.approx(known)
        assert bool(moments(problem, nice(20, tau)).variance.max() < 1e-12) == (tau == 20)


@pytest.mark.parametrize("intercept", [False, True])
def test_top_eigenvalue_of_large_problems(intercept: bool):
    problem = made(n=700, d=400, intercept=intercept)
    a = problem.dense() * np.sqrt(problem.weights)[:, None]
    exact = np.linalg.norm(a, 2) ** 2
    for same in (problem, as_sparse(problem)):
        assert exact <= same.top_eigenvalue <= exact * (1 + 1e-5)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("problem.squared_norms / sampling.p", "problem.squared_norms"),
        ("own + problem.top_eigenvalue, own)", "own, own)"),
        ("(c * problem.top_eigenvalue if tau > 1 else 0.0)", "0.0"),
        ("second[members] += p * bound", "second[members] += p * bound / len(members)"),
    ],
)
def test_a_wrong_constant_is_seen(old: str, new: str):
    with mutated("train.saga.constants", old, new), pytest.raises(AssertionError):
        for name in SAMPLINGS:
            bounds_hold(name)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: singles([0.5, 0.6]), "sum to 1"),
        (lambda: singles([1.0, 0.0]), "positive"),
        (lambda: nice(5, 6), "1 to 5"),
        (lambda: independent([0.5, 0.0]), "above 0"),
        (lambda: partition([[0, 1], [1, 2]]), "row 1 is in 2"),
        (lambda: user_sets(3, [[0, 1]], [1.0]), "row 2 is in no set"),
        (lambda: user_sets(2, [[0, 0, 1]], [1.0]), "twice"),
        (lambda: user_sets(2, [[0, 2]], [1.0]), "0 to 2 of 2"),
        (lambda: user_sets(2, [[0, 1]], [1.0], [[1.0, 1.1]]), "row 1 is 1.1"),
        (lambda: user_sets(2, [[0, 1]], [1.0], [[1.0]]), "one number beside"),
        (lambda: moments(made(n=4), uniform(5)), "5 rows, the problem has 4"),
    ],
)
def test_what_is_no_proper_sampling_is_refused(make, says: str):
    with pytest.raises(BitwrightError, match=says):
        make()
