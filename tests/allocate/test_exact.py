"""The parts of the exact searches: dominance against all pairs, states and gaps at their bounds."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import LinearConstraint

from bitwright import allocate
from bitwright.allocate import Limit, Problem
from bitwright.allocate.exact import exact, undominated
from bitwright.allocate.knapsack import _positive
from bitwright.allocate.multipliers import held, multipliers
from mutants import mutant

PAIRS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=12)


def off(pairs: list[tuple[int, int]], kept: np.ndarray) -> bool:
    """Whether `kept` are other pairs than those that none matches in both, each one once."""
    best = {p for p in pairs if not any(q != p and q[0] <= p[0] and q[1] <= p[1] for q in pairs)}
    return [pairs[i] for i in kept] != sorted(best)


@settings(deadline=None)
@given(PAIRS)
def test_undominated_pairs_are_those_no_other_pair_matches(pairs: list[tuple[int, int]]) -> None:
    table = np.array(pairs, dtype=float).reshape(-1, 2)
    assert not off(pairs, undominated(table[:, 0], table[:, 1]))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("loss[order][1:] < ahead[:-1]", "loss[order][1:] <= ahead[:-1]"),
        ("np.lexsort((loss, cost))", "np.argsort(-cost, kind='stable')"),
        ("better[:1] = True", "better[:1] = False"),
    ],
)
def test_other_pairs_are_seen(old: str, new: str) -> None:
    wrong = mutant("allocate.exact", old, new)
    pairs = [(2, 1), (1, 3), (1, 3), (3, 0), (3, 2), (1, 4)]
    table = np.array(pairs, dtype=float)
    assert off(pairs, wrong.undominated(table[:, 0], table[:, 1]))
    assert not off(pairs, undominated(table[:, 0], table[:, 1]))


def one_item() -> Problem:
    """A wider choice that costs 2 and loses nothing, a narrow one that loses 1."""
    loss, cost = np.array([[1.0, 0.0]]), np.array([[1, 2]])
    return Problem(("a",), (1, 2), loss, cost, 2, np.ones((1, 2), bool), np.arange(1))


def test_the_states_allowed_are_the_states_that_may_be_held() -> None:
    known = np.array([0])
    found, proven = exact(one_item(), np.zeros(1), known, most_states=1)
    assert (found.tolist(), proven) == ([1], True)
    found, proven = exact(one_item(), np.zeros(1), known, most_states=0)
    assert (found.tolist(), proven) == ([0], False)


def test_a_known_optimum_is_proven_where_it_stands() -> None:
    found, proven = exact(one_item(), np.zeros(1), np.array([1]), most_states=1)
    assert (found.tolist(), proven) == ([1], True)
    tight = one_item().with_budget(1)
    assert exact(tight, np.array([1.0]), np.array([0]), 2)[0].tolist() == [0]


def test_the_integer_program_is_proven_up_to_as_many_choices_as_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = sys.modules["bitwright.allocate.ilp"]
    assert module.PROVEN == 4000 and module.GAP == 1e-4  # type: ignore[attr-defined]
    monkeypatch.setattr(module, "PROVEN", 4)
    gaps, solve = [], module.solve  # type: ignore[attr-defined]

    def watched(whole: Problem, *, time_limit_s: float, gap: float) -> np.ndarray | None:
        gaps.append(gap)
        return solve(whole, time_limit_s=time_limit_s, gap=gap)

    monkeypatch.setattr(module, "solve", watched)
    for n in (2, 3):  # 4 and 6 choices
        loss, cost = np.tile([1.0, 0.0], (n, 1)), np.tile([1, 2], (n, 1))
        names = tuple("abc"[:n])
        problem = Problem(names, (1, 2), loss, cost, n + 1, np.ones((n, 2), bool), np.arange(n))
        assert allocate.ilp(problem).loss == n - 1
    assert gaps == [0.0, 1e-4]


def test_what_costs_anything_has_a_price_and_nothing_else() -> None:
    costs = np.zeros((3, 2, 2))
    costs[0, 1], costs[1, 0] = [1, 5], [2, 4]
    found = _positive(np.array([0.0, 2.0, 0.0]), costs)
    # at its dearest, the first bound costs a billionth of what the second does
    assert found[0] * 5 == pytest.approx(1e-9 * 2 * 4, rel=1e-12)
    assert found[1] == 2 and found[2] == 0
    free = _positive(np.zeros(3), costs)
    assert free[:2] * [5, 4] == pytest.approx([1e-9, 1e-9], rel=1e-12) and free[2] == 0


def test_a_bound_that_only_the_narrowest_plan_meets_rules_the_rest_out() -> None:
    rng = np.random.default_rng(0)
    n, cost = 6, np.cumsum(rng.integers(1, 9, (6, 3)), axis=1)
    problem = Problem(
        tuple(f"a[{i}]" for i in range(n)), (1, 2, 3), rng.random((n, 3)), cost,
        int(cost[:, 0].sum()), np.ones((n, 3), bool), np.arange(n),
    )  # fmt: skip
    assert held(problem).allowed.tolist() == [[True, False, False]] * n
    loose = problem.with_budget(int(cost[:, 0].sum()) + 1)
    assert held(loose) is loose


def test_a_bound_without_room_leaves_the_others_their_prices() -> None:
    rng = np.random.default_rng(0)
    n, cost = 12, np.cumsum(rng.integers(1, 9, (12, 3)), axis=1)
    loss = -np.cumsum(rng.random((n, 3)), axis=1)
    time = np.tile(np.arange(3.0), (n, 1))
    time[6:] = 0  # the second half takes none
    problem = Problem(
        tuple(map(str, range(n))), (1, 2, 3), loss, cost, int(1.4 * cost[:, 0].sum()),
        np.ones((n, 3), bool), np.arange(n), limits=(Limit("latency", "ms", time, 0.0),),
    )  # fmt: skip
    prices, bound = multipliers(problem)
    alone = replace(problem, limits=(), allowed=np.where(time > 0, False, True))
    expected, lowest = multipliers(alone)
    assert prices == pytest.approx([expected[0], 0]) and prices[0] > 0
    assert bound == pytest.approx(lowest)


def test_a_plan_that_oversteps_a_bound_is_refused_and_the_bound_drawn_in(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """HiGHS keeps a row to within 1e-6 of its scale: less than a bit, and not always enough."""
    module = sys.modules["bitwright.allocate.ilp"]
    n, size = 4, 40_000_000
    loss = -np.tile([0.0, 1.0], (n, 1)) * np.arange(1, n + 1)[:, None]
    cost = np.tile([0, size], (n, 1)) + np.arange(n)[:, None] * [0, 1]
    problem = Problem(
        tuple("abcd"), (1, 2), loss, cost, 2 * size + 3, np.ones((n, 2), bool), np.arange(n)
    )
    solver = module.milp

    def solved(over: int, times: int) -> tuple[np.ndarray | None, list[float]]:
        """What is chosen, and the bounds, where the first ones are kept to within `over` bits."""
        bounds: list[float] = []

        def lax(*given: Any, constraints: list[Any], **options: Any) -> Any:
            row = constraints[1]
            scale = np.abs(cost).max() / row.A.max()
            bounds.append(row.ub[0] * scale)
            assert 1e-6 * scale < 1  # a bit
            if len(bounds) <= times:
                constraints[1] = LinearConstraint(row.A, -np.inf, row.ub + over / scale)
            return solver(*given, constraints=constraints, **options)

        with monkeypatch.context() as patch:
            patch.setattr(module, "milp", lax)
            return module.solve(problem), bounds

    choice, bounds = solved(2, 1)
    assert choice is not None
    assert choice.tolist() == [0, 0, 0, 1]  # at first the last two: two bits over
    assert bounds == pytest.approx([problem.budget, problem.budget - 2], abs=0.1)
    choice, bounds = solved(9 * size, 99)
    assert choice is None and len(bounds) == 4
