"""What the two agents are told of an evaluation, and when they give up; searches are elsewhere."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.env_checker import check_env

from allocate.test_patience import ITEMS, one_plan
from allocate.test_searches import FEATURES, LAYERS, TIE, Judge, landscape
from bitwright import allocate
from bitwright.allocate.ratios import Points
from mutants import mutated

haq = sys.modules["bitwright.allocate.haq"]
cw_hawq = sys.modules["bitwright.allocate.cw_hawq"]


def ratio_environment(judge: Judge) -> Any:
    run = allocate.search.Evaluator(judge, evaluations=40)
    _, order = landscape(limits=0)
    return cw_hawq.RatioEnvironment(run, Points(judge.problem, order, None, "cw-hawq"))


def test_an_episode_over_ratios_is_one_evaluation_and_its_reward() -> None:
    judge = Judge(landscape(limits=0)[0])
    env = ratio_environment(judge)
    check_env(env, warn=False)
    assert isinstance(env.action_space, spaces.Box)
    assert (env.action_space.low == -1).all() and (env.action_space.high == 1).all()
    action = np.linspace(-0.9, 0.7, env.action_space.shape[0]).astype(np.float32)
    state, reward, terminated, truncated, _ = env.step(action)
    plan, _ = env.space.plan(action.astype(float))
    value = judge(plan)
    assert reward == -np.log(value) and terminated and not truncated
    assert (state == env.reset()[0]).all() and state in env.observation_space


def test_ranks_are_what_the_agent_over_ratios_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    problem, order = landscape(limits=0)
    seen: list[tuple[np.ndarray, np.ndarray]] = []
    train = cw_hawq._Agent.train

    def watched(self: Any, steps: int) -> None:
        train(self, steps)
        count = len(self.gains)
        seen.append((np.array(self.gains), self.buffer.rewards[:count, 0].copy()))

    monkeypatch.setattr(cw_hawq._Agent, "train", watched)
    found = allocate.cw_hawq(problem, order, Judge(problem), evaluations=8)
    gains, rewards = seen[-1]
    values = np.array([e.value for e in found.history])[: len(gains)]
    assert gains == pytest.approx(-np.log(values))
    assert rewards[np.argsort(values)] == pytest.approx(np.linspace(1, -1, len(values)))


def told(monkeypatch: pytest.MonkeyPatch, evaluations: int) -> tuple[np.ndarray, np.ndarray, int]:
    """What HAQ's agent is told of each episode, its values, and episodes at random."""
    problem, _ = landscape(limits=0)
    gains: list[float] = []
    noises: list[float | None] = []
    remember, walk = haq._remember, haq._Layers.walk

    def remembered(agent: Any, layers: Any, actions: np.ndarray, reward: float) -> None:
        gains.append(reward)
        remember(agent, layers, actions, reward)

    def walked(self: Any, agent: Any, noise: float | None, rng: Any) -> np.ndarray:
        noises.append(noise)
        found: np.ndarray = walk(self, agent, noise, rng)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(haq, "_remember", remembered)
        patch.setattr(haq._Layers, "walk", walked)
        found = allocate.haq(problem, TIE, FEATURES, Judge(problem), evaluations=evaluations)
    random = noises.count(None)
    assert noises == [None] * random + [0.5 * 0.99**k for k in range(evaluations - random)]
    return np.array(gains), np.array([e.value for e in found.history]), random


@pytest.mark.parametrize(("evaluations", "wanted"), [(3, 1), (12, 3)])
def test_an_episode_of_layers_has_its_gain_over_the_moving_average(
    evaluations: int, wanted: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    gains, values, random = told(monkeypatch, evaluations)
    assert len(gains) == len(values) == evaluations and random == wanted
    average, rewards = -np.log(values[0]), -np.log(values)
    for gain, reward in zip(gains, rewards, strict=True):
        average = 0.5 * average + 0.5 * reward
        assert gain == pytest.approx(reward - average)
    assert len(values) < 4 or np.ptp(gains) > 0.1


def test_an_agent_gives_up_where_there_is_one_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    walk = haq._Layers.walk
    walks: list[None] = []

    def walked(self: Any, *given: Any) -> np.ndarray:
        walks.append(None)
        found: np.ndarray = walk(self, *given)
        return found

    monkeypatch.setattr(haq._Layers, "walk", walked)
    features = np.arange(ITEMS)[:, None]
    found = allocate.haq(one_plan(), np.arange(ITEMS), features, lambda p: 1.0, evaluations=90)
    # the first is new, and so many are not
    assert len(found.history) == 1 and len(walks) == 1 + haq._PATIENCE


def test_proposals_end_where_there_is_one_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[None] = []
    monkeypatch.setattr(cw_hawq._Agent, "train", lambda self, steps: seen.append(None))
    found = allocate.cw_hawq(one_plan(), np.arange(ITEMS), lambda p: 1.0, evaluations=40)
    assert len(found.history) == 1 and len(seen) == cw_hawq._PATIENCE


def test_a_walk_sets_out_from_the_state_that_is_remembered() -> None:
    problem, _ = landscape(limits=0)
    layers = haq._Layers(problem.with_ties(TIE), FEATURES)
    states: list[np.ndarray] = []

    class Still:
        def predict(self, state: np.ndarray, deterministic: bool) -> Any:
            states.append(state)
            return np.array([0.75]), None

    actions = layers.walk(Still(), 1e-9, np.random.default_rng(0))
    assert actions == pytest.approx(np.full(LAYERS, 0.75))
    assert (states[0] == layers.reset()[0]).all()
    wanted = [layers.state(i, actions[i - 1] if i else 0.0) for i in range(LAYERS)]
    assert np.array(states) == pytest.approx(np.array(wanted))


def test_the_last_good_move_is_tried_first_again() -> None:
    problem, _ = landscape(limits=0)
    walk = sys.modules["bitwright.allocate.local_moves"]._Walk
    here = walk(problem, TIE, np.random.default_rng(0))
    for layer, sign in ((0, 1.0), (1, -1.0), (0, -1.0)):
        at, before = here.at.copy(), here.plan
        at[layer] += 1.4 * sign
        here.take(at, here.weighted(at))
        # what counts for more gets no fewer bits
        assert (sign * (here.plan.bits - before.bits)[layer == TIE]).sum() > 0
        (after, _), *_ = here.moves(1, 0.7)
        moved = sign * (after - at)
        assert np.flatnonzero(moved).tolist() == [layer] and moved[layer] > 0


def test_exploration_falls_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    problem, order = landscape(limits=0)
    spreads: list[float] = []

    def valued(self: Any, points: np.ndarray) -> np.ndarray:
        assert len(points) == 8
        spreads.append(float(points.std()))
        first: np.ndarray = points[0]
        return first

    monkeypatch.setattr(cw_hawq._Agent, "train", lambda self, steps: None)
    monkeypatch.setattr(cw_hawq._Agent, "valued", valued)
    for name in ("proposal", "best"):
        monkeypatch.setattr(cw_hawq._Agent, name, lambda self: np.zeros(len(self.env.space)))
    allocate.cw_hawq(problem, order, Judge(problem), evaluations=60)
    done = 15 + np.arange(len(spreads))
    assert spreads == pytest.approx(0.3 * (0.05 / 0.3) ** (done / 60), rel=0.5)
    assert np.mean(spreads[:8]) > 2 * np.mean(spreads[-8:])


@pytest.mark.parametrize("share", [1.0, -1.0, 0.3])
def test_a_point_is_a_factor_on_every_share(share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    problem, order = landscape(limits=0)
    asked: list[np.ndarray] = []
    module = sys.modules["bitwright.allocate.ratios"]
    plain = module.plan_from_ratios
    monkeypatch.setattr(
        module, "plan_from_ratios", lambda p, o, r, m: asked.append(r) or plain(p, o, r, m)
    )
    start = allocate.layers(problem, TIE)
    space = Points(problem, order, start, "own")
    point = np.zeros(8)
    point[3] = share
    _, logged = space.plan(point)
    shares = (allocate.ratios_of(problem, start) + 0.01) / 1.08  # none is impossible
    shares[3] *= np.exp(5 * share)
    assert asked[0] == pytest.approx(shares) and logged == tuple(point)


def test_points_of_cross_entropy_stay_in_the_box(monkeypatch: pytest.MonkeyPatch) -> None:
    def points() -> np.ndarray:
        problem, order = landscape(limits=0)
        tried: list[np.ndarray] = []
        plan = Points.plan

        def watched(self: Points, point: np.ndarray) -> allocate.Plan:
            tried.append(np.asarray(point))
            return plan(self, point)

        with monkeypatch.context() as patch:
            patch.setattr(Points, "plan", watched)
            allocate.cross_entropy(problem, order, Judge(problem), evaluations=60)
        return np.array(tried)

    found = points()
    assert (found.min(), found.max()) == (-1.0, 1.0)
    with mutated("allocate.cross_entropy", ", -1, 1)", ", -1, 2)"):
        assert points().max() > 1
