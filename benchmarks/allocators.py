"""Every allocator against enumeration, and the knapsack on 100,000 channels. A part of `search.py`.

Small problems are drawn with and without ties, disallowed widths, limits beside the budget, and
losses that rise with the width. All their plans are listed here by brute force, without the
package's own helpers. Every allocator must give a feasible plan; the exact ones the least loss, the
frontiers all pairs that no plan betters. What searches by evaluation reach with a few evaluations
is reported.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, cached_property

import harness
import numpy as np

from bitwright import allocate
from bitwright.allocate import Limit, Plan, Problem

#: problems of each allocator, of those with an agent of their own, and evaluations of a search
PROBLEMS, AGENTS_PROBLEMS, EVALUATIONS = 200, 50, 10
WIDTHS = (1, 2, 3, 4)


@dataclass(frozen=True, eq=False)
class Case:
    """A small problem; `layer` int64 [n] is the layer of each item."""

    problem: Problem
    layer: np.ndarray
    seed: int

    @property
    def order(self) -> np.ndarray:
        """Items by falling loss at the narrowest width per bit, layer by layer."""
        loss, cost = (self.sums(a[:, 0]) for a in (self.problem.loss, self.problem.cost))
        return np.argsort(-(loss / (1 + cost))[self.layer], kind="stable")

    @property
    def features(self) -> np.ndarray:
        """Two numbers of each layer for HAQ's agent."""
        return np.stack([self.sums(self.problem.loss[:, 0]), self.sums(self.problem.cost[:, 0])], 1)

    @cached_property
    def evaluations(self) -> int:
        """Half of the plans that random ratios meet: an agent looks long for what is not there."""
        options = {"evaluations": EVALUATIONS, "seed": self.seed}
        met = allocate.random_ratios(self.problem, self.order, _loss, **options)
        return (len(met.history) + 1) // 2

    def sums(self, values: np.ndarray) -> np.ndarray:
        """By layer."""
        return np.bincount(self.layer, values)


@cache
def case(seed: int) -> Case:
    """A random problem of two to six items, two to a layer; what varies is drawn too."""
    rng = np.random.default_rng(seed)
    n, m = int(rng.integers(2, 7)), len(WIDTHS)
    layer = np.arange(n) // 2
    loss = rng.exponential(size=(n, m))
    if rng.random() < 0.7:
        loss = -np.sort(-loss, axis=1)
    allowed = (rng.random((n, m)) < rng.choice([0.7, 1.0]))[layer]  # alike in a layer
    allowed[~allowed.any(axis=1), 0] = True
    cost = np.array(WIDTHS) * rng.integers(1, 10, (n, 1))
    cost *= rng.random((n, 1)) >= rng.choice([0.0, 0.3])  # some items cost nothing
    tie = layer if rng.random() < 0.4 else np.arange(n)
    names = tuple(f"layer{i // 2}[{i % 2}]" for i in range(n))
    problem = Problem(names, WIDTHS, loss, cost, 0, allowed, tie)
    least, most = cost[np.arange(n), allowed.argmax(1)].sum(), cost[:, -1].sum()
    problem = problem.with_budget(int(rng.integers(least, most + 1)))
    limits = []
    for i in range(rng.integers(0, 3)):
        along = np.sort(rng.exponential(size=(n, m)), axis=1)
        low, high = along[np.arange(n), allowed.argmax(1)].sum(), along[:, -1].sum()
        limits.append(Limit(f"limit{i}", "J", along, low + rng.random() * (high - low)))
    return Case(problem.with_limits(*limits), layer, seed)


def every(problem: Problem, order: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Cost and loss of all plans within ties and limits; along an order never widening."""
    n, m = problem.loss.shape
    choice = np.array(list(itertools.product(range(m), repeat=n)))
    rows = np.arange(n)
    kept = problem.allowed[rows, choice].all(1)
    for i, tie in enumerate(problem.tie):
        kept &= choice[:, i] == choice[:, np.argmax(problem.tie == tie)]
    for limit in problem.limits:
        kept &= limit.cost[rows, choice].sum(1) <= limit.bound * (1 + 1e-12)
    if order is not None:
        kept &= (np.diff(choice[:, order], axis=1) <= 0).all(1)
    choice = choice[kept]
    return problem.cost[rows, choice].sum(1), problem.loss[rows, choice].sum(1)


def least_loss(problem: Problem) -> float:
    """Of all plans within the budget."""
    cost, loss = every(problem)
    return float(loss[cost <= problem.budget].min())


def nondominated(cost: np.ndarray, loss: np.ndarray) -> list[tuple[int, float]]:
    """Pairs that no other betters, by rising cost."""
    found: list[tuple[int, float]] = []
    for i in np.lexsort((loss, cost)):
        if not found or loss[i] < found[-1][1] - 1e-12:
            found.append((int(cost[i]), float(loss[i])))
    return found


def feasible(problem: Problem, plan: Plan) -> bool:
    """Whether a plan keeps budget, limits, ties and allowed widths, by its choices alone."""
    rows, choice = np.arange(len(problem.names)), plan.choice
    return bool(
        problem.cost[rows, choice].sum() <= problem.budget
        and problem.allowed[rows, choice].all()
        and all(len(set(choice[problem.tie == t])) == 1 for t in problem.tie)
        and all(li.cost[rows, choice].sum() <= li.bound * (1 + 1e-12) for li in problem.limits)
    )


def _loss(plan: Plan) -> float:
    return plan.loss


def _searched(search: Callable[..., allocate.SearchResult], *also: str) -> Callable[[Case], Plan]:
    """A search by evaluation as an allocator; `also` names what of the case it takes."""

    def found(case: Case) -> Plan:
        more = [getattr(case, name) for name in also]
        options = {"evaluations": case.evaluations, "seed": case.seed}
        return search(case.problem, *more, _loss, **options).plan

    return found


ALLOCATORS: dict[str, Callable[[Case], Plan]] = {
    "uniform": lambda c: allocate.uniform(c.problem),
    "knapsack": lambda c: allocate.knapsack(c.problem),
    "layers": lambda c: allocate.layers(c.problem, c.layer),
    "ilp": lambda c: allocate.ilp(c.problem),
    "brute_force": lambda c: allocate.brute_force(c.problem),
    "frontier_dp": lambda c: allocate.frontier_dp(c.problem).plan(c.problem.budget),
    "pareto": lambda c: allocate.pareto(c.problem, c.order).plan(c.problem.budget),
    "hawq": lambda c: allocate.hawq(c.problem, c.layer, c.sums(c.problem.loss[:, 0])),
    "random_ratios": _searched(allocate.random_ratios, "order"),
    "cross_entropy": _searched(allocate.cross_entropy, "order"),
    "local_moves": _searched(allocate.local_moves, "layer"),
    "cw_hawq": _searched(allocate.cw_hawq, "order"),
    "haq": _searched(allocate.haq, "layer", "features"),
}
EXACT = ("knapsack", "layers", "ilp", "brute_force", "frontier_dp")
#: one width a layer, whatever the problem's own ties
BY_LAYER = ("layers", "hawq", "haq")
AGENTS = ("cw_hawq", "haq")


def allocators(rows: harness.Rows, quick: bool) -> None:
    """Feasible, optimal, frontiers; then the large knapsack."""
    for name in ALLOCATORS:
        full, few = (AGENTS_PROBLEMS, 2) if name in AGENTS else (PROBLEMS, 5)
        _against_enumeration(rows, name, few if quick else full)
    _frontiers(rows, 10 if quick else PROBLEMS)
    for limits in (0, 1):
        _large(rows, 2_000 if quick else 100_000, limits, quick)


def _against_enumeration(rows: harness.Rows, name: str, count: int) -> None:
    kept, optimal, excess, bounded = 0, 0, [], 0
    for seed in range(count):
        found = case(seed)
        tied = found.problem
        if name in BY_LAYER:
            tied = tied.with_ties(found.layer)
        best = least_loss(tied)
        plan = ALLOCATORS[name](found)
        kept += feasible(tied, plan)
        optimal += abs(plan.loss - best) <= 1e-9 * max(best, 1.0)
        excess.append(plan.loss / best - 1)
        bounded += allocate.lp_bound(tied) <= best + 1e-7
    exact = name in EXACT
    rows.add(
        f"feasible plans of small problems, {name}",
        kept,
        f"= {count}, all of the least loss" if exact else f"= {count}",
        kept == count and (not exact or optimal == count) and bounded == count,
        "of the least loss, by enumeration",
        optimal,
        problems=count,
        mean_excess_loss=round(float(np.mean(excess)), 5),
        bounds_below_the_least_loss=bounded,
    )


def _frontiers(rows: harness.Rows, count: int) -> None:
    """The dynamic programs' frontiers equal the enumerated ones; the Lagrangian's lie on them."""
    kinds: dict[str, Callable[[Case], tuple[list[tuple[int, float]], Problem, np.ndarray | None]]]
    kinds = {"frontier_dp": _all_plans, "pareto": _falling_plans, "frontier": _corners}
    for name, kind in kinds.items():
        equal = points = listed = 0
        for seed in range(count):
            mine, problem, order = kind(case(seed))
            expected = nondominated(*every(problem, order))
            points, listed = points + len(mine), listed + len(expected)
            if name == "frontier":
                equal += all(any(np.allclose(p, e) for e in expected) for p in mine)
            else:
                equal += len(mine) == len(expected) and np.allclose(mine, expected)
        words = "on the enumerated frontier" if name == "frontier" else "equal to enumeration's"
        rows.add(
            f"frontiers of small problems {words}, {name}",
            equal,
            f"= {count}",
            equal == count,
            "points by enumeration",
            listed,
            points=points,
        )


def _all_plans(case: Case) -> tuple[list[tuple[int, float]], Problem, None]:
    return allocate.frontier_dp(case.problem).points, case.problem, None


def _falling_plans(case: Case) -> tuple[list[tuple[int, float]], Problem, np.ndarray]:
    # the paper's rule says nothing of widths that a layer does not allow
    problem = replace(case.problem, allowed=np.ones_like(case.problem.allowed))
    problem = problem.with_limits()
    return allocate.pareto(problem, case.order).points, problem, case.order


def _corners(case: Case) -> tuple[list[tuple[int, float]], Problem, None]:
    problem = case.problem.with_limits()  # it looks at none
    return allocate.frontier(problem), problem, None


def large(channels: int, limits: int) -> Problem:
    """Channels of 9 to 600 weights at eight widths, losses falling fourfold a bit."""
    rng = np.random.default_rng(8)
    widths = np.arange(1, 9)
    cost = widths * rng.integers(9, 600, (channels, 1))
    loss = np.exp(rng.normal(size=(channels, 1))) * 4.0**-widths
    names, everything = tuple(map(str, range(channels))), np.ones((channels, 8), bool)
    order = np.arange(channels)
    problem = Problem(names, tuple(widths.tolist()), loss, cost, 0, everything, order)
    for i in range(limits):  # operations: each weight of a channel as often as it has positions
        along = cost * rng.integers(1, 1000, (channels, 1)).astype(float)
        problem = problem.with_limits(Limit(f"limit{i}", "BOPs", along, 0.0))
    return problem


def _large(rows: harness.Rows, channels: int, limits: int, quick: bool) -> None:
    """Two budgets one after another, without and with a limit beside them."""
    problem = large(channels, limits)
    found: list[tuple[float, float, float]] = []
    for bits in (2.5, 4.1):
        bounded = problem.with_budget(int(bits * problem.cost[:, 0].sum()))
        bounds = [replace(li, bound=0.9 * bits * li.cost[:, 0].sum()) for li in problem.limits]
        bounded = bounded.with_limits(*bounds)
        best = []
        for _ in range(1 if quick else 3):
            begin = time.perf_counter(), time.process_time()
            plan = allocate.knapsack(bounded)
            best.append((time.process_time() - begin[1], time.perf_counter() - begin[0]))
        found.append((*min(best), plan.loss / allocate.lp_bound(bounded) - 1))
    seconds, wall, distances = zip(*found, strict=True)
    beside = ", a limit beside each" if limits else ""
    what = f"knapsack, {channels:,} channels x 8 widths x 2 budgets{beside}"
    value = max(seconds) if limits else sum(seconds)
    rows.add(
        f"{what}: seconds of one thread{', the slower' if limits else ', both'}",
        value,
        "<= 1",
        None if quick else value <= 1,
        each=[round(s, 3) for s in seconds],
        wall=[round(s, 3) for s in wall],
    )
    rows.add(
        f"{what}: relative distance to lp_bound",
        max(distances),
        "<= 1e-4",
        None if quick else min(distances) >= -1e-9 and max(distances) <= 1e-4,
        each=[float(f"{d:.3g}") for d in distances],
    )
