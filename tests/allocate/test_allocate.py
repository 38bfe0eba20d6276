"""Every allocator through the same properties, and against enumeration."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from bitwright import allocate
from bitwright.allocate import Plan, Problem
from bitwright.allocate import plan as plans
from bitwright.errors import BitwrightError


def make(
    rng: np.random.Generator, n: int, m: int = 4, *, monotone: bool = True, ties: int = 0
) -> Problem:
    """A random problem: sizes 1 to 9, losses falling with the width (or not)."""
    loss = rng.exponential(size=(n, m))
    if monotone:
        loss = -np.sort(-loss, axis=1)
    allowed = rng.random((n, m)) < 0.85
    allowed[~allowed.any(axis=1), 0] = True
    tie = rng.integers(0, ties, n) if ties else np.arange(n)
    if ties:
        allowed[:] = True
    cost = np.arange(1, m + 1) * rng.integers(1, 10, (n, 1))
    names = tuple(f"layer{i // 4}[{i % 4}]" for i in range(n))
    problem = Problem(names, tuple(range(1, m + 1)), loss, cost, 0, allowed, tie)
    low, high = allocate.feasible_range(problem)
    return problem.with_budget(int(rng.integers(low, high + 1)))


def by_ratios(problem: Problem) -> Plan:
    order = np.argsort(-problem.loss[:, 0] / problem.cost[:, 0], kind="stable")
    equal = np.full(len(problem.choices), 1 / len(problem.choices))
    return allocate.plan_from_ratios(problem, order, equal)


def by_layers(problem: Problem) -> Plan:
    return allocate.knapsack(problem, "layers")


ROSTER: dict[str, Callable[[Problem], Plan]] = {
    "uniform": allocate.uniform,
    "knapsack": allocate.knapsack,
    "layers": by_layers,
    "ratios": by_ratios,
    "brute_force": allocate.brute_force,
}
EXACT = ("knapsack", "layers", "brute_force")


def size(name: str) -> int:
    return 5 if name == "brute_force" else 30


@pytest.mark.parametrize("name", ROSTER)
def test_feasible_and_priced(name: str) -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        problem = make(rng, size(name))
        plan = ROSTER[name](problem)
        rows = np.arange(len(plan.choice))
        assert plan.cost == problem.cost[rows, plan.choice].sum() <= problem.budget
        assert plan.loss == pytest.approx(problem.loss[rows, plan.choice].sum())
        assert problem.allowed[rows, plan.choice].all()
        assert (plan.bits == np.array(problem.choices)[plan.choice]).all()


@pytest.mark.parametrize("name", ["knapsack", "layers", "brute_force"])
def test_more_budget_never_hurts(name: str) -> None:
    rng = np.random.default_rng(1)
    for _ in range(10):
        problem = make(rng, size(name), monotone=False)
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
def test_deterministic(name: str) -> None:
    problem = make(np.random.default_rng(3), size(name))
    assert ROSTER[name](problem).key == ROSTER[name](problem).key


@pytest.mark.parametrize("name", ["uniform", "knapsack", "ratios"])
def test_permutation_equivariant(name: str) -> None:
    rng = np.random.default_rng(4)
    problem = make(rng, 25)
    shuffle = rng.permutation(25)
    moved = replace(
        problem,
        names=tuple(problem.names[i] for i in shuffle),
        loss=problem.loss[shuffle],
        cost=problem.cost[shuffle],
        allowed=problem.allowed[shuffle],
        tie=np.arange(25),
    )
    a, b = ROSTER[name](problem), ROSTER[name](moved)
    assert b.loss == pytest.approx(a.loss) and b.cost == a.cost


@pytest.mark.parametrize("name", ["knapsack", "ratios", "brute_force"])
def test_ties_take_one_width(name: str) -> None:
    rng = np.random.default_rng(5)
    for _ in range(10):
        problem = make(rng, 12, ties=4)
        plan = ROSTER[name](problem)
        for group in np.unique(problem.tie):
            assert len(set(plan.choice[problem.tie == group])) == 1


@pytest.mark.parametrize("monotone", [True, False])
def test_exact_against_enumeration(monotone: bool) -> None:
    rng = np.random.default_rng(6)
    for _ in range(40):
        problem = make(rng, int(rng.integers(2, 7)), monotone=monotone)
        best = allocate.brute_force(problem)
        assert allocate.knapsack(problem).loss == pytest.approx(best.loss, rel=1e-9, abs=1e-12)
        assert allocate.lp_bound(problem) <= best.loss + 1e-9


def test_enumeration_rejects_a_greedy_that_stops_early() -> None:
    """The oracle can fail: whole moves without the exact finish are not optimal."""
    from bitwright.allocate.knapsack import _greedy

    rng = np.random.default_rng(7)
    worse = 0
    for _ in range(40):
        problem = make(rng, 5)
        choice, _ = _greedy(problem)
        loss = problem.loss[np.arange(5), choice].sum()
        worse += loss > allocate.brute_force(problem).loss + 1e-9
    assert worse > 0


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


def test_plans_survive_json_and_hostile_json_is_one_line() -> None:
    problem = make(np.random.default_rng(11), 12)
    plan = allocate.knapsack(problem)
    text = plans.to_json(plan)
    again = plans.from_json(text, problem)
    assert again.key == plan.key and again.cost == plan.cost and again.budget == plan.budget
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


def test_mistakes_of_the_caller_are_value_errors() -> None:
    problem = make(np.random.default_rng(12), 6)
    with pytest.raises(ValueError, match="shape"):
        replace(problem, loss=problem.loss[:, :2])
    with pytest.raises(ValueError, match="finite"):
        replace(problem, loss=problem.loss * np.nan)
    with pytest.raises(ValueError, match="strictly"):
        replace(problem, cost=np.ones_like(problem.cost))
    with pytest.raises(ValueError, match="exceeds"):
        allocate.make_plan(problem.with_budget(0), np.full(6, 3), "test")
