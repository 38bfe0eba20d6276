"""The yardstick of CW-HAWQ: ratios drawn at random around the same start."""

from __future__ import annotations

from typing import Unpack

import numpy as np

from bitwright.allocate.problem import Problem
from bitwright.allocate.ratios import Points
from bitwright.allocate.search import Evaluate, Evaluator, SearchOptions, SearchResult

#: first points that all searches over ratios share
WARM_UP = 25


def random_points(m: int, count: int, seed: int) -> np.ndarray:
    """float64 [count, m], uniform in [−1, 1]; the first is zero: the start itself."""
    points = np.random.default_rng(seed).uniform(-1, 1, (count, m))
    points[:1] = 0.0
    return points


def random_ratios(
    problem: Problem, order: np.ndarray, evaluate: Evaluate, **options: Unpack[SearchOptions]
) -> SearchResult:
    """The best of random ratios; arguments as for :func:`cw_hawq`."""
    run = Evaluator(evaluate, **options)
    space = Points(problem, order, run.start, "random-ratios")
    points = random_points(len(space), 20 * run.evaluations, run.seed)
    used = 0
    while used < len(points) and run.left > 0:
        count = run.next
        run.plans([space.plan(p) for p in points[used : used + count]])
        used += count
    return run.result()
