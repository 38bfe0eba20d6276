"""Bounds on products of widths (BOPs): every allocator that takes them, and enumeration."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from scipy.sparse import csr_array

from bitwright import allocate
from bitwright.allocate import Plan, Problem, Product
from bitwright.allocate import plan as plans
from bitwright.allocate.joint import Stars, _first, multipliers
from bitwright.allocate.problem import Bounds
from bitwright.errors import BitwrightError
from mutants import mutated


def make(
    rng: np.random.Generator, weights: int, activations: int, m: int = 3, *, several: bool = False
) -> Problem:
    """Weights that read one activation each (`several`: some read two), under a bound on BOPs."""
    n = weights + activations
    loss = rng.exponential(size=(n, 1)) * np.exp(rng.normal(0, 2, (n, 1)))
    loss = loss * 4.0 ** -np.arange(1.0, m + 1) * rng.uniform(0.8, 1.2, (n, m))
    cost = np.zeros((n, m), dtype=np.int64)
    cost[:weights] = np.arange(1, m + 1) * rng.integers(1, 10, (weights, 1))
    pairs = np.zeros((n, n))
    for i in range(weights):
        reads = 1 + (several and rng.random() < 0.3)
        for j in rng.choice(activations, reads, replace=False):
            pairs[i, weights + j] = rng.integers(1, 20)
    each = np.zeros(n)
    each[:weights] = rng.integers(0, 60, weights)
    allowed = rng.random((n, m)) < 0.9
    allowed[~allowed.any(axis=1), 0] = True
    part = np.repeat([0, 1], [weights, activations])
    names = tuple(f"layer{i}[0]" if i < weights else f"activations of {i}" for i in range(n))
    problem = Problem(
        names, tuple(range(1, m + 1)), loss, cost, int(cost.max(axis=1).sum()), allowed,
        np.arange(n), (), part,
    )  # fmt: skip
    product = Product("BOPs", "G", csr_array(pairs), each, 0.0)
    low, high = allocate.product_range(problem, product)
    product = replace(product, bound=low + rng.random() * (high - low))
    least, most = allocate.feasible_range(problem)
    if rng.random() < 0.5:
        problem = problem.with_budget(int(least + rng.random() * (most - least)))
    return problem.with_products(product)


def falling(problem: Problem) -> np.ndarray:
    return np.argsort(-problem.loss[:, 0], kind="stable")


def by_ratios(problem: Problem) -> Plan:
    equal = np.full(2 * len(problem.choices), 1 / len(problem.choices))
    return allocate.plan_from_ratios(problem, falling(problem), equal)


ROSTER = {
    "uniform": lambda problem: allocate.uniform(problem),
    "knapsack": lambda problem: allocate.knapsack(problem),
    "ratios": by_ratios,
    "brute_force": lambda problem: allocate.brute_force(problem),
}


def bops(problem: Problem, bits: np.ndarray) -> float:
    """The bound's own sum, pair by pair."""
    product = problem.products[0]
    pairs = product.pairs.toarray()
    total = sum(pairs[i, j] * bits[i] * bits[j] for i in range(len(bits)) for j in range(len(bits)))
    return float(total + sum(e * b for e, b in zip(product.each, bits, strict=True)))


@pytest.mark.parametrize("name", ROSTER)
def test_within_every_bound_and_priced(name: str) -> None:
    rng = np.random.default_rng(0)
    for i in range(15):
        problem = make(rng, 5, 3, several=i % 3 == 0)
        plan = ROSTER[name](problem)
        rows = np.arange(len(plan.choice))
        assert plan.cost == problem.cost[rows, plan.choice].sum() <= problem.budget
        assert problem.allowed[rows, plan.choice].all()
        (total,) = plan.limits
        assert total.total == pytest.approx(bops(problem, plan.bits), rel=1e-12)
        assert total.total <= total.bound * (1 + 1e-12)
        again = plans.from_json(plans.to_json(plan), problem)
        assert (again.choice == plan.choice).all() and again.limits == plan.limits


def against_enumeration() -> None:
    """Mostly the optimum, never far from it, never under the bound."""
    rng = np.random.default_rng(1)
    over = []
    for i in range(40):
        problem = make(rng, 5, 3, several=i % 4 == 0)
        best = allocate.brute_force(problem).loss
        found = allocate.knapsack(problem).loss
        over.append(found / best - 1)
        if i % 4:
            assert allocate.lp_bound(problem) <= best * (1 + 1e-9)
    assert min(over) >= -1e-12
    assert np.mean(np.array(over) < 1e-12) >= 0.9 and max(over) < 0.1, over


def test_knapsack_against_enumeration() -> None:
    against_enumeration()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("price = np.where(moves, p.slopes(bits[choice]), p.each)", "price = p.each"),
        ("+ each[:, None] * self.bits", "- each[:, None] * self.bits"),
        ("np.add.at(star, self.read[reads], several.min(axis=2))", "pass"),
    ],
)
def test_wrong_prices_are_seen(old: str, new: str) -> None:
    with mutated("allocate.joint", old, new), pytest.raises((AssertionError, ValueError)):
        against_enumeration()
        close_to_the_bound()


def close_to_the_bound() -> None:
    problem = make(np.random.default_rng(2), 1000, 15, 8)
    plan, below = allocate.knapsack(problem), allocate.lp_bound(problem)
    assert below <= plan.loss <= 1.003 * below


def test_many_items_are_close_to_the_bound() -> None:
    close_to_the_bound()


def test_a_plan_at_the_bound_fits_and_one_beyond_does_not() -> None:
    rng = np.random.default_rng(6)
    for _ in range(20):
        problem = make(rng, 6, 3)
        choice = allocate.knapsack(problem).choice
        total = bops(problem, choice + 1.0)
        for share, fits in ((1.0, True), (1 - 1e-9, False), (1 - 1e-14, True)):
            product = replace(problem.products[0], bound=total * share)
            assert Bounds(problem.with_products(product)).fit(choice) is fits


def test_bounds_know_that_the_narrowest_may_not_be_allowed() -> None:
    rng = np.random.default_rng(7)
    tight = 0
    for _ in range(20):
        problem = make(rng, 5, 2)
        allowed = problem.allowed.copy()
        allowed[:3] = [False, True, True]
        wider = replace(problem, allowed=allowed)
        low, high = allocate.product_range(wider, problem.products[0])
        product = replace(problem.products[0], bound=low + 0.4 * (high - low))
        wider = wider.with_budget(10**6).with_products(product)
        best, bound = allocate.brute_force(wider).loss, allocate.lp_bound(wider)
        assert bound <= best * (1 + 1e-9)
        tight += bound >= 0.3 * best
    assert tight >= 15


def test_the_range_of_a_product_is_that_of_all_plans() -> None:
    rng = np.random.default_rng(9)
    for _ in range(20):
        problem = make(rng, 3, 2)
        options = itertools.product(*[np.flatnonzero(a) + 1.0 for a in problem.allowed])
        totals = [bops(problem, np.array(bits)) for bits in options]
        found = allocate.product_range(problem, problem.products[0])
        assert found == pytest.approx((min(totals), max(totals)))


def test_the_first_plan_within_is_at_the_least_factor() -> None:
    rng = np.random.default_rng(8)
    better = 0
    for _ in range(20):
        problem = make(rng, 30, 6)
        bounds, stars = Bounds(problem), Stars(problem)
        prices, _ = multipliers(problem, stars, bounds)
        rows = np.arange(36)
        losses = [
            problem.loss[rows, _first(problem, stars, bounds, prices)].sum(),
            problem.loss[rows, stars.cheapest(2 * prices)].sum(),
        ]
        assert bounds.fit(_first(problem, stars, bounds, prices)) and losses[0] <= losses[1]
        early = _first(problem, stars, bounds, 8 * prices)  # an eighth of that is found as well
        assert problem.loss[rows, early].sum() == pytest.approx(losses[0], rel=1e-6)
        better += losses[0] < losses[1]
    assert better > 10


def test_uniform_is_the_best_pair_of_widths() -> None:
    rng = np.random.default_rng(3)
    for _ in range(10):
        problem = replace(make(rng, 6, 3), allowed=np.ones((9, 3), dtype=bool))
        found = allocate.uniform(problem)
        fitting = []
        for weights in (1, 2, 3):
            for activations in (1, 2, 3):
                bits = np.where(problem.part == 0, weights, activations)
                cost = problem.cost[np.arange(9), bits - 1].sum()
                if bops(problem, bits) <= problem.products[0].bound and cost <= problem.budget:
                    fitting.append((weights, activations, bits))
        maximal = [
            bits
            for w, a, bits in fitting
            if not any((v > w and b >= a) or (v >= w and b > a) for v, b, _ in fitting)
        ]
        losses = [problem.loss[np.arange(9), bits - 1].sum() for bits in maximal]
        assert found.loss <= min(losses) + 1e-12  # an activation nobody reads may be wider


def test_uniform_is_as_wide_as_fits_whatever_is_predicted() -> None:
    n = 3
    loss = np.tile([1.0, 2.0, 3.0, 4.0], (n, 1))  # predictions err
    problem = Problem(
        tuple("abc"), (1, 2, 3, 4), loss, np.tile([1, 2, 3, 4], (n, 1)), 3 * n + 1,
        np.ones((n, 4), bool), np.arange(n),
    )  # fmt: skip
    assert allocate.uniform(problem).bits.tolist() == [3] * n


def test_each_part_has_its_own_ratios() -> None:
    problem = make(np.random.default_rng(4), 400, 60, 4)
    problem = replace(problem, allowed=np.ones((460, 4), dtype=bool))
    problem = problem.with_products(replace(problem.products[0], bound=1e9)).with_budget(10**9)
    ratios = np.array([0.4, 0.3, 0.2, 0.1, 0.1, 0.1, 0.2, 0.6])
    plan = allocate.plan_from_ratios(problem, falling(problem), ratios)
    assert (plan.choice == 3).all()  # nothing binds: tilted until everything is wide
    low, high = allocate.product_range(problem, problem.products[0])
    bound = replace(problem.products[0], bound=low + 0.3 * (high - low))
    plan = allocate.plan_from_ratios(problem.with_products(bound), falling(problem), ratios)
    tilted = [allocate.ratios_of(problem, plan)[i : i + 4] for i in (0, 4)]
    # one tilt: the odds of neighbouring widths change by one factor in both parts
    given = ratios.reshape(2, 4)
    odds = [t[1:] * r[:-1] / (t[:-1] * r[1:]) for t, r in zip(tilted, given, strict=True)]
    assert np.allclose(np.concatenate(odds), odds[0][0], rtol=0.5), odds
    for part in (0, 1):  # never wider down the order
        own = [i for i in falling(problem) if problem.part[i] == part]
        assert (np.diff(plan.choice[own]) <= 0).all()


@pytest.mark.parametrize("name", ["cw_hawq", "random_ratios", "cross_entropy", "local_moves"])
def test_searches_keep_the_bound(name: str) -> None:
    problem = make(np.random.default_rng(5), 40, 6, 8)
    start = allocate.knapsack(problem)
    met = []

    def evaluate(plan: Plan) -> float:
        met.append(bops(problem, plan.bits))
        return plan.loss

    second = np.arange(46) // 5 if name == "local_moves" else falling(problem)
    found = getattr(allocate, name)(problem, second, evaluate, evaluations=14, start=start)
    assert max(met) <= problem.products[0].bound * (1 + 1e-12)
    assert found.value <= start.loss and len(found.history) <= 14


def test_infeasible_bound_names_the_range() -> None:
    problem = make(np.random.default_rng(6), 5, 3)
    low, high = allocate.product_range(problem, problem.products[0])
    tight = problem.with_products(replace(problem.products[0], bound=0.9 * low))
    for allocator in ROSTER.values():
        with pytest.raises(BitwrightError, match=rf"BOPs .* {low:.4g} to {high:.4g} G"):
            allocator(tight)


@pytest.mark.parametrize(
    "linear", [allocate.ilp, allocate.frontier_dp, lambda p: allocate.pareto(p, falling(p))]
)
def test_methods_for_sums_refuse(linear: object) -> None:
    with pytest.raises(BitwrightError, match="BOPs multiply the widths of two items"):
        linear(make(np.random.default_rng(7), 5, 3))  # type: ignore[operator]


def test_products_are_checked() -> None:
    problem = make(np.random.default_rng(8), 4, 2)
    product = problem.products[0]
    for wrong, words in (
        (replace(product, pairs=csr_array(product.pairs.T)), "part 0 with items of part 1"),
        (replace(product, each=-np.ones(6)), "not negative"),
        (replace(product, each=np.ones(5)), "6 items"),
    ):
        with pytest.raises(ValueError, match=words):
            problem.with_products(wrong)
    with pytest.raises(ValueError, match="cannot be tied"):
        allocate.knapsack(problem.with_ties(np.array([0, 1, 2, 3, 4, 0])))
    tied = problem.with_ties(np.array([0, 0, 2, 2, 4, 4]))
    tied = replace(tied, allowed=np.ones((6, 3), dtype=bool))
    choice = allocate.knapsack(tied).choice
    assert (choice[::2] == choice[1::2]).all()
    assert allocate.knapsack(tied).loss == pytest.approx(allocate.brute_force(tied).loss)


def test_no_single_width_improves_what_several_readers_agree_on() -> None:
    rng = np.random.default_rng(3)
    for _ in range(12):
        problem = make(rng, 12, 5, 4, several=True)
        stars, product = Stars(problem), problem.products[0]
        price = np.array([0.0, 10.0 ** rng.uniform(-4, -1)])
        choice = stars.cheapest(price)
        rows = np.arange(len(choice))

        def cost(which: np.ndarray, rows: np.ndarray = rows, product: Product = product,
                 problem: Problem = problem, price: np.ndarray = price) -> float:  # fmt: skip
            loss = np.where(problem.allowed, problem.loss, np.inf)[rows, which].sum()
            return float(loss + price[1] * product.total(np.array(problem.choices, float)[which]))

        best = cost(choice)
        for i in rows:
            for k in range(len(problem.choices)):
                other = choice.copy()
                other[i] = k
                assert cost(other) >= best * (1 - 1e-12)
