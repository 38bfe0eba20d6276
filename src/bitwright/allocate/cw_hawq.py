"""CW-HAWQ (Qian, Li, Crews, arXiv 2008.08284): a DDPG agent searches the ratios of bit widths.

Channels are ordered by Hessian trace; the agent chooses which share of the weights gets which
width; widths are handed out down the order. Only the paper's abstract is known to us: state,
action, reward and networks below are **our reconstruction**.

- State: the log-ratios of the best plan so far, relative to the start, without the two directions
  that the budget takes away (a common factor, and a tilt along the bits).
- Action: a step from there, a ∈ [−1, 1]^m; the new ratios are tilted to meet the budget.
- Reward: `log KL(best so far) − log KL(new)` of the corrected network on held-out images; a better
  plan becomes the next state.
- Agent: stable-baselines3 DDPG, two hidden layers of 64, discount 0 (a step is judged by what it
  gains now), Gaussian noise that shrinks over the run.

The states are points of a space of six dimensions for eight widths, whatever the network: the
paper's "number of states is much smaller" than with a choice for each layer or channel.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch

from bitwright.allocate.plan import Plan
from bitwright.allocate.problem import Problem
from bitwright.allocate.random_ratios import random_points, starting_ratios
from bitwright.allocate.search import Evaluate, Evaluation, Evaluator, SearchResult

#: first points, shared with random search; steps are small against the whole range
_WARM_UP = 10
_RADIUS = 0.25
_NOISE = (0.8, 0.3)
_TRAIN_STEPS = 30
#: a plan e² times worse than the best is simply bad: its reward is cut off here
_WORST = -2.0


class RatioEnvironment(gymnasium.Env[np.ndarray, np.ndarray]):
    """A walk over ratios: a step is an evaluation, a better plan is the next state."""

    def __init__(self, run: Evaluator) -> None:
        m = len(run.start)
        self.observation_space = gymnasium.spaces.Box(-1.0, 1.0, (m,), np.float32)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (m,), np.float32)
        self.run = run
        self.place = np.zeros(m)
        self.value = run.point(self.place)
        bits = np.array(run.problem.choices, dtype=float)
        self._free = np.linalg.qr(np.stack([np.ones(m), bits], axis=1))[0]

    def canonical(self, point: np.ndarray) -> np.ndarray:
        """`point` without the directions that normalizing and tilting undo, in [−1, 1]."""
        return np.clip(point - self._free @ (self._free.T @ point), -1, 1)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """The best place so far."""
        super().reset(seed=seed)
        return self.place.astype(np.float32), {}

    def visit(self, point: np.ndarray) -> float:
        """Evaluate a point; move there if it is better. Returns the reward."""
        value = self.run.point(point)
        reward = float(np.log(max(self.value, 1e-12)) - np.log(max(value, 1e-12)))
        if value < self.value:
            self.place, self.value = point, value
        return max(reward, _WORST)

    def step(self, action: np.ndarray) -> Any:
        """A step of `_RADIUS` times the action."""
        reward = self.visit(self.canonical(self.place + _RADIUS * np.asarray(action, float)))
        return self.place.astype(np.float32), reward, False, False, {}


def cw_hawq(
    problem: Problem,
    order: np.ndarray,
    evaluate: Evaluate,
    *,
    evaluations: int = 150,
    seed: int = 0,
    start: Plan | None = None,
    log: Path | None = None,
    on_evaluation: Callable[[Evaluation], None] | None = None,
) -> SearchResult:
    """Search the ratios with DDPG; the best plan evaluated is returned.

    Args:
        problem: one item a channel.
        order: int64 [n], channels by falling sensitivity.
        evaluate: a plan's KL after correction, on images it was not corrected with; positive.
        evaluations: plans evaluated (a plan met again is free).
        seed: of the agent and the warm-up; global generators are put back afterwards.
        start: a plan whose ratios the search starts from, evaluated first; without one, equal
            shares.
        log: JSON lines of evaluations; an existing one is replayed.
        on_evaluation: called after each.

    Raises:
        BitwrightError: infeasible budget, or a log that another search wrote.
    """
    from stable_baselines3 import DDPG

    run = Evaluator(problem, order, starting_ratios(problem, start), evaluate, log, on_evaluation)
    m = len(problem.choices)
    if start is not None:
        run.plan(start)
    env = RatioEnvironment(run)
    for point in random_points(m, min(_WARM_UP, evaluations // 4), seed)[1:]:
        env.visit(env.canonical(point))
    rng = np.random.default_rng(seed + 1)
    with _own_generators(seed), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        agent = DDPG(
            "MlpPolicy",
            env,
            learning_rate=1e-3,
            buffer_size=4096,
            batch_size=64,
            gamma=0.0,
            tau=0.05,
            policy_kwargs={"net_arch": [64, 64]},
            seed=seed,
            device="cpu",
        )
        agent._setup_learn(total_timesteps=1)
        for attempt in range(20 * evaluations):
            if len(run.history) >= evaluations:
                break
            state, _ = env.reset()
            mean, _ = agent.predict(state, deterministic=True)
            progress = len(run.history) / evaluations
            spread = _NOISE[0] * (_NOISE[1] / _NOISE[0]) ** progress
            # a plan met again is free: more noise until something new is met
            spread *= 1.02 ** (attempt - len(run.history) + _WARM_UP)
            action = np.clip(mean + rng.normal(0, spread, m), -1, 1).astype(np.float32)
            after, reward, _, _, _ = env.step(action)
            assert agent.replay_buffer is not None
            agent.replay_buffer.add(
                state[None], after[None], action[None], np.array([reward]), np.array([False]), [{}]
            )
            if attempt >= 8:
                agent.train(gradient_steps=_TRAIN_STEPS, batch_size=64)
    return run.result()


@contextmanager
def _own_generators(seed: int) -> Iterator[None]:
    """Seed the global generators the agent draws from, and put all three back afterwards."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
