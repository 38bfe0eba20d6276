"""Every allocator through the same properties, and against enumeration."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from bitwright import allocate
from bitwright.allocate import Frontier, Limit, Plan, Problem
from bitwright.allocate import plan as plans
from bitwright.allocate.knapsack import _greedy
from bitwright.allocate.multipliers import multipliers
from bitwright.errors import BitwrightError
from mutants import mutated


def make(
    rng: np.random.Generator,
    n: int,
    m: int = 4,
    *,
    monotone: bool = True,
    ties: int = 0,
    limits: int = 0,
    free: float = 0.0,
) -> Problem:
    """A random problem: sizes 1 to 9 (some `free`), losses falling with the width (or not)."""
    loss = rng.exponential(size=(n, m))
    if monotone:
        loss = -np.sort(-loss, axis=1)
    allowed = rng.random((n, m)) < 0.85
    allowed[~allowed.any(axis=1), 0] = True
    tie = rng.integers(0, ties, n) if ties else np.arange(n)
    if ties:
        allowed[:] = True
    cost = np.arange(1, m + 1) * rng.integers(1, 10, (n, 1))
    if free:
        cost *= rng.random((n, 1)) >= free
    names = tuple(f"layer{i // 4}[{i % 4}]" for i in range(n))
    problem = Problem(names, tuple(range(1, m + 1)), loss, cost, 0, allowed, tie)
    low, high = allocate.feasible_range(problem)
    problem = problem.with_budget(int(rng.integers(low, high + 1)))
    for i in range(limits):  # jumps of any size, some of none; the tightest bound now and then
        along = np.sort(rng.exponential(size=(n, m)), axis=1) * (rng.random((n, m)) < 0.8)
        along = np.maximum.accumulate(along, axis=1)
        least, most = allocate.limit_range(problem, Limit("", "", along, 0.0))
        bound = least + max(rng.random() - 0.1, 0) * (most - least)
        problem = problem.with_limits(*problem.limits, Limit(f"limit{i}", "J", along, bound))
    return problem


def shapes(rng: np.random.Generator) -> dict[str, Any]:
    """With and without ties, limits and items that cost nothing."""
    return {
        "monotone": bool(rng.random() < 0.5),
        "ties": int(rng.choice([0, 3])),
        "limits": int(rng.integers(0, 3)),
        "free": float(rng.choice([0.0, 0.4])),
    }


def sensitivity(problem: Problem) -> np.ndarray:
    """By tie group, float64 [groups]: something to sort by that does not depend on the order."""
    _, group = np.unique(problem.tie, return_inverse=True)
    return np.bincount(group, problem.loss[:, 0]) / (1 + np.bincount(group, problem.cost[:, 0]))


def falling(problem: Problem) -> np.ndarray:
    _, group = np.unique(problem.tie, return_inverse=True)
    return np.argsort(-sensitivity(problem)[group], kind="stable")


def by_eigenvalues(problem: Problem) -> Plan:
    _, group = np.unique(problem.tie, return_inverse=True)
    return allocate.hawq(problem, problem.tie, np.bincount(group, problem.loss[:, 0]))


def by_monotone_frontier(problem: Problem) -> Frontier:
    return allocate.pareto(problem, falling(problem))


def by_ratios(problem: Problem) -> Plan:
    order = falling(problem)
    equal = np.full(len(problem.choices), 1 / len(problem.choices))
    return allocate.plan_from_ratios(problem, order, equal)


def by_layers(problem: Problem) -> Plan:
    return allocate.knapsack(problem, "layers")


ROSTER: dict[str, Callable[[Problem], Plan]] = {
    "uniform": allocate.uniform,
    "knapsack": lambda problem: allocate.knapsack(problem),  # as an attribute: mutants reach it
    "layers": by_layers,
    "ratios": by_ratios,
    "brute_force": allocate.brute_force,
    "ilp": allocate.ilp,
    "hawq": by_eigenvalues,
    "pareto": lambda problem: by_monotone_frontier(problem).plan(problem.budget),
    "frontier_dp": lambda problem: allocate.frontier_dp(problem).plan(problem.budget),
}
EXACT = ("knapsack", "layers", "brute_force", "ilp", "frontier_dp")
#: a larger budget never loses more
MONOTONE = (*EXACT, "pareto")


def size(name: str) -> int:
    return {"brute_force": 5, "frontier_dp": 10}.get(name, 30)


@pytest.mark.parametrize("name", ROSTER)
def test_feasible_and_priced(name: str) -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        problem = make(rng, size(name), **shapes(rng))
        plan = ROSTER[name](problem)
        rows = np.arange(len(plan.choice))
        for limit, total in zip(problem.limits, plan.limits, strict=True):
            assert total.total == limit.cost[rows, plan.choice].sum()
            assert total.total <= limit.bound * (1 + 1e-12)
        assert plan.cost == problem.cost[rows, plan.choice].sum() <= problem.budget
        assert plan.loss == pytest.approx(problem.loss[rows, plan.choice].sum())
        assert problem.allowed[rows, plan.choice].all()
        assert (plan.bits == np.array(problem.choices)[plan.choice]).all()


@pytest.mark.parametrize("name", MONOTONE)
def test_more_budget_never_hurts(name: str) -> None:
    rng = np.random.default_rng(1)
    for i in range(3):
        problem = make(rng, size(name), monotone=False, limits=i, free=0.2 * i)
        low, high = allocate.feasible_range(problem)
        losses = [
            ROSTER[name](problem.with_budget(int(b))).loss for b in np.linspace(low, high, 12)
        ]
        assert all(b <= a + 1e-12 for a, b in itertools.pairwise(losses))


@pytest.mark.parametrize("name", ROSTER)
def test_infeasible_budget_names_the_range(name: str) -> None:
    problem = make(np.random.default_rng(2), size(name))
    low, high = allocate.feasible_range(problem)
    with pytest.raises(BitwrightError) as caught:
        ROSTER[name](problem.with_budget(low - 1))
    assert f"{low - 1:,}" in str(caught.value) and f"{low:,} to {high:,}" in str(caught.value)
    ROSTER[name](problem.with_budget(low))  # the bound itself is feasible


@pytest.mark.parametrize("name", ROSTER)
def test_infeasible_limit_is_named_with_its_range(name: str) -> None:
    problem = make(np.random.default_rng(2), size(name), limits=2)
    limit = problem.limits[1]
    low, high = allocate.limit_range(problem, limit)
    with pytest.raises(BitwrightError) as caught:
        ROSTER[name](problem.with_limits(problem.limits[0], replace(limit, bound=0.9 * low)))
    assert "limit1" in str(caught.value) and f"{low:.4g} to {high:.4g} J" in str(caught.value)
    ROSTER[name](problem.with_limits(problem.limits[0], replace(limit, bound=low)))


@pytest.mark.parametrize("name", ROSTER)
def test_deterministic(name: str) -> None:
    problem = make(np.random.default_rng(3), size(name), limits=1, free=0.2)
    assert ROSTER[name](problem).key == ROSTER[name](problem).key


@pytest.mark.parametrize("name", [n for n in ROSTER if n != "brute_force"])
def test_permutation_equivariant(name: str) -> None:
    rng = np.random.default_rng(4)
    problem = make(rng, 25, limits=1)
    shuffle = rng.permutation(25)
    (limit,) = problem.limits
    moved = replace(
        problem,
        names=tuple(problem.names[i] for i in shuffle),
        loss=problem.loss[shuffle],
        cost=problem.cost[shuffle],
        allowed=problem.allowed[shuffle],
        tie=np.arange(25),
        limits=(replace(limit, cost=limit.cost[shuffle]),),
    )
    a, b = ROSTER[name](problem), ROSTER[name](moved)
    assert b.loss == pytest.approx(a.loss) and b.cost == a.cost


@pytest.mark.parametrize("name", ROSTER)
def test_ties_take_one_width(name: str) -> None:
    rng = np.random.default_rng(5)
    for _ in range(10):
        problem = make(rng, 12, ties=4)
        plan = ROSTER[name](problem)
        for group in np.unique(problem.tie):
            assert len(set(plan.choice[problem.tie == group])) == 1


@pytest.mark.parametrize("name", [n for n in EXACT if n != "brute_force"])
def test_exact_against_enumeration(name: str) -> None:
    exact_on_small_problems(name, 100)


def small_plans(
    problem: Problem, order: np.ndarray | None = None
) -> Iterator[tuple[np.ndarray, int, float]]:
    """Every plan within the ties and the limits, whatever it costs; along an order never widening.

    Without `merged`, `all_costs` and what else the package uses.
    """
    n = len(problem.names)
    rows = np.arange(n)
    for found in itertools.product(range(len(problem.choices)), repeat=n):
        choice = np.array(found)
        tied = all(len(set(choice[problem.tie == g])) == 1 for g in problem.tie)
        kept = all(li.cost[rows, choice].sum() <= li.bound * (1 + 1e-12) for li in problem.limits)
        falls = order is None or (np.diff(choice[order]) <= 0).all()
        if tied and kept and falls and problem.allowed[rows, choice].all():
            cost = int(problem.cost[rows, choice].sum())
            yield choice, cost, float(problem.loss[rows, choice].sum())


def nondominated(pairs: Iterable[tuple[int, float]]) -> list[tuple[int, float]]:
    found: list[tuple[int, float]] = []
    for cost, loss in sorted(pairs):
        if not found or loss < found[-1][1] - 1e-12:
            found.append((cost, loss))
    return found


def frontiers_equal_enumeration(count: int = 50) -> None:
    rng = np.random.default_rng(16)
    for i in range(count):
        problem = make(rng, int(rng.integers(2, 6)), **shapes(rng))
        every = allocate.frontier_dp(problem)
        expected = nondominated((c, v) for _, c, v in small_plans(problem))
        assert every.exact and len(every) == len(expected)
        assert np.allclose(every.points, expected)
        for cost, loss in expected:
            plan = every.plan(cost)
            assert plan.cost == cost and plan.loss == pytest.approx(loss)
        if i % 2:
            continue
        # the paper's rule says nothing of widths that a layer does not allow
        problem = replace(problem, allowed=np.ones_like(problem.allowed))
        order = np.argsort(rng.random(problem.tie.max() + 1)[problem.tie], kind="stable")
        down = allocate.pareto(problem, order)
        expected = nondominated((c, v) for _, c, v in small_plans(problem, order))
        assert len(down) == len(expected) and np.allclose(down.points, expected)
        for cost, _ in expected:
            assert (np.diff(down.plan(cost).choice[order]) <= 0).all()


def test_frontiers_equal_enumeration() -> None:
    frontiers_equal_enumeration()


@pytest.mark.parametrize(
    ("module", "old", "new"),
    [
        ("pareto", "states.taken >= j", "states.taken > j - 2"),
        ("states", "due[1:] <= self.bounds[1:, None] + slack", "due[1:] > -1"),
        ("states", "costs[:, kept] + costs[:, None]", "costs[:, kept] + 2 * costs[:, None]"),
        ("exact", "order[better]", "order[better][:3]"),
    ],
)
def test_enumeration_sees_defects_of_frontiers(module: str, old: str, new: str) -> None:
    seen = (AssertionError, ValueError, BitwrightError)
    with mutated(f"allocate.{module}", old, new), pytest.raises(seen):
        frontiers_equal_enumeration(20)


def test_a_frontier_in_buckets_keeps_its_word() -> None:
    rng = np.random.default_rng(17)
    problem = make(rng, 24, 6)
    whole = replace(problem, allowed=np.ones_like(problem.allowed), cost=problem.cost * 1009)
    low, high = allocate.feasible_range(whole)
    exact, coarse = allocate.frontier_dp(whole), allocate.frontier_dp(whole, resolution=60)
    assert exact.exact and not coarse.exact and len(coarse) < len(exact)
    assert coarse.points[0] == exact.points[0]  # the cheapest is always there
    for budget in np.linspace(low, high, 40):
        mine = coarse.plan(int(budget)).loss
        assert mine >= exact.plan(int(budget)).loss
        less = int(budget - 24 * (high - low) / 60)
        if less >= low:
            assert mine <= exact.plan(less).loss


def test_a_frontier_holds_as_many_states_as_its_resolution() -> None:
    rng = np.random.default_rng(17)
    problem = make(rng, 24, 6)
    problem = replace(problem, allowed=np.ones_like(problem.allowed), cost=problem.cost * 1009)
    exact = allocate.frontier_dp(problem)
    most = max(len(states.loss) for states in exact.trail)
    assert allocate.frontier_dp(problem, resolution=most).exact
    assert not allocate.frontier_dp(problem, resolution=most - 1).exact
    # a bucket is a part of the whole range
    sizes = [len(s.loss) for s in allocate.frontier_dp(problem, resolution=60).trail]
    assert 40 <= max(sizes) <= 62


def test_a_frontier_in_buckets_keeps_limits() -> None:
    rng = np.random.default_rng(21)
    for _ in range(5):
        problem = make(rng, 24, 4, limits=1)
        coarse = allocate.frontier_dp(problem, resolution=2000)
        assert not coarse.exact
        for cost, loss in coarse.points[::10]:
            best = allocate.knapsack(problem.with_budget(cost)).loss
            assert best - 1e-9 <= loss <= 1.1 * best  # plan() checks the limit
            assert coarse.plan(cost).loss == pytest.approx(loss)


def test_sixty_layers_have_a_frontier() -> None:
    rng = np.random.default_rng(18)
    size = np.exp(rng.normal(10, 1.5, 60)).astype(np.int64) + 1
    loss = np.exp(rng.normal(0, 2, (60, 1))) * 4.0 ** -np.arange(1, 9)
    problem = Problem(
        tuple(map(str, range(60))),
        tuple(range(1, 9)),
        loss,
        size[:, None] * np.arange(1, 9),
        0,
        np.ones((60, 8), bool),
        np.arange(60),
    )
    found = allocate.frontier_dp(problem)
    for bits in (2, 3, 5):
        budget = int(bits * size.sum())
        best = allocate.knapsack(problem.with_budget(budget)).loss
        assert allocate.lp_bound(problem.with_budget(budget)) <= best
        assert found.plan(budget).loss <= 1.002 * best


def test_monotone_assignments_are_as_many_as_the_paper_says() -> None:
    problem = make(np.random.default_rng(19), 5, 4)
    problem = replace(problem, allowed=np.ones_like(problem.allowed))
    count = sum(1 for _ in small_plans(problem, np.arange(5)))
    assert count == math.comb(5 + 4 - 1, 4 - 1)


def test_hawq_follows_its_order() -> None:
    rng = np.random.default_rng(20)
    tie = np.repeat(np.arange(6), 5)
    problem = replace(make(rng, 30), tie=np.arange(30), allowed=np.ones((30, 4), bool))
    values = rng.exponential(size=6)
    plan = allocate.hawq(problem, tie, values)
    order = allocate.sensitivity_order(values, np.bincount(tie, problem.cost[:, 0]))
    by_layer = plan.choice.reshape(6, 5)
    assert (by_layer == by_layer[:, :1]).all()
    assert (np.diff(by_layer[order, 0]) <= 0).all()  # widest first
    errors = rng.exponential(size=6)
    omega = (values * errors)[allocate.finetune_order(values, errors)]
    assert (np.diff(omega) <= 0).all()
    with pytest.raises(ValueError, match="eigenvalues"):
        allocate.hawq(problem, tie, values[:5])


def exact_on_small_problems(name: str, count: int) -> None:
    rng = np.random.default_rng(6)
    for _ in range(count):
        problem = make(rng, int(rng.integers(2, 7)), **shapes(rng))
        best = allocate.brute_force(problem)
        plan = ROSTER[name](problem)
        assert plan.loss == pytest.approx(best.loss, rel=1e-9, abs=1e-12)
        assert allocate.lp_bound(problem) <= best.loss + 1e-7


@pytest.mark.parametrize("k", [0, 1, 2])
def test_two_exact_methods_agree_on_forty_items(k: int) -> None:
    rng = np.random.default_rng(13)
    for scale in (1.0, 1e-9, 1e6, 1.0):
        problem = make(rng, 40, 8, limits=k)
        best = allocate.knapsack(problem).loss
        scaled = replace(problem, loss=problem.loss * scale)
        assert best == pytest.approx(allocate.ilp(scaled).loss / scale, rel=1e-7)
        # the multipliers bound all plans, and meet the linear relaxation
        bound = allocate.lp_bound(problem)
        assert multipliers(problem)[1] == pytest.approx(bound, rel=1e-5)
        assert bound <= best + 1e-7


@pytest.mark.parametrize(
    ("module", "old", "new"),
    [
        ("knapsack", "return _finish(whole, choice, critical)", "return choice"),
        ("exact", "if ceiling <= gap + rounding:", "if True:"),
        ("exact", "regret = priced - least[:, None]", "regret = 3 * (priced - least[:, None])"),
        ("exact", "loss[order][1:] < ahead[:-1]", "loss[order][1:] < 0.9 * ahead[:-1]"),
    ],
)
def test_enumeration_sees_defects(module: str, old: str, new: str) -> None:
    with mutated(f"allocate.{module}", old, new), pytest.raises((AssertionError, ValueError)):
        exact_on_small_problems("knapsack", 100)


def test_near_the_linear_bound_with_limits() -> None:
    near_the_bound_with_limits()
    # a walk that prices all bounds alike falls behind
    old, new = "prices = multipliers(whole)[0]", "prices = np.ones(3)"
    with mutated("allocate.knapsack", old, new), pytest.raises(AssertionError):
        near_the_bound_with_limits()


def near_the_bound_with_limits() -> None:
    rng = np.random.default_rng(14)
    problem = make(rng, 4000, 8, limits=2, free=0.2)
    low, high = allocate.feasible_range(problem)
    halfway = [
        replace(li, bound=float(np.mean(allocate.limit_range(problem, li))))
        for li in problem.limits
    ]
    problem = problem.with_budget((low + high) // 3).with_limits(*halfway)
    plan, bound = allocate.knapsack(problem), allocate.lp_bound(problem)
    assert problem.loss.size > 20_000  # the Lagrangian bound
    assert bound <= plan.loss <= bound * 1.002


def test_enumeration_rejects_a_greedy_that_stops_early() -> None:
    """The oracle can fail: whole moves without the exact finish are not optimal."""
    rng = np.random.default_rng(7)
    worse = 0
    for _ in range(40):
        problem = make(rng, 5)
        choice, _ = _greedy(problem)
        loss = problem.loss[np.arange(5), choice].sum()
        worse += loss > allocate.brute_force(problem).loss + 1e-9
    assert worse > 0


def test_what_still_fits_fills_the_gap_that_greedy_moves_leave() -> None:
    loss = np.array([[9.0, 0.0], [8.0, 0.0], [1.0, 0.0]])
    cost = np.array([[0, 5], [0, 5], [0, 2]])
    problem = Problem(tuple("abc"), (1, 2), loss, cost, 7, np.ones((3, 2), bool), np.arange(3))
    assert _greedy(problem)[0].tolist() == [1, 0, 1]


def test_the_linear_bound_moves_with_what_every_choice_loses() -> None:
    rng = np.random.default_rng(23)
    for limits in (0, 1):
        problem = make(rng, 12, limits=limits)
        more = rng.normal(size=(12, 1)) - 3
        moved = replace(problem, loss=problem.loss + more)
        found = allocate.lp_bound(moved) - more.sum()
        assert found == pytest.approx(allocate.lp_bound(problem), abs=1e-6)


def test_near_the_linear_bound_at_100_000_channels() -> None:
    rng = np.random.default_rng(8)
    n = 100_000
    loss = np.exp(rng.normal(size=(n, 1))) * 4.0 ** -np.arange(1, 9)
    cost = np.arange(1, 9) * rng.integers(9, 600, (n, 1))
    names = tuple(map(str, range(n)))
    everything = np.ones((n, 8), bool)
    problem = Problem(names, tuple(range(1, 9)), loss, cost, 0, everything, np.arange(n))
    for bits in (2.5, 4.1):
        problem = problem.with_budget(int(bits * cost[:, 0].sum()))
        plan, bound = allocate.knapsack(problem), allocate.lp_bound(problem)
        assert bound <= plan.loss <= bound * 1.0001


def test_frontier_is_optimal_for_its_own_costs() -> None:
    problem = make(np.random.default_rng(9), 6)
    points = allocate.frontier(problem)
    for cost, loss in points:
        assert allocate.brute_force(problem.with_budget(cost)).loss == pytest.approx(loss)
    assert [p[0] for p in points] == sorted(p[0] for p in points)


def test_ratios_are_met_along_the_order() -> None:
    n = 4000
    names = tuple(map(str, range(n)))
    cost = np.tile(np.arange(1, 9), (n, 1)) * 9
    problem = Problem(
        names, tuple(range(1, 9)), np.zeros((n, 8)), cost, 27 * n, np.ones((n, 8), bool),
        np.arange(n),
    )  # fmt: skip
    wanted = np.array([0, 0.25, 0.5, 0.25, 0, 0, 0, 0])  # three bits on average already
    order = np.random.default_rng(10).permutation(n)
    plan = allocate.plan_from_ratios(problem, order, wanted)
    assert allocate.ratios_of(problem, plan) == pytest.approx(wanted, abs=2e-3)
    assert problem.budget - plan.cost < 9  # no widening fits any more
    along = plan.bits[order]
    assert (np.diff(along) <= 0).all()  # widest first


def test_no_widening_behind_a_cut_fits_any_more() -> None:
    rng = np.random.default_rng(24)
    widened = 0
    for _ in range(30):
        problem = replace(make(rng, 30, 8), allowed=np.ones((30, 8), dtype=bool))
        order = rng.permutation(30)
        plan = allocate.plan_from_ratios(problem, order, rng.dirichlet(np.full(8, 0.4)))
        left = problem.budget - plan.cost
        for place, item in enumerate(order):
            first = not place or plan.choice[order[place - 1]] > plan.choice[item]
            if first and plan.choice[item] < 7:
                assert problem.cost[item, 0] > left
                widened += bool(place)
    assert widened > 30


def test_plans_survive_json_and_hostile_json_is_one_line() -> None:
    problem = make(np.random.default_rng(11), 12)
    plan = allocate.knapsack(problem)
    text = plans.to_json(plan)
    again = plans.from_json(text, problem)
    assert again.key == plan.key and again.cost == plan.cost and again.budget == plan.budget
    own = replace(plan, bases=plan.bits == 2)
    assert 0 < own.bases.sum() < 12
    told = json.loads(plans.to_json(own))["bases"]
    layers = {n.rpartition("[")[0] for n, b in zip(own.names, own.bases, strict=True) if b}
    assert told.keys() == layers and sum(map(len, told.values())) == own.bases.sum()
    hostile = [
        "",
        "[]",
        "null",
        "{}",
        text[:-20],
        text.replace('"schema": 1', '"schema": 2'),
        text.replace('"layer0"', '"layer9"'),
        text.replace('"bits": {', '"bits": {"layer0": [99, 99, 99, 99], "x": {'),
        "[" * 100_000,
    ]
    for broken in hostile:
        with pytest.raises(BitwrightError) as caught:
            plans.from_json(broken, problem)
        assert "\n" not in str(caught.value)
    over = text.replace(f'"budget_bits": {plan.budget}', '"budget_bits": 1')
    with pytest.raises(BitwrightError, match="over its own budget"):
        plans.from_json(over, problem)


def test_totals_of_limits_are_in_the_json() -> None:
    problem = make(np.random.default_rng(11), 12, limits=2)
    plan = allocate.knapsack(problem)
    text = plans.to_json(plan)
    listed = json.loads(text)["limits"]
    assert [t["name"] for t in listed] == ["limit0", "limit1"]
    assert listed[0] == {
        "name": "limit0",
        "unit": "J",
        "total": float(problem.limits[0].cost[np.arange(12), plan.choice].sum()),
        "bound": problem.limits[0].bound,
    }
    tighter = problem.with_limits(*(replace(li, bound=0.0) for li in problem.limits))
    assert plans.from_json(text, tighter).limits == plan.limits  # the plan's own bounds
    assert plans.from_json(text, problem.with_limits()).limits == ()
    over = text.replace(f'"bound": {problem.limits[1].bound!r}', '"bound": 0.0')
    with pytest.raises(BitwrightError, match="limit1"):
        plans.from_json(over, problem)
    for broken in ('"limits": 3', '"limits": [{}]', '"limits": [{"name": "a", "bound": "x"}]'):
        with pytest.raises(BitwrightError, match="cannot be read"):
            plans.from_json(text.replace('"limits": [', broken + ', "x": ['), problem)
    assert "limits" not in json.loads(plans.to_json(allocate.knapsack(problem.with_limits())))


def test_what_costs_nothing_is_not_narrowed() -> None:
    problem = make(np.random.default_rng(15), 30, free=0.5)
    nothing = (problem.cost == 0).all(axis=1)
    widest = 3 - np.argmax(problem.allowed[:, ::-1], axis=1)
    tightest = problem.with_budget(allocate.feasible_range(problem)[0])
    for name in ROSTER:
        if name not in ("brute_force", "pareto"):  # too slow; the paper's rule goes before
            choice = ROSTER[name](tightest).choice
            assert (choice[nothing] == widest[nothing]).all()
    all_free = replace(problem, cost=0 * problem.cost, budget=0)
    for name in ROSTER:
        if name != "brute_force":
            assert (ROSTER[name](all_free).choice == widest).all()


def test_mistakes_of_the_caller_are_value_errors() -> None:
    problem = make(np.random.default_rng(12), 6)
    with pytest.raises(ValueError, match="shape"):
        replace(problem, loss=problem.loss[:, :2])
    with pytest.raises(ValueError, match="finite"):
        replace(problem, loss=problem.loss * np.nan)
    with pytest.raises(ValueError, match="never fall"):
        replace(problem, cost=-problem.cost)
    endless = problem.cost.astype(float)
    endless[2, -1] = np.inf
    with pytest.raises(ValueError, match="latency must be finite"):
        problem.with_limits(Limit("latency", "ms", endless, 1.0))
    with pytest.raises(ValueError, match="exceeds"):
        allocate.make_plan(problem.with_budget(0), np.full(6, 3), "test")
