"""The agent over ratios: better than chance; what all searches promise is in test_searches.py."""

from __future__ import annotations

import numpy as np
import pytest

from bitwright import allocate
from bitwright.allocate import Plan, Problem


def landscape() -> tuple[Problem, np.ndarray]:
    """400 channels whose sensitivities span five orders of magnitude."""
    rng = np.random.default_rng(0)
    n = 400
    size = rng.integers(9, 300, n)
    sensitivity = np.exp(rng.normal(0, 2.5, n))
    loss = (sensitivity * size)[:, None] * 4.0 ** -np.arange(1.0, 9.0)
    cost = np.arange(1, 9) * size[:, None]
    problem = Problem(
        tuple(map(str, range(n))),
        tuple(range(1, 9)),
        loss / loss.sum(),
        cost,
        int(2.5 * size.sum()),
        np.ones((n, 8), bool),
        np.arange(n),
    )
    return problem, np.argsort(-sensitivity, kind="stable")


class Judge:
    """The predicted loss with interactions between groups of channels, and a count of calls."""

    def __init__(self, problem: Problem) -> None:
        self.problem, self.calls = problem, 0

    def __call__(self, plan: Plan) -> float:
        self.calls += 1
        each = self.problem.loss[np.arange(len(plan.choice)), plan.choice]
        groups = np.sqrt(each.reshape(20, -1).sum(1))
        return float(each.sum() + 0.3 * groups.sum() ** 2 / 20)


@pytest.mark.slow
def test_the_agent_beats_random_ratios_and_counts_its_evaluations() -> None:
    problem, order = landscape()
    quotients = []
    for seed in range(3):
        judge = Judge(problem)
        found = allocate.cw_hawq(problem, order, judge, evaluations=80, seed=seed)
        assert judge.calls == len(found.history) == 80
        assert found.value == min(e.value for e in found.history)
        assert found.plan.cost <= problem.budget
        best = np.minimum.accumulate([e.value for e in found.history])
        assert [e.best for e in found.history] == list(best)
        chance = allocate.random_ratios(problem, order, judge, evaluations=80, seed=seed)
        assert chance.history[0].value == found.history[0].value  # the same start
        quotients.append(found.value / chance.value)
    assert np.exp(np.mean(np.log(quotients))) <= 0.95
