"""SAGA with arbitrary sampling (Qian, Qu, Richtárik, arXiv 1901.08669) for linear models.

A step draws a set S, and with the table J of the derivatives last seen of every row

    g = Σ_j λ_j J_j a_j + Σ_{i∈S} θ_S^i λ_i (φ'(a_i·x) − J_i) a_i,   x ← prox_{αψ}(x − α g),
    J_i ← φ'(a_i·x), i ∈ S.

θ makes g unbiased for any proper sampling; α comes from the data
(docs/decisions/0015-saga.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from bitwright.errors import BitwrightError
from bitwright.train.saga.constants import Rate, step_size
from bitwright.train.saga.penalty import Vector
from bitwright.train.saga.problem import Problem
from bitwright.train.saga.samplings import Draw, Sampling, Singles
from bitwright.train.saga.state import State, load_state, start

#: rows seen in a call of a kernel, at least, so that small problems do not wait for Python
BLOCK_ROWS = 5000
#: the table's mean is summed anew so often, free of what rounding has added
REFRESH_BLOCKS = 8


@dataclass(frozen=True)
class Solution:
    """What was found, and how sure that is.

    Args:
        x: [size] the solution, an intercept last; [size, k] for k classes.
        value: P(x).
        gap: duality gap, an upper bound on P(x) − min P; infinite where no dual point is at hand.
        gradient_map: `‖x − prox(x − α ∇f(x))‖ / α`.
        converged: whether the tolerance was met.
        rate: step and predicted rate.
        state: to go on from.
    """

    x: Vector
    value: float
    gap: float
    gradient_map: float
    converged: bool
    rate: Rate
    state: State


def saga(
    problem: Problem,
    sampling: Sampling,
    *,
    tolerance: float = 1e-9,
    stop: str = "auto",
    max_passes: float = 1000,
    curvature: float = 0.0,
    restart: bool = False,
    start_from: Vector | State | None = None,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    progress: Callable[[State], None] | None = None,
) -> Solution:
    """Minimize `Σ λ_i φ(a_i·x + b + o_i, y_i) + ψ(x)`.

    >>> import numpy as np
    >>> from bitwright.train.saga import Penalty, Problem, uniform
    >>> problem = Problem(np.eye(2), [1.0, 2.0], penalty=Penalty(l2=0.5))
    >>> saga(problem, uniform(2)).x.round(4)
    array([0.5, 1. ])

    Args:
        problem: data, loss and regularizer.
        sampling: which rows a step sees; :func:`importance` is the fastest where rows differ.
        tolerance: of what `stop` names.
        stop: `gap`, `gradient` (the norm of the gradient map), or `auto`: the gap where there is
            one.
        max_passes: gradients per row, at most.
        curvature: a lower bound μ_f on the curvature of f, if known (:func:`curvature`).
        restart: adaptive restarts, for an unknown quadratic growth: see :func:`_restart`.
        start_from: where to start; a :class:`State` goes on as if never interrupted.
        seed: of the sets drawn.
        checkpoint: an `.npz` that is written after every block and gone on from if it is there.
        progress: called with the state after every block of steps; its arrays are ours.

    Returns:
        The last iterate; `converged` says whether the tolerance was met.

    Raises:
        BitwrightError: an unknown `stop`, or a sampling, start or checkpoint of another problem.
    """
    if stop not in ("auto", "gap", "gradient"):
        raise BitwrightError(f"cannot stop by {stop!r}; give auto, gap or gradient")
    rate = step_size(problem, sampling, curvature)
    state = _begin(problem, start_from, checkpoint)
    step = rate.step
    steps = max(1, math.ceil(max(problem.n, BLOCK_ROWS) / sampling.mean_size))
    kernel = _kernel(problem, sampling, step)
    measured = _measure(problem, state, step)
    while not (done := _enough(measured, stop, tolerance)) and state.passes < max_passes:
        rng = np.random.default_rng([seed, state.block])
        draw = sampling.draw(rng, steps)
        kernel(draw, state)
        state.block += 1
        state.passes += len(draw.members) / problem.n
        if state.block % REFRESH_BLOCKS == 0:
            state.mean = problem.adjoint(state.table)
        if restart:
            _restart(problem, state, step, rng)
        if not np.isfinite(state.x).all():
            raise BitwrightError("SAGA left the finite numbers; scale the features down")
        # the table's own mean is nearly the gradient: a look at all rows only when it says so
        if _near(problem, state, step, stop, tolerance) or state.passes >= max_passes:
            measured = _measure(problem, state, step)
        if checkpoint is not None:
            state.save(checkpoint)
        if progress:
            progress(state)
    gap, norm = measured
    value = problem.value(state.x)
    return Solution(state.x.copy(), value, gap, norm, done, rate, state)


def _begin(problem: Problem, given: Vector | State | None, checkpoint: str | Path | None) -> State:
    if checkpoint is not None and Path(checkpoint).is_file():
        return load_state(checkpoint, problem)
    if not isinstance(given, State):
        return start(problem, given)
    if given.x.shape != problem.shape or given.table.shape != problem.targets.shape:
        raise BitwrightError("the state to start from is of a problem of another shape")
    return replace(given, x=given.x.copy(), table=given.table.copy(), mean=given.mean.copy())


def _kernel(problem: Problem, sampling: Sampling, step: float) -> Callable[[Draw, State], None]:
    """The loop for this kind of rows, sets and regularizer, in place on a state."""
    from bitwright.train.saga import kernels, kernels_classes, kernels_sparse

    penalty, rows, keep = problem.penalty, problem.features, problem.weights
    how = (step, float(penalty.l1), float(penalty.l2), float(penalty.lower), float(penalty.upper))
    logistic, many = problem.loss == "logistic", problem.loss == "multinomial"
    model = (problem.targets, problem.offsets, logistic, problem.intercept, how)
    data: tuple[Any, ...] = (rows,)
    if problem.sparse:
        unsigned = np.uint32 if rows.indices.dtype == np.int32 else np.uint64
        if not rows.nnz:  # the loops look ahead at a first entry
            rows = sparse.csr_array(([0.0], [0], np.append(rows.indptr[:-1], 1)), rows.shape)
        data = (rows.data, rows.indices.view(unsigned), rows.indptr.astype(np.uint64))
    alone = isinstance(sampling, Singles) and (penalty.affine or not problem.sparse) and not many
    if many:
        classes = kernels_classes
        loop = classes.sparse_classes if problem.sparse else classes.dense_classes
    elif problem.sparse:
        loop = kernels_sparse.sparse_singles if alone else kernels_sparse.sparse_sets
    else:
        loop = kernels.dense_singles if alone else kernels.dense_sets

    def call(draw: Draw, state: State) -> None:
        push = draw.theta * keep[draw.members]
        members = draw.members.view(np.uint64)
        sets = (members,) if alone else (draw.starts, members)
        loop(*data, *model, *sets, push, keep, state.x, state.table, state.mean)

    return call


def _measure(problem: Problem, state: State, step: float) -> tuple[float, float]:
    """Duality gap and gradient map at x, from all rows."""
    u = problem.derivatives(problem.forward(state.x))
    norm = problem.gradient_map(state.x, problem.adjoint(u), step)
    return problem.gap(state.x, u), norm


def _enough(measured: tuple[float, float], stop: str, tolerance: float) -> bool:
    gap, norm = measured
    by_gap = stop == "gap" or (stop == "auto" and math.isfinite(gap))
    return (gap if by_gap else norm) <= tolerance


def _near(problem: Problem, state: State, step: float, stop: str, tolerance: float) -> bool:
    """Whether the gradient that the table remembers would let the run stop."""
    norm = problem.gradient_map(state.x, state.mean, step)
    strong = problem.penalty.l2
    if stop == "gradient" or not strong or problem.intercept:
        return norm <= tolerance or (stop != "gradient" and _gap_possible(problem))
    return norm**2 / (2 * strong) <= 4 * tolerance


def _gap_possible(problem: Problem) -> bool:
    return not problem.intercept and problem.penalty != type(problem.penalty)()


def _restart(problem: Problem, state: State, step: float, rng: np.random.Generator) -> None:
    """Adaptive restart: at a random block of a stage the table is made anew at x.

    Under quadratic functional growth a stage that is long enough halves the mean distance, from a
    random iterate and a fresh table (docs/decisions/0015-saga.md). How long is not known: where a
    stage did not halve the gradient map, the next may be twice as long.
    """
    left, most, norm = state.stage
    if left > 1:
        state.stage = left - 1, most, norm
        return
    state.table = problem.derivatives(problem.forward(state.x))
    state.mean = problem.adjoint(state.table)
    state.passes += 1
    found = problem.gradient_map(state.x, state.mean, step)
    if found > norm / 2:
        most = 2 * most
    state.stage = int(rng.integers(1, most + 1)), most, found
