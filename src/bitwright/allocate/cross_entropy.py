"""The cross-entropy method (Rubinstein, Methodology and Computing 1, 1999) over ratios.

    point ~ N(μ, diag σ²);   μ, σ ← (1 − s)·(μ, σ) + s·(mean, standard deviation of the elites)

over the same points as CW-HAWQ's agent, a yardstick without a network that learns. The first
generation is random search's own points; the later ones are drawn from the Gaussian of the elites,
with the best point so far among them.
"""

from __future__ import annotations

from typing import Unpack

import numpy as np

from bitwright.allocate.problem import Problem
from bitwright.allocate.random_ratios import WARM_UP, random_points
from bitwright.allocate.ratios import Points
from bitwright.allocate.search import Evaluate, Evaluator, SearchOptions, SearchResult

#: points of a generation, those that make the next, and the share s of them in it
_GENERATION, _ELITES, _STEP = 12, 4, 0.7
#: least standard deviation: generations never collapse
_FLOOR = 0.03
#: generations without a plan that was not met before, after which nothing new is expected
_PATIENCE = 10


def cross_entropy(
    problem: Problem, order: np.ndarray, evaluate: Evaluate, **options: Unpack[SearchOptions]
) -> SearchResult:
    """The best plan evaluated; arguments as for :func:`cw_hawq`.

    Generations have twelve points whatever `batch`, which changes nothing but how many are
    evaluated at a time.
    """
    run = Evaluator(evaluate, **options)
    space = Points(problem, order, run.start, "cross-entropy")
    rng, m = np.random.default_rng(run.seed + 1), len(space)
    points = random_points(m, max(1, min(WARM_UP, run.evaluations // 4)), run.seed)
    values = _evaluated(run, space, points)
    centre, spread = np.zeros(m), np.full(m, 1 / np.sqrt(3))  # of the uniform first points
    best, idle = (points[int(np.argmin(values))], min(values)), 0
    while run.left > 0 and idle < _PATIENCE:
        elites = points[np.argsort(values, kind="stable")[:_ELITES]]
        centre = (1 - _STEP) * centre + _STEP * elites.mean(axis=0)
        spread = (1 - _STEP) * spread + _STEP * elites.std(axis=0)
        # a plan met again is free: wider until something new is met
        wide = np.maximum(spread, _FLOOR) * 1.5**idle
        points = np.clip(rng.normal(centre, wide, (_GENERATION, m)), -1, 1)
        known = len(run.history)
        values = _evaluated(run, space, points)
        idle = idle + 1 if len(run.history) == known else 0
        points = np.concatenate([best[0][None], points[: len(values)]])
        values = [best[1], *values]
        best = points[int(np.argmin(values))], min(values)
    return run.result()


def _evaluated(run: Evaluator, space: Points, points: np.ndarray) -> list[float]:
    """Values of the points, of as many as the evaluations allow."""
    values: list[float] = []
    while len(values) < len(points) and run.left > 0:
        some = points[len(values) : len(values) + run.next]
        values += run.plans([space.plan(p) for p in some])
    return values
