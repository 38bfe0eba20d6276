"""Proper samplings by name: uniform, importance, τ-nice, independent, partition, the user's own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from bitwright.errors import BitwrightError
from bitwright.train.saga.penalty import Vector
from bitwright.train.saga.problem import Problem
from bitwright.train.saga.samplings import Independent, Indices, Nice, Sets, Singles

#: least probability over the mean one in importance sampling: where l2 is all the curvature there
#: is, and where f may curve more
FLOORS = (0.5, 0.9)


def uniform(n: int) -> Singles:
    """One row a step, all alike."""
    return Singles(np.full(n, 1 / n))


def importance(problem: Problem, curvature: float = 0.0) -> Singles:
    """One row a step, `p_i ∝ λ_i L_i 2/t + 2 μ_ψ + 2 (1 − t) μ_f`: all rows allow the same step.

    L_i = ‖a_i‖²/γ, μ_ψ = l2, μ_f = `curvature`; t as :func:`bitwright.train.saga.step_size` has it.
    No row is seen less often than :data:`FLOORS` of the mean (docs/decisions/0015-saga.md).
    """
    from bitwright.train.saga.constants import share_of_coercivity

    strong = 0.0 if problem.intercept else problem.penalty.l2
    t = share_of_coercivity(strong, curvature)
    wanted = 2 / t * problem.weights * problem.squared_norms / problem.gamma
    wanted = wanted + 2 * strong + 2 * (1 - t) * curvature
    # where f curves more than is known, the table's age rules: short rows are visited all the same
    floor = FLOORS[0] if curvature > 0 or _weakest(problem) <= strong else FLOORS[1]
    wanted = np.maximum(wanted, floor * wanted.mean())
    total = wanted.sum()
    return Singles(wanted / total) if total > 0 else uniform(problem.n)


def _weakest(problem: Problem) -> float:
    """The least curvature that f could have at 0: of one column by itself, on a thousand rows."""
    some = slice(None, None, max(1, problem.n // 1000))
    rows: Any = problem.features[some]
    squares = rows.multiply(rows) if problem.sparse else rows**2
    means = np.asarray(squares.mean(0))
    least = float(means[means > 0].min(initial=math.inf))
    return least * float(problem.weights.sum()) / problem.gamma


def singles(p: ArrayLike) -> Singles:
    """One row a step, with the probabilities given.

    Raises:
        BitwrightError: they are not positive or do not sum to 1.
    """
    return Singles(_law(p))


def nice(n: int, tau: int) -> Nice:
    """Sets of `tau` rows, all equally likely.

    Raises:
        BitwrightError: tau is not within 1 … n.
    """
    if not 1 <= tau <= n:
        raise BitwrightError(f"sets of {tau} rows of {n}; give 1 to {n}")
    return Nice(n, tau)


def independent(p: ArrayLike) -> Independent:
    """Every row by itself with its own probability.

    Raises:
        BitwrightError: a probability is not within (0, 1].
    """
    found = np.asarray(p, dtype=np.float64)
    if found.ndim != 1 or not ((found > 0) & (found <= 1)).all():
        raise BitwrightError("every row's probability must be above 0 and at most 1")
    return Independent(found)


def partition(blocks: Sequence[ArrayLike], p: ArrayLike | None = None) -> Sets:
    """One of the blocks of a partition of the rows a step; equally likely unless p says otherwise.

    Raises:
        BitwrightError: a row is missing or in two blocks.
    """
    counts = np.bincount(np.concatenate([np.asarray(b, dtype=np.int64) for b in blocks]))
    if (counts != 1).any():
        row = int(np.flatnonzero(counts != 1)[0])
        raise BitwrightError(f"row {row} is in {counts[row]} blocks; a partition has it in one")
    law = np.full(len(blocks), 1 / len(blocks)) if p is None else p
    return user_sets(len(counts), blocks, law)


def user_sets(
    n: int, sets: Sequence[ArrayLike], p: ArrayLike, theta: Sequence[ArrayLike] | None = None
) -> Sets:
    """Any proper sampling: its sets, their probabilities, and θ beside each set's members.

    Raises:
        BitwrightError: p is no law, a row is in no set, twice in one, or its θ does not correct
            the bias.
    """
    law = _law(p)
    groups = [np.asarray(s, dtype=np.int64) for s in sets]
    if len(groups) != len(law):
        raise BitwrightError(f"{len(groups)} sets but {len(law)} probabilities")
    members = np.concatenate(groups)
    if len(members) and not 0 <= members.min() <= members.max() < n:
        raise BitwrightError(f"sets hold rows {members.min()} to {members.max()} of {n}")
    if any(len(np.unique(g)) < len(g) for g in groups):
        raise BitwrightError("a set holds a row twice")
    starts = np.concatenate([[0], np.cumsum([len(g) for g in groups])])
    each = np.repeat(law, np.diff(starts))
    inside = np.bincount(members, weights=each, minlength=n)
    if (inside <= 0).any():
        raise BitwrightError(f"row {int(np.argmin(inside))} is in no set: not a proper sampling")
    given = 1 / inside[members] if theta is None else _joined(theta, groups)
    mean = np.bincount(members, weights=each * given, minlength=n)
    if (abs(mean - 1) > 1e-9).any():
        row = int(np.argmax(abs(mean - 1)))
        raise BitwrightError(f"Σ p_C θ_C of row {row} is {mean[row]:.6g}; it must be 1")
    return Sets(n, starts, members, given, law)


def _joined(theta: Sequence[ArrayLike], groups: Sequence[Indices]) -> Vector:
    found = [np.asarray(t, dtype=np.float64) for t in theta]
    if [t.shape for t in found] != [g.shape for g in groups]:
        raise BitwrightError("θ needs one number beside every member of every set")
    return np.concatenate(found)


def _law(p: Any) -> Vector:
    found = np.asarray(p, dtype=np.float64)
    if found.ndim != 1 or not (found > 0).all() or abs(found.sum() - 1) > 1e-9:
        raise BitwrightError(f"probabilities must be positive and sum to 1, got {found.sum():.6g}")
    return found / found.sum()
