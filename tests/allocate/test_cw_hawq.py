"""The search over ratios: better than chance, resumable, and it leaves no trace."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from bitwright import allocate
from bitwright.allocate import Plan, Problem
from bitwright.errors import BitwrightError


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


def test_same_seed_same_run_and_global_generators_untouched() -> None:
    problem, order = landscape()
    torch.manual_seed(5)
    np.random.seed(5)
    random.seed(5)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    a = allocate.cw_hawq(problem, order, Judge(problem), evaluations=24, seed=3)
    after = torch.get_rng_state(), np.random.get_state()[1], random.getstate()
    assert torch.equal(before[0], after[0]) and (before[1] == after[1]).all()
    assert before[2] == after[2]
    b = allocate.cw_hawq(problem, order, Judge(problem), evaluations=24, seed=3)
    c = allocate.cw_hawq(problem, order, Judge(problem), evaluations=24, seed=4)
    assert a.history == b.history and a.plan.key == b.plan.key
    assert a.history != c.history


class Killed(Exception):
    pass


@pytest.mark.parametrize("search", [allocate.cw_hawq, allocate.random_ratios])
def test_a_killed_search_replays_its_log(search: object, tmp_path: Path) -> None:
    problem, order = landscape()
    whole = search(problem, order, Judge(problem), evaluations=26, seed=1)  # type: ignore[operator]
    log = tmp_path / "search.jsonl"
    judge = Judge(problem)

    def dies(plan: Plan) -> float:
        if judge.calls == 15:
            raise Killed
        return judge(plan)

    with pytest.raises(Killed):
        search(problem, order, dies, evaluations=26, seed=1, log=log)  # type: ignore[operator]
    assert len(log.read_text().splitlines()) == 15
    with log.open("a") as file:
        file.write('{"index": 15, "plan": "cut o')  # the kill hit a line
    rest = Judge(problem)
    again = search(problem, order, rest, evaluations=26, seed=1, log=log)  # type: ignore[operator]
    assert rest.calls == 26 - 15
    assert again.history == whole.history and again.plan.key == whole.plan.key


def test_a_log_of_another_search_is_refused(tmp_path: Path) -> None:
    problem, order = landscape()
    log = tmp_path / "search.jsonl"
    allocate.random_ratios(problem, order, Judge(problem), evaluations=5, seed=0, log=log)
    other = problem.with_budget(int(problem.budget * 1.3))
    with pytest.raises(BitwrightError, match="delete it"):
        allocate.random_ratios(other, order, Judge(other), evaluations=5, seed=0, log=log)


def test_a_start_plan_is_evaluated_and_never_lost() -> None:
    problem, order = landscape()
    start = allocate.knapsack(problem)
    found = allocate.cw_hawq(problem, order, Judge(problem), evaluations=8, seed=0, start=start)
    assert found.history[0].value == Judge(problem)(start)
    assert found.value <= found.history[0].value
