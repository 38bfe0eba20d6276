"""Every search by evaluation through the same properties: counting, logs, batches, bounds."""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bitwright import allocate
from bitwright.allocate import Limit, Plan, Problem, SearchResult
from bitwright.allocate.haq import _Layers, _truncated
from bitwright.allocate.random_ratios import random_points
from bitwright.allocate.ratios import Points
from bitwright.errors import BitwrightError
from mutants import mutated

LAYERS, EACH = 8, 10
TIE = np.repeat(np.arange(LAYERS), EACH)


def landscape(limits: int = 1) -> tuple[Problem, np.ndarray]:
    """80 channels in 8 layers, under a budget and a limit."""
    rng = np.random.default_rng(0)
    n = LAYERS * EACH
    size = rng.integers(9, 300, n)
    sensitivity = np.exp(rng.normal(0, 2, n))
    loss = (sensitivity * size)[:, None] * 4.0 ** -np.arange(1.0, 9.0)
    cost = np.arange(1, 9) * size[:, None]
    problem = Problem(
        tuple(f"layer{i // EACH}[{i % EACH}]" for i in range(n)),
        tuple(range(1, 9)),
        loss / loss.sum(),
        cost,
        int(3.2 * size.sum()),
        np.ones((n, 8), bool),
        np.arange(n),
    )
    speed = cost * rng.exponential(size=(n, 1))
    bound = 3.1 * float(speed[:, 0].sum())
    problem = problem.with_limits(*[Limit("latency", "ms", speed, bound)][:limits])
    return problem, np.argsort(-sensitivity, kind="stable")


class Judge:
    """The predicted loss times what is hidden of each layer; and a count of calls."""

    def __init__(self, problem: Problem) -> None:
        self.problem, self.calls = problem, 0
        self.hidden = np.exp(np.random.default_rng(5).normal(0, 1, LAYERS))[TIE]

    def __call__(self, plan: Plan) -> float:
        self.calls += 1
        each = self.problem.loss[np.arange(len(plan.choice)), plan.choice]
        return float((self.hidden * each).sum())

    def many(self, plans: Sequence[Plan]) -> list[float]:
        """As several processes would: the last first."""
        return [self(plan) for plan in reversed(plans)][::-1]


Search = Callable[..., SearchResult]
FEATURES = np.stack([np.arange(LAYERS) % 3, np.arange(LAYERS) ** 2.0], axis=1)


def by_haq(problem: Problem, order: np.ndarray, evaluate: Any, **options: Any) -> SearchResult:
    return allocate.haq(problem, TIE, FEATURES, evaluate, **options)


def by_moves(problem: Problem, order: np.ndarray, evaluate: Any, **options: Any) -> SearchResult:
    return allocate.local_moves(problem, TIE, evaluate, **options)


ROSTER: dict[str, Search] = {
    "cw_hawq": allocate.cw_hawq,
    "random_ratios": allocate.random_ratios,
    "cross_entropy": allocate.cross_entropy,
    "local_moves": by_moves,
    "haq": by_haq,
}
every = pytest.mark.parametrize("name", ROSTER)


@every
def test_counts_keeps_the_bounds_and_returns_the_best(name: str) -> None:
    problem, order = landscape()
    judge, seen = Judge(problem), list[Plan]()

    def evaluate(plan: Plan) -> float:
        seen.append(plan)
        return judge(plan)

    told: list[allocate.Evaluation] = []
    found = ROSTER[name](problem, order, evaluate, evaluations=24, on_evaluation=told.append)
    assert judge.calls == len(found.history) == 24 and told == list(found.history)
    assert [e.index for e in found.history] == list(range(24))
    assert len({p.key for p in seen}) == 24  # a plan met again is free
    values = [e.value for e in found.history]
    assert found.value == min(values) == judge(found.plan)
    assert [e.best for e in found.history] == list(np.minimum.accumulate(values))
    rows = np.arange(len(order))
    for plan in seen:
        assert problem.cost[rows, plan.choice].sum() <= problem.budget
        assert problem.limits[0].cost[rows, plan.choice].sum() <= problem.limits[0].bound
        if name == "haq":
            assert (plan.choice == plan.choice[::EACH][TIE]).all()


@every
def test_same_seed_same_bytes_and_global_generators_untouched(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem, order = landscape()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    a = ROSTER[name](problem, order, Judge(problem), evaluations=14, seed=3)
    b = ROSTER[name](problem, order, Judge(problem), evaluations=14, seed=3)
    c = ROSTER[name](problem, order, Judge(problem), evaluations=14, seed=4)
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all() and before[2] == random.getstate()
    assert a.history == b.history and a.plan.key == b.plan.key
    assert a.history != c.history
    assert not list(tmp_path.glob("SB3*"))  # where an agent would keep a log


@every
def test_a_batch_gives_the_same_whoever_evaluates_it(name: str, tmp_path: Path) -> None:
    problem, order = landscape()
    alone, together = tmp_path / "alone.jsonl", tmp_path / "together.jsonl"
    options: dict[str, Any] = {"evaluations": 17, "seed": 2, "batch": 5}
    a = ROSTER[name](problem, order, Judge(problem), log=alone, **options)
    judge = Judge(problem)

    def nobody(plan: Plan) -> float:
        raise AssertionError("evaluated one by one")

    b = ROSTER[name](problem, order, nobody, evaluate_many=judge.many, log=together, **options)
    assert a.history == b.history and a.plan.key == b.plan.key and judge.calls == 17
    assert alone.read_bytes() == together.read_bytes()
    # a batch of which the log has a part
    lines = together.read_text().splitlines(keepends=True)
    together.write_text("".join(lines[:13]) + lines[13][:20])
    rest = Judge(problem)
    c = ROSTER[name](problem, order, nobody, evaluate_many=rest.many, log=together, **options)
    assert c.history == a.history and rest.calls == 4
    assert alone.read_bytes() == together.read_bytes()


@pytest.mark.parametrize("name", ["random_ratios", "cross_entropy"])
def test_batches_change_nothing_where_nothing_is_learnt_between(name: str) -> None:
    problem, order = landscape()
    a = ROSTER[name](problem, order, Judge(problem), evaluations=30)
    b = ROSTER[name](problem, order, Judge(problem), evaluations=30, batch=7)
    assert a.history == b.history


class Killed(Exception):
    pass


@every
def test_a_killed_search_replays_its_log(name: str, tmp_path: Path) -> None:
    problem, order = landscape()
    whole = ROSTER[name](problem, order, Judge(problem), evaluations=16, seed=1)
    log = tmp_path / "search.jsonl"
    judge = Judge(problem)

    def dies(plan: Plan) -> float:
        if judge.calls == 9:
            raise Killed
        return judge(plan)

    with pytest.raises(Killed):
        ROSTER[name](problem, order, dies, evaluations=16, seed=1, log=log)
    rest = Judge(problem)
    again = ROSTER[name](problem, order, rest, evaluations=16, seed=1, log=log)
    assert rest.calls == 16 - 9
    assert again.history == whole.history and again.plan.key == whole.plan.key
    with pytest.raises(BitwrightError, match="delete it"):
        other = problem.with_budget(int(problem.budget * 0.8))
        ROSTER[name](other, order, Judge(other), evaluations=16, seed=1, log=log)


def test_a_changed_digit_in_a_log_is_evaluated_again(tmp_path: Path) -> None:
    problem, order = landscape()
    log = tmp_path / "search.jsonl"
    search = ROSTER["cross_entropy"]
    whole = search(problem, order, Judge(problem), evaluations=16, log=log)
    lines = log.read_text().splitlines(keepends=True)
    first, _, exponent = json.loads(lines[5])["value"].rpartition("p")
    other = f"{first}p{int(exponent) - 3:+d}"  # an eighth of it: it would become the best
    text = lines[5].replace(json.loads(lines[5])["value"], other)
    log.write_text("".join([*lines[:5], text, *lines[6:]]))
    rest = Judge(problem)
    again = search(problem, order, rest, evaluations=16, log=log)
    assert rest.calls == 16 - 5 and again.history == whole.history
    assert log.read_text() == "".join(lines)


@every
def test_a_warm_start_is_evaluated_first_a_cold_one_knows_no_plan(name: str) -> None:
    problem, order = landscape()
    start = allocate.layers(problem, TIE) if name == "haq" else allocate.knapsack(problem)
    warm = ROSTER[name](problem, order, Judge(problem), evaluations=8, start=start)
    cold = ROSTER[name](problem, order, Judge(problem), evaluations=8)
    if name != "random_ratios":  # its points lie around the start's ratios
        assert warm.history[0].value == Judge(problem)(start) and warm.history[0].point == ()
        assert warm.value <= warm.history[0].value
    assert cold.history[0].point != ()


@every
def test_what_fits_nothing_is_refused_before_anything_is_evaluated(name: str) -> None:
    problem, order = landscape()
    judge = Judge(problem)
    low, _ = allocate.feasible_range(problem)
    with pytest.raises(BitwrightError, match="budget"):
        ROSTER[name](problem.with_budget(low - 1), order, judge, evaluations=4)
    tight = problem.with_limits(replace(problem.limits[0], bound=1.0))
    with pytest.raises(BitwrightError, match="latency"):
        ROSTER[name](tight, order, judge, evaluations=4)
    assert judge.calls == 0


def test_too_few_values_of_a_batch_are_an_error() -> None:
    problem, order = landscape()
    with pytest.raises(ValueError, match="2 values for 3 plans"):
        allocate.random_ratios(
            problem, order, Judge(problem), batch=3, evaluate_many=lambda plans: [1.0] * 2
        )


def gain_of_moves() -> float:
    """How much of what the knapsack's plan loses too much the moves get back."""
    problem, _ = landscape()
    judge = Judge(problem)
    weighted = replace(problem, loss=problem.loss * judge.hidden[:, None])
    first = judge(allocate.knapsack(problem))
    best = judge(allocate.knapsack(weighted))
    found = allocate.local_moves(problem, TIE, judge, evaluations=60).value
    assert best - 1e-12 <= found <= first
    return float(np.log(first / found) / np.log(first / best))


def test_local_moves_find_what_the_prediction_leaves_out() -> None:
    assert gain_of_moves() >= 0.8
    with mutated("allocate.local_moves", "if values and min(values) < best:", "if values:"):
        assert gain_of_moves() < 0.8  # a walk that takes every move


@every
def test_one_evaluation_is_enough(name: str) -> None:
    problem, order = landscape()
    found = ROSTER[name](problem, order, Judge(problem), evaluations=1)
    assert len(found.history) == 1


def literal_cross_entropy(
    problem: Problem, order: np.ndarray, count: int, seed: int
) -> list[float]:
    """The method by its book, of values as they are met: plans met again count as they did."""
    space = Points(problem, order, None, "cross-entropy")
    judge, known = Judge(problem), dict[bytes, float]()

    def values(points: np.ndarray) -> list[float]:
        found = []
        for point in points:
            if len(known) == count:
                break
            plan, _ = space.plan(point)
            found.append(known.setdefault(plan.key, judge(plan)))
        return found

    m, rng = len(space), np.random.default_rng(seed + 1)
    elites, step, floor = 4, 0.7, 0.03
    points = random_points(m, min(25, count // 4), seed)
    seen = values(points)
    centre, spread = np.zeros(m), np.full(m, 3**-0.5)
    best, idle = (seen[int(np.argmin(seen))], points[int(np.argmin(seen))]), 0
    while len(known) < count and idle < 10:
        elite = points[np.argsort(seen, kind="stable")[:elites]]
        centre = centre + step * (elite.mean(0) - centre)
        spread = spread + step * (elite.std(0) - spread)
        drawn = rng.normal(centre, np.maximum(spread, floor) * 1.5**idle, (12, m))
        before, drawn = len(known), np.clip(drawn, -1, 1)
        met = values(drawn)
        idle = 0 if len(known) > before else idle + 1
        points, seen = np.concatenate([best[1][None], drawn[: len(met)]]), [best[0], *met]
        best = (min(seen), points[int(np.argmin(seen))])
    return list(known.values())


def test_cross_entropy_is_the_method_of_the_book() -> None:
    problem, order = landscape(limits=0)
    found = allocate.cross_entropy(problem, order, Judge(problem), evaluations=100, seed=5)
    assert [e.value for e in found.history] == literal_cross_entropy(problem, order, 100, 5)


def test_cross_entropy_beats_random_ratios() -> None:
    problem, order = landscape(limits=0)
    quotients = []
    for seed in range(3):
        a = allocate.cross_entropy(problem, order, Judge(problem), evaluations=120, seed=seed)
        b = allocate.random_ratios(problem, order, Judge(problem), evaluations=120, seed=seed)
        assert a.history[:25] == b.history[:25]  # the same first points
        quotients.append(a.value / b.value)
    assert np.exp(np.mean(np.log(quotients))) < 0.97


def test_haq_walks_as_described() -> None:
    problem, _ = landscape(limits=0)
    free = problem.with_budget(allocate.feasible_range(problem)[1]).with_ties(TIE)
    layers = _Layers(free, FEATURES)
    # 0 to 1 in eight equal parts
    actions = (np.arange(LAYERS) + 0.5) / 8
    assert layers.plan(actions).bits[::EACH].tolist() == list(range(1, 9))
    assert layers.plan(np.linspace(0, 1, LAYERS)).bits[[0, -1]].tolist() == [1, 8]
    # over the budget: a bit less from the last layer backwards
    top = free.budget
    size = problem.cost[:, 0].reshape(LAYERS, EACH).sum(axis=1)
    for count in (1, 3, LAYERS, LAYERS + 2):
        less = np.bincount(np.arange(count) % LAYERS, minlength=LAYERS)[::-1]
        tight = _Layers(free.with_budget(int(top - less @ size)), FEATURES)
        assert tight.plan(np.ones(LAYERS)).bits[::EACH].tolist() == (8 - less).tolist()
    state = layers.state(3, 0.25)
    assert state.tolist() == pytest.approx([0.0, 9 / 49, 3 / 7, 0.25])
    with pytest.raises(ValueError, match="8 layers"):
        _Layers(free, FEATURES[:7])


def test_haq_keeps_its_two_rates_and_every_step_has_the_reward() -> None:
    import importlib

    haq = importlib.import_module("bitwright.allocate.haq")

    problem, _ = landscape(limits=0)
    layers = haq._Layers(problem.with_ties(TIE), FEATURES)
    agent = haq._agent(layers, 20, 0)
    actions = np.linspace(0, 1, LAYERS)
    for _ in range(10):
        haq._remember(agent, layers, actions, 0.7)
    agent.train(gradient_steps=2, batch_size=64)
    assert agent.actor.optimizer.param_groups[0]["lr"] == 1e-4
    assert agent.critic.optimizer.param_groups[0]["lr"] == 1e-3
    buffer = agent.replay_buffer
    assert buffer is not None
    assert (buffer.rewards[:LAYERS] == np.float32(0.7)).all()
    assert buffer.dones[:LAYERS, 0].tolist() == [0] * (LAYERS - 1) + [1]
    # stored in the actor's own range
    assert buffer.actions[:LAYERS, 0, 0] == pytest.approx(2 * actions - 1)
    assert buffer.observations[1, 0, -1] == actions[0]
    after = buffer.next_observations[: LAYERS - 1, 0]
    assert (after == buffer.observations[1:LAYERS, 0]).all()


def test_truncated_noise_has_the_closed_form_mean() -> None:
    from scipy.stats import truncnorm

    rng = np.random.default_rng(0)
    for mean, deviation in ((0.2, 0.5), (1.0, 0.3)):
        drawn = np.array([_truncated(mean, deviation, u) for u in rng.random(4000)])
        law = truncnorm(-mean / deviation, (1 - mean) / deviation, mean, deviation)
        assert drawn.min() >= 0 and drawn.max() <= 1
        assert abs(drawn.mean() - law.mean()) <= 4 * law.std() / np.sqrt(4000)
