"""The yardstick of CW-HAWQ: ratios drawn at random around the same start."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from bitwright.allocate.plan import Plan
from bitwright.allocate.problem import Problem
from bitwright.allocate.ratios import ratios_of
from bitwright.allocate.search import (
    Evaluate,
    EvaluateMany,
    Evaluation,
    Evaluator,
    SearchResult,
)

#: first points that all searches over ratios share
WARM_UP = 25


def starting_ratios(problem: Problem, start: Plan | None) -> np.ndarray:
    """The start plan's ratios, every width kept possible; equal shares without one."""
    m = len(problem.choices)
    if start is None:
        return np.full(m, 1 / m)
    return (ratios_of(problem, start) + 0.01) / (1 + 0.01 * m)


def random_points(m: int, count: int, seed: int) -> np.ndarray:
    """float64 [count, m], uniform in [−1, 1]; the first is zero: the start itself."""
    points = np.random.default_rng(seed).uniform(-1, 1, (count, m))
    points[:1] = 0.0
    return points


def random_ratios(
    problem: Problem,
    order: np.ndarray,
    evaluate: Evaluate,
    *,
    evaluations: int = 150,
    seed: int = 0,
    start: Plan | None = None,
    batch: int = 1,
    evaluate_many: EvaluateMany | None = None,
    log: Path | None = None,
    on_evaluation: Callable[[Evaluation], None] | None = None,
) -> SearchResult:
    """The best of `evaluations` random ratios; arguments as for :func:`cw_hawq`."""
    run = Evaluator(
        problem,
        order,
        starting_ratios(problem, start),
        evaluate,
        log,
        on_evaluation,
        method="random-ratios",
        evaluate_many=evaluate_many,
    )
    points = random_points(len(problem.choices), 20 * evaluations, seed)
    used = 0
    while used < len(points) and len(run.history) < evaluations:
        count = min(batch, evaluations - len(run.history))
        run.points(points[used : used + count])
        used += count
    return run.result()
