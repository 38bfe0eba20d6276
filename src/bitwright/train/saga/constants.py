"""Expected smoothness of a sampling on a problem, the step it allows and the rate that follows.

Derived in docs/decisions/0015-saga.md. For scalars δ_i, with rows a_i and weights λ_i,

    E‖Σ_{i∈S} θ_S^i λ_i δ_i a_i‖²            <= Σ λ_i K_i δ_i²      (second moment)
    E‖Σ_{i∈S} θ_S^i λ_i δ_i a_i − its mean‖² <= Σ λ_i R_i δ_i²      (variance).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from bitwright.errors import BitwrightError
from bitwright.train.saga.penalty import Vector
from bitwright.train.saga.problem import Problem
from bitwright.train.saga.samplings import Independent, Nice, Sampling, Sets, Singles

#: Gram matrices of sets up to this size are decomposed; larger sets get |C| θ² λ ‖a‖² and the trace
LARGEST_GRAM = 400


class Moments(NamedTuple):
    """K and R, each [n]."""

    second: Vector
    variance: Vector


class Rate(NamedTuple):
    """The step, and what it promises: the mean Lyapunov value shrinks by `1 − rate` every step.

    `Ψ = ‖x − x*‖² + Σ lyapunov_i (J_i − J_i*)²`, J the table of derivatives.
    """

    step: float
    rate: float
    lyapunov: Vector


def moments(problem: Problem, sampling: Sampling) -> Moments:
    """K and R of a sampling on a problem's rows.

    Raises:
        BitwrightError: the sampling is of another number of rows.
    """
    rows = len(sampling.p)
    if rows != problem.n:
        raise BitwrightError(f"the sampling is of {rows} rows, the problem has {problem.n}")
    return _MOMENTS[type(sampling)](problem, sampling)


def _singles(problem: Problem, sampling: Singles) -> Moments:
    """`λ_i ‖a_i‖² / p_i`."""
    second = problem.weights * problem.squared_norms / sampling.p
    return Moments(second, second)


def _nice(problem: Problem, sampling: Nice) -> Moments:
    """`c σ + (n/τ − c) λ_i ‖a_i‖²`, `c = n (τ − 1) / (τ (n − 1))`; no σ in the variance: c <= 1."""
    n, tau = sampling.n, sampling.tau
    c = n * (tau - 1) / (tau * (n - 1)) if n > 1 else 1.0
    own = max(n / tau - c, 0.0) * problem.weights * problem.squared_norms
    return Moments(own + (c * problem.top_eigenvalue if tau > 1 else 0.0), own)


def _independent(problem: Problem, sampling: Independent) -> Moments:
    """`σ + (1/p_i − 1) λ_i ‖a_i‖²`."""
    own = (1 / sampling.p - 1) * problem.weights * problem.squared_norms
    return Moments(own + problem.top_eigenvalue, own)


def _sets(problem: Problem, sampling: Sets) -> Moments:
    """`Σ_{C∋i} p_C σ_C`, `σ_C = λ_max(Σ_{i∈C} θ_i² λ_i a_i a_iᵀ)`; bounds of it for big sets."""
    second = np.zeros(problem.n)
    for p, members, theta in sampling.sets():
        own = theta**2 * problem.weights[members] * problem.squared_norms[members]
        if len(members) <= LARGEST_GRAM:
            bound = np.full(len(members), _top(problem, members, theta))
        else:  # the trace, or β_i of the paper: each holds for all members, not the less of both
            spread = len(members) * own
            bound = spread if spread.max() <= own.sum() else np.full(len(members), own.sum())
        second[members] += p * bound
    return Moments(second, second)


def _top(problem: Problem, members: Any, theta: Vector) -> float:
    if problem.features.ndim == 3:
        return max(_top(one, members, theta) for one in problem.each_output())
    scale = theta * np.sqrt(problem.weights[members])
    rows: Any = problem.features[members]
    gram = rows @ rows.T
    full = ((gram.toarray() if problem.sparse else gram) + problem.intercept) * np.outer(
        scale, scale
    )
    return float(np.linalg.eigvalsh(full)[-1]) if len(members) else 0.0


_MOMENTS: dict[type, Callable[[Problem, Any], Moments]] = {
    Singles: _singles,
    Nice: _nice,
    Independent: _independent,
    Sets: _sets,
}


def share_of_coercivity(strong: float, curvature: float) -> float:
    """t: how much of `2⟨x − x*, ∇f(x) − ∇f(x*)⟩` pays for the noise; the rest for the rate.

    The rate goes with `t (μ_ψ + (1 − t) μ_f)`; 2/3, SAGA's classical step, where neither is known.
    """
    if curvature > 0:
        return min(1.0, (strong + curvature) / (2 * curvature))
    return 1.0 if strong > 0 else 2 / 3


def step_size(problem: Problem, sampling: Sampling, curvature: float = 0.0) -> Rate:
    """The largest step that the Lyapunov argument allows, and its rate.

    With `r(α) = 1 − (1 − 2 α (1 − t) μ_f) / (1 + α μ_ψ)²`, the largest α such that for all i

        r(α) < p_i   and   α ((1 + η) K_i + (1 + 1/η) R_i p_i / (p_i − r(α))) <= 2 t γ,

    η² the ratio of the largest R and K.

    Args:
        problem: the data; μ_ψ = l2, or 0 beside an intercept, which is not penalized.
        sampling: K, R and p are its own.
        curvature: μ_f, a lower bound on the curvature of f where iterates move.

    Returns:
        The step. The rate is 0 where neither μ is known: it converges, but nothing says how fast.
    """
    second, variance = moments(problem, sampling)
    strong = 0.0 if problem.intercept else problem.penalty.l2
    t = share_of_coercivity(strong, curvature)
    p, top = sampling.p, float(second.max())
    eta = max(np.sqrt(variance.max() / top), 1e-3) if top > 0 else 1.0

    def rate(step: float) -> float:
        return 1 - (1 - 2 * step * (1 - t) * curvature) / (1 + step * strong) ** 2

    weighted, noisy = variance * p, variance > 0  # without a variance the table is not used
    least = float(p[noisy].min()) if noisy.any() else math.inf
    all_noisy, limit = bool(noisy.all()), 2 * t * problem.gamma

    def fits(step: float) -> bool:
        r = rate(step)
        if r >= least or 2 * step * (1 - t) * curvature > 1:
            return False
        room = p - r if all_noisy else np.where(noisy, p - r, 1.0)
        need = (1 + eta) * second + (1 + 1 / eta) * (weighted / room)
        return bool(step * need.max() <= limit)

    low, high = 0.0, limit / top if top > 0 else 1.0
    if fits(high):
        low = high
    else:
        for _ in range(24):
            middle = (low + high) / 2
            low, high = (middle, high) if fits(middle) else (low, middle)
    r = rate(low)
    weights = problem.weights / (1 + low * strong) ** 2
    room = np.where(variance > 0, p - r, 1.0)
    lyapunov = (1 + 1 / eta) * low**2 * weights * variance / room
    return Rate(low, r, lyapunov)


def curvature(problem: Problem) -> float:
    """μ_f of a squared loss: the least eigenvalue of `Σ λ_i a_i a_iᵀ` that is not 0.

    It bounds the curvature wherever SAGA moves, if ψ keeps x in the span of the rows (none or L2,
    started at 0) or no eigenvalue is 0. Other losses: 0, as nothing is known without a bound on x.
    Cost: n d² and a decomposition.
    """
    if problem.loss != "squared":
        return 0.0
    rows = problem.dense() * np.sqrt(problem.weights)[:, None]
    values = np.linalg.svd(rows, compute_uv=False) ** 2
    positive = values[values > 1e-12 * values.max()]
    if len(positive) < problem.size and not problem.penalty.affine:
        return 0.0
    return float(positive.min())
