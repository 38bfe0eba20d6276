"""Time to a suboptimality: SAGA against scikit-learn's solvers, alternating, one thread."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable

import numpy as np
from harness import Rows
from saga_data import extra, newton, problem, rows
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from bitwright.train import saga
from bitwright.train.saga import Problem, importance

PEERS = ("saga", "sag", "liblinear", "lbfgs")
#: passes or iterations that no solver gets more of
MOST = 3000


def _ours(p: Problem, passes: int) -> np.ndarray:
    """From raw rows: the problem, its constants and the solve are all timed."""
    fresh = Problem(p.features, p.targets, p.loss, p.penalty)
    return saga(fresh, importance(fresh), tolerance=-1, max_passes=passes).x


def _theirs(p: Problem, solver: str, iterations: int) -> np.ndarray:
    model = LogisticRegression(
        C=1 / (p.penalty.l2 * p.n), solver=solver, fit_intercept=False, tol=1e-20,
        max_iter=iterations, random_state=0,
    )  # fmt: skip
    return model.fit(p.features, p.targets).coef_[0]


def _needed(fit: Callable[[int], np.ndarray], good: Callable[[np.ndarray], bool]) -> int:
    """The fewest passes or iterations that are good, by doubling and bisection."""
    high = 4
    while not good(fit(high)):
        high *= 2
        if high > MOST:
            return 0
    low = high // 2 if high > 4 else 1
    while high - low > max(1, low // 30):
        middle = (low + high) // 2
        low, high = (low, middle) if good(fit(middle)) else (middle, high)
    return high


def clock(out: Rows, quick: bool) -> None:
    """Seconds of CPU and of the clock: least of the rounds; each solver gets what it needs."""
    ratios: dict[str, list[float]] = {peer: [] for peer in PEERS}
    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.simplefilter("ignore", ConvergenceWarning)
        warnings.simplefilter("ignore", FutureWarning)
        for name in (*(("german",) if quick else ("german", "a9a", "mnist")), *extra()):
            p = problem(rows(name), l2=1e-3 if name == "mnist" else None)
            best = p.value(newton(p))
            for target in (1e-6, 1e-9):
                _compare(out, name, p, best, target, ratios, 3 if quick else 5)
    for peer in ("saga", "sag"):
        mean = math.exp(np.mean(np.log(ratios[peer])))
        out.add(f"CPU of scikit-learn {peer} / ours, geometric mean", mean, ">= 2", mean >= 2)


def _compare(
    out: Rows, name: str, p: Problem, best: float, target: float,
    ratios: dict[str, list[float]], rounds: int,
) -> None:  # fmt: skip
    def good(x: np.ndarray) -> bool:
        return p.value(x) - best <= target

    solvers: dict[str, Callable[[int], np.ndarray]] = {"ours": lambda k: _ours(p, k)}
    for peer in PEERS:
        solvers[peer] = lambda k, peer=peer: _theirs(p, peer, k)
    needed = {key: _needed(fit, good) for key, fit in solvers.items()}
    cpu = {key: math.inf for key in solvers}
    wall = dict(cpu)
    for _ in range(rounds):
        for key, fit in solvers.items():
            if not needed[key]:
                continue
            begin, begin_cpu = time.perf_counter(), time.process_time()
            fit(needed[key])
            cpu[key] = min(cpu[key], time.process_time() - begin_cpu)
            wall[key] = min(wall[key], time.perf_counter() - begin)
    for peer in PEERS:
        ratio = cpu[peer] / cpu["ours"]
        if math.isfinite(ratio) and ratio > 0:  # else somebody needs more than MOST
            ratios[peer].append(ratio)
        bar = ">= 1.3" if peer in ("saga", "sag") else ""
        out.add(
            f"{name} to {target:g}: CPU of scikit-learn {peer} / ours",
            ratio if math.isfinite(ratio) else None, bar, ratio >= 1.3 if bar else None, peer,
            cpu[peer] if math.isfinite(ratio) else None,
            ours_s=round(cpu["ours"], 5) if needed["ours"] else None,
            wall_ratio=round(wall[peer] / wall["ours"], 3) if math.isfinite(ratio) else None,
            passes={"ours": needed["ours"], peer: needed[peer]},
        )  # fmt: skip
