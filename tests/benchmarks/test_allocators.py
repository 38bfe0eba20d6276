"""The benchmark's own enumeration: as the package's, on problems of all kinds; and it can fail."""

from __future__ import annotations

from dataclasses import replace

import allocators
import numpy as np
import pytest

from bitwright import allocate
from bitwright.allocate import Plan

SEEDS = range(40)


def test_the_problems_are_of_all_kinds():
    problems = [allocators.case(seed).problem for seed in SEEDS]
    assert 5 < sum(len(set(p.tie)) < len(p.tie) for p in problems) < 35
    assert 5 < sum(not p.allowed.all() for p in problems) < 35
    assert {len(p.limits) for p in problems} == {0, 1, 2}
    assert any((p.cost == 0).any() for p in problems)
    assert any((np.diff(p.loss, axis=1) > 0).any() for p in problems)


def test_the_least_loss_is_the_package_s():
    for seed in SEEDS:
        problem = allocators.case(seed).problem
        plan = allocate.brute_force(problem)
        assert allocators.least_loss(problem) == pytest.approx(plan.loss, rel=1e-12)
        assert allocators.feasible(problem, plan)


def test_what_breaks_a_bound_a_tie_or_a_width_is_not_feasible():
    problem = next(
        p
        for p in (allocators.case(seed).problem for seed in range(200))
        if len(p.limits) == 2 and len(set(p.tie)) < len(p.tie) and not p.allowed[:2].all()
    )
    plan = allocate.knapsack(problem)
    rows = np.arange(len(plan.choice))

    def moved(choice: np.ndarray) -> Plan:
        return replace(plan, choice=choice)

    assert allocators.feasible(problem, plan)
    assert not allocators.feasible(problem.with_budget(plan.cost - 1), plan)
    tight = replace(problem.limits[1], bound=0.999 * plan.limits[1].total)
    assert not allocators.feasible(problem.with_limits(problem.limits[0], tight), plan)
    free = replace(problem.with_limits().with_budget(10**9), allowed=np.ones_like(problem.allowed))
    alone = plan.choice.copy()
    alone[0] = (alone[0] + 1) % 4  # the other one of its layer stays
    assert not allocators.feasible(free, moved(alone))
    assert allocators.feasible(free.with_ties(rows), moved(alone))
    item, width = np.argwhere(~problem.allowed)[0]
    banned = np.where(problem.tie == problem.tie[item], width, plan.choice)
    assert not allocators.feasible(replace(free, allowed=problem.allowed), moved(banned))


def test_enumeration_sees_a_plan_that_is_not_the_best():
    worse = 0
    for seed in SEEDS:
        problem = allocators.case(seed).problem
        worse += allocate.uniform(problem).loss > allocators.least_loss(problem) + 1e-9
    assert worse > 10
