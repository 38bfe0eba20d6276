"""The parts of the benchmark of SAGA: right, as fast as promised, beside Quartz."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from harness import HERE, Rows
from saga_clock import clock
from saga_data import extra, newton, passes, problem, rows, spread
from saga_quartz import quartz
from saga_refit import refit

from bitwright.train import saga
from bitwright.train.saga import (
    Penalty,
    Problem,
    State,
    curvature,
    importance,
    independent,
    nice,
    partition,
    start,
    step_size,
    uniform,
    user_sets,
)
from bitwright.train.saga.samplings import Sampling

#: the function of the same name hides its package
solver = importlib.import_module("bitwright.train.saga.solver")


def _samplings(p: Problem) -> dict[str, Sampling]:
    n = p.n
    sets = [np.arange(0, n, 2), np.arange(1, n, 2), np.arange(n // 3, n)]
    return {
        "uniform": uniform(n),
        "importance": importance(p),
        "nice": nice(n, max(2, n // 3)),
        "partition": partition(np.array_split(np.arange(n), min(n, 3))),
        "independent": independent(np.linspace(0.2, 0.9, n)),
        "user": user_sets(n, sets, [0.3, 0.3, 0.4]),
    }


def unbiased(out: Rows, quick: bool) -> None:
    """The estimator's mean over all sets against the gradient, n = 2 … 8, every sampling."""
    worst: dict[str, float] = {}
    for n in range(2, 9):
        rng = np.random.default_rng(n)
        p = Problem(rng.standard_normal((n, 4)), rng.standard_normal(n))
        gradients, table = rng.standard_normal((2, n, 4))
        for name, law in _samplings(p).items():
            mean = np.zeros(4)
            for q, members, theta in law.sets():
                weights = (theta * p.weights[members])[:, None]
                mean += q * (p.weights @ table + (weights * (gradients - table)[members]).sum(0))
            error = float(np.abs(mean - p.weights @ gradients).max())
            worst[name] = max(error, worst.get(name, 0.0))
    for name, error in worst.items():
        out.add(f"bias of {name}, n <= 8", error, "<= 1e-14", error <= 1e-14)


def exact(out: Rows, quick: bool) -> None:
    """`‖x − x*‖_∞` against Newton's method."""
    for name in ("german", *extra()) if quick else ("german", "a9a", "mnist", *extra()):
        for loss in ("squared", "logistic"):
            p = problem(rows(name), loss, 1e-3 if name == "mnist" else None)
            known = newton(p)
            # the error is at most the gradient over l2
            tolerance = 8e-11 * p.penalty.l2
            found = saga(p, importance(p), stop="gradient", tolerance=tolerance, max_passes=3000)
            error = float(np.abs(found.x - known).max())
            out.add(
                f"{loss} on {name}: solution", error, "<= 1e-10 of Newton's", error <= 1e-10,
                passes=round(found.state.passes), gap=found.gap, sampling="importance",
            )  # fmt: skip


def _paths(p: Problem, law: Sampling, goal: np.ndarray, mu: float, seeds: int) -> Any:
    """Ψ by seed and block, promised steps a block, rate."""
    rate = step_size(p, law, mu)
    table = p.derivatives(p.forward(goal))
    found = []
    for seed in range(seeds):
        path: list[float] = []

        def psi(state: State, path: list[float] = path) -> None:
            far = state.x - goal
            path.append(float(far @ far + rate.lyapunov @ (state.table - table) ** 2))

        psi(start(p))
        saga(p, law, tolerance=-1, max_passes=61, seed=seed, progress=psi, curvature=mu)
        found.append(path)
    shortest = min(map(len, found))
    return np.array([path[:shortest] for path in found]), rate


def rate(out: Rows, quick: bool) -> None:
    """The mean Ψ of 20 seeds over what is promised, its largest ratio and the ratio of slopes."""
    x, y = rows("german")
    half = np.hstack([x, x[:, :10]])
    cases = {
        "logistic, strongly convex": (problem((x, y)), None),
        "ridge, strongly convex": (problem((x, y), "squared", 1e-2), None),
        "least squares of deficient rank": (Problem(half, y), np.linalg.pinv(half) @ y),
    }
    for case, (p, goal) in cases.items():
        mu = curvature(p) if goal is not None else 0.0
        goal = newton(p) if goal is None else goal
        steps = max(p.n, solver.BLOCK_ROWS)
        for name, law in _samplings(p).items():
            law = nice(p.n, 16) if name == "nice" else law
            law = independent(np.full(p.n, 0.01)) if name == "independent" else law
            found, promised = _paths(p, law, goal, mu, 3 if quick else 20)
            count = math.ceil(steps / law.mean_size)
            bound = found[0, 0] * (1 - promised.rate) ** (count * np.arange(found.shape[1]))
            mean = found.mean(0)
            kept = mean > 1e-22 * mean[0]  # below, rounding rules
            ratio = float((mean / bound)[kept][1:].max())
            last = int(np.flatnonzero(kept)[-1])
            slope = math.log(mean[last] / mean[0]) / math.log(bound[last] / bound[0])
            out.add(
                f"{case}, {name}: mean Ψ over the promise", ratio, "<= 1", ratio <= 1 + 1e-12,
                slope=round(slope, 3), seeds=len(found), promised_rate=promised.rate,
            )  # fmt: skip
    _growth(out, quick)
    _sizes(out, quick)


def _growth(out: Rows, quick: bool) -> None:
    """Quadratic growth of unknown constant (L1 on german with ten columns twice): restarts."""
    x, y = rows("german")
    for l1 in (1e-3, 1e-2):
        p = Problem(np.hstack([x, x[:, :10]]), y, penalty=Penalty(l1=l1))
        law, found = uniform(p.n), {}
        best = saga(p, law, tolerance=1e-14, max_passes=5000).value
        for restart in (False, True):
            seeds = range(1 if quick else 5)
            each = [passes(p, law, best, 1e-8, seed=s, restart=restart) for s in seeds]
            found[restart] = float(np.mean(each))
        out.add(
            f"passes to 1e-8, l1 = {l1:g}, columns twice: with restarts", found[True], "", None,
            "without", found[False],
        )  # fmt: skip


def _sizes(out: Rows, quick: bool) -> None:
    """τ-nice on german: gradients per row to 1e-8, promised (for Ψ) and measured."""
    p = problem(rows("german"))
    best = p.value(newton(p))
    taus = [1, 10, 100, 1000] if quick else [1, 2, 4, 8, 16, 32, 64, 125, 250, 500, 1000]
    promised, measured = [], []
    for tau in taus:
        law = nice(p.n, tau)
        promised.append(tau / p.n * math.log(1e8) / step_size(p, law).rate)
        measured.append(
            float(np.mean([passes(p, law, best, 1e-8, seed=s) for s in range(1 if quick else 3)]))
        )
        out.add(
            f"passes to 1e-8 with sets of {tau} on german", measured[-1], "<= the promise",
            measured[-1] <= promised[-1], "promised", promised[-1],
        )  # fmt: skip
    if not quick:
        _draw(taus, promised, measured)


def _draw(taus: list[int], promised: list[float], measured: list[float]) -> None:
    """The curve as `results/saga_sizes.svg`, both axes logarithmic."""
    low, high = min(measured) / 1.3, max(promised) * 1.3

    def at(tau: float, value: float) -> tuple[float, float]:
        across = 70 + 500 * math.log(tau) / math.log(taus[-1])
        up = 330 - 300 * math.log(value / low) / math.log(high / low)
        return round(across, 1), round(up, 1)

    parts = []
    for name, values, colour in (("promised", promised, "#999"), ("measured", measured, "#06c")):
        points = [at(t, v) for t, v in zip(taus, values, strict=True)]
        path = " ".join(f"{x},{y}" for x, y in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        x, y = points[len(points) // 2]
        parts.append(f'<text x="{x}" y="{y - 8}" fill="{colour}">{name}</text>')
    parts += [f'<text x="{at(t, low)[0]}" y="350" text-anchor="middle">{t}</text>' for t in taus]
    marks = [m for e in range(6) for m in (10**e, 3 * 10**e) if low <= m <= high]
    parts += [f'<text x="60" y="{at(1, m)[1] + 4}" text-anchor="end">{m}</text>' for m in marks]
    parts.append('<text x="320" y="375" text-anchor="middle">rows in a set τ</text>')
    parts.append('<text x="70" y="18">passes to 1e-8 on german, logistic, l2 = 1/n</text>')
    head = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 600 385" font-family="sans-serif"'
    text = f'{head} font-size="12">\n' + "\n".join(parts) + "\n</svg>\n"
    (HERE / "results" / "saga_sizes.svg").write_text(text, encoding="utf-8")


def importances(out: Rows, quick: bool) -> None:
    """Passes to 1e-8 by importance over those by uniform sampling, beside the ratio promised.

    l2 is such that κ = 10 n for the longest row. Of squared losses the curvature is known and used.
    """
    sets = ("german unscaled", "a9a rescaled", "synthetic", "isotropic")
    for name in (*(("synthetic",) if quick else sets), *extra()):
        for loss in ("squared", "logistic"):
            data = spread(name, quick)
            base = problem(data, loss)
            l2 = float(base.squared_norms.max()) / base.gamma / base.n / 10
            p = problem(data, loss, l2=l2)
            mu = curvature(p) if loss == "squared" else 0.0
            best = p.value(newton(p))
            laws = {"uniform": uniform(p.n), "importance": importance(p, mu)}
            promised = [step_size(p, law, mu).rate for law in laws.values()]
            seeds = range(1 if quick else 3)
            found = {
                k: float(np.mean([passes(p, law, best, 1e-8, seed=s, curvature=mu) for s in seeds]))
                for k, law in laws.items()
            }
            ratio, known = found["importance"] / found["uniform"], promised[0] / promised[1]
            lengths = p.squared_norms
            out.add(
                f"passes on {name}, {loss}: importance / uniform", ratio, "<= promised × 1.2",
                ratio <= 1.2 * known, "promised", known, passes=found,
                longest_over_mean=round(float(lengths.max() / lengths.mean()), 2),
            )  # fmt: skip


PARTS: dict[str, Callable[[Rows, bool], None]] = {
    "unbiased": unbiased,
    "exact": exact,
    "rate": rate,
    "importance": importances,
    "quartz": quartz,
    "clock": clock,
    "refit": refit,
}
