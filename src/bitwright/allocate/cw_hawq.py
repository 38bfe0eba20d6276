"""CW-HAWQ (Qian, Li, Crews, arXiv 2008.08284): a DDPG agent searches the ratios of bit widths.

Channels are ordered by Hessian trace; the agent chooses which share of the weights gets which
width; widths are handed out down the order. Only the paper's abstract is known to us: state,
action, reward and networks below are **our reconstruction**.

- Episode: one step, one plan. State: the (constant) starting ratios.
- Action: a ∈ [−1, 1]^m, ratios `start_j · exp(3 a_j)`, tilted to meet the budget.
- Reward: `log KL(start) − log KL(plan)` of the corrected network on held-out images.
- Agent: stable-baselines3 DDPG, two hidden layers of 64, Gaussian noise that shrinks over the run.

With one-step episodes the critic is a regression of the reward on the ratios, and the actor climbs
it: in seven dimensions that needs some hundred evaluations, where a choice per channel would need
a state for each of thousands.
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
from bitwright.allocate.random_ratios import random_actions, starting_ratios
from bitwright.allocate.search import Evaluate, Evaluation, Evaluator, SearchResult

_WARM_UP = 24
_NOISE = (0.5, 0.05)
_STEPS = 40


class RatioEnvironment(gymnasium.Env[np.ndarray, np.ndarray]):
    """One step an episode: an action of ratios, answered with the log of the improvement."""

    def __init__(self, run: Evaluator, first: float) -> None:
        m = len(run.start)
        self.observation_space = gymnasium.spaces.Box(0.0, 1.0, (m,), np.float32)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (m,), np.float32)
        self.run = run
        self.first = first

    def _state(self) -> np.ndarray:
        return self.run.start.astype(np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """The constant state."""
        super().reset(seed=seed)
        return self._state(), {}

    def step(self, action: np.ndarray) -> Any:
        """Evaluate the action's plan."""
        value = self.run.action(np.asarray(action, dtype=np.float64))
        reward = float(np.log(max(self.first, 1e-12)) - np.log(max(value, 1e-12)))
        return self._state(), reward, True, False, {}


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
    from stable_baselines3.common.noise import NormalActionNoise

    run = Evaluator(problem, order, starting_ratios(problem, start), evaluate, log, on_evaluation)
    m = len(problem.choices)
    if start is not None:
        run.plan(start)
    actions = random_actions(m, evaluations, seed)
    first = run.action(actions[0])
    env = RatioEnvironment(run, first)
    with _own_generators(seed), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        agent = DDPG(
            "MlpPolicy",
            env,
            learning_rate=1e-3,
            buffer_size=4096,
            learning_starts=0,
            batch_size=64,
            gamma=0.0,
            tau=0.05,
            train_freq=1,
            gradient_steps=_STEPS,
            action_noise=NormalActionNoise(np.zeros(m), np.full(m, _NOISE[0])),
            policy_kwargs={"net_arch": [64, 64]},
            seed=seed,
            device="cpu",
        )
        agent._setup_learn(total_timesteps=1)
        state = env._state()[None]
        rng = np.random.default_rng(seed + 1)
        attempts = 0
        while len(run.history) < evaluations and attempts < 20 * evaluations:
            if attempts < min(_WARM_UP, evaluations // 2):
                action = actions[attempts].astype(np.float32)
            else:
                mean = agent.predict(state[0], deterministic=True)[0]
                done = len(run.history) / evaluations
                spread = _NOISE[0] * (_NOISE[1] / _NOISE[0]) ** done
                # a plan met again is free, so noise must grow until something new is met
                spread = min(1.0, spread * 1.05 ** (attempts - len(run.history)))
                action = np.clip(mean + rng.normal(0, spread, m), -1, 1).astype(np.float32)
            _, reward, _, _, _ = env.step(action)
            agent.replay_buffer.add(
                state, state, action[None], np.array([reward]), np.array([True]), [{}]
            )
            attempts += 1
            if attempts >= 8:
                agent.train(gradient_steps=_STEPS, batch_size=64)
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
