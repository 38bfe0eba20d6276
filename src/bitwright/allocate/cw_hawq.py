"""CW-HAWQ (Qian, Li, Crews, arXiv 2008.08284): a DDPG agent searches the ratios of bit widths.

Channels are ordered by Hessian trace; the agent chooses which share of the weights gets which
width; widths are handed out down the order. Only the paper's abstract is known to us: state,
action, reward and networks below are **our reconstruction**.

- Episode: one step, one plan. State: none beyond the network itself, so a constant.
- Action: a ∈ [−1, 1]^m, the logarithms of the m widths' ratios relative to the start, without the
  two directions that the budget takes away (a common factor, and a tilt along the bits). Where
  activations are free as well, 2m: ratios of both, one tilt.
- Reward: the rank of the corrected network's KL on held-out images among all plans so far, from
  −1 (the worst) to 1 (the best), renewed in the replay buffer at every step. Ranks do not care that
  KL spans orders of magnitude, nor about a plan that is hopeless.
- Exploration: Gaussian noise, shrinking over the run, around the agent's proposal or (as often)
  around the best plan so far; of eight such points the one the critic values most is evaluated.
  DDPG is off-policy and learns from all of them.
- Agent: stable-baselines3 DDPG, two hidden layers of 64, discount 0.

Six numbers for eight widths, whatever the network: the paper's "number of states is much smaller"
than with a choice for each layer or channel. Variants that measured worse are listed in
docs/decisions/0005-agent.md.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Unpack

import gymnasium
import numpy as np
import torch

from bitwright.allocate.problem import Problem
from bitwright.allocate.random_ratios import WARM_UP, random_points
from bitwright.allocate.ratios import Points
from bitwright.allocate.search import Evaluate, Evaluator, SearchOptions, SearchResult

if TYPE_CHECKING:
    from stable_baselines3 import DDPG

#: standard deviation of the exploration at the first and the last evaluation
_NOISE = (0.3, 0.05)
#: points among which the critic picks
_CANDIDATES = 8
_TRAIN_STEPS = 60
#: attempts without a plan that was not met before, after which nothing new is expected
_PATIENCE = 60


class RatioEnvironment(gymnasium.Env[np.ndarray, np.ndarray]):
    """Episodes of one step: an action is a plan's ratios, its reward is −log KL."""

    def __init__(self, run: Evaluator, space: Points) -> None:
        self.observation_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (len(space),), np.float32)
        self.run, self.space = run, space
        self._taken = space.idle()

    def canonical(self, points: np.ndarray) -> np.ndarray:
        """Points [..., m] without what normalizing and tilting undo, in [−1, 1]."""
        inside = np.clip(points, -1, 1)
        return np.clip(inside - inside @ self._taken @ self._taken.T, -1, 1)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """The state, always the same."""
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action: np.ndarray) -> Any:
        """Evaluate the ratios; the episode is over."""
        return np.zeros(1, np.float32), self.rewards(action[None])[0], True, False, {}

    def rewards(self, actions: np.ndarray) -> list[float]:
        """Rewards of some episodes at once."""
        values = self.run.plans([self.space.plan(a) for a in np.asarray(actions, dtype=float)])
        return [-float(np.log(max(value, 1e-12))) for value in values]


def cw_hawq(
    problem: Problem, order: np.ndarray, evaluate: Evaluate, **options: Unpack[SearchOptions]
) -> SearchResult:
    """Search the ratios with DDPG; the best plan evaluated is returned.

    Args:
        problem: one item a channel; with two parts, one more an activation.
        order: int64 [n], items by falling sensitivity.
        evaluate: a plan's KL after correction, on images it was not corrected with.
        **options: :class:`SearchOptions`; without a plan to start from, the search sets out from
            equal shares (a cold start). The agent learns after each batch.

    Raises:
        BitwrightError: infeasible budget, or a log that another search wrote.
    """
    run = Evaluator(evaluate, **options)
    space = Points(problem, order, run.start, "cw-hawq")
    env, m = RatioEnvironment(run, space), len(space)
    rng = np.random.default_rng(run.seed + 1)
    with own_generators(run.seed), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        agent = _Agent(env, run.seed)
        warm_up = random_points(m, max(1, min(WARM_UP, run.evaluations // 4)), run.seed)
        for first in range(0, len(warm_up), run.batch):
            if run.left > 0:
                agent.visit(env.canonical(warm_up[first : first + run.next]))
        idle = 0
        while run.left > 0 and idle < _PATIENCE:
            count = run.next
            agent.train(_TRAIN_STEPS * count)
            progress = len(run.history) / run.evaluations
            spread = _NOISE[0] * (_NOISE[1] / _NOISE[0]) ** progress
            # a plan met again is free: more noise until something new is met
            spread *= 1.05**idle
            chosen = []
            for _ in range(count):
                centre = agent.proposal() if rng.random() < 0.5 else agent.best()
                chosen.append(agent.valued(centre + rng.normal(0, spread, (_CANDIDATES, m))))
            known = len(run.history)
            agent.visit(np.stack(chosen))
            idle = idle + 1 if len(run.history) == known else 0
    return run.result()


class _Agent:
    """DDPG, its replay buffer, and the value of every point in it."""

    def __init__(self, env: RatioEnvironment, seed: int) -> None:
        from stable_baselines3 import DDPG

        self.env = env
        self.state, _ = env.reset()
        self.points: list[np.ndarray] = []
        self.gains: list[float] = []
        self.model = DDPG(
            "MlpPolicy",
            env,
            learning_rate=1e-3,
            buffer_size=65536,
            batch_size=64,
            gamma=0.0,
            tau=0.05,
            policy_kwargs={"net_arch": [64, 64]},
            seed=seed,
            device="cpu",
        )
        begin_learning(self.model)
        assert self.model.replay_buffer is not None
        self.buffer = self.model.replay_buffer

    def visit(self, points: np.ndarray) -> None:
        """Evaluate some points and remember them."""
        actions = points.astype(np.float32)
        state = self.state[None]
        for action, gain in zip(actions, self.env.rewards(actions), strict=True):
            self.buffer.add(state, state, action[None], np.array([gain]), np.array([True]), [{}])
            self.points.append(action)
            self.gains.append(gain)

    def train(self, steps: int) -> None:
        """Renew the rewards, the ranks of all points, then some gradient steps."""
        count = len(self.gains)
        ranks = np.argsort(np.argsort(self.gains, kind="stable"), kind="stable")
        self.buffer.rewards[:count, 0] = 2 * ranks / max(count - 1, 1) - 1
        self.model.train(gradient_steps=steps, batch_size=64)

    def proposal(self) -> np.ndarray:
        """What the actor would do."""
        return self.model.predict(self.state, deterministic=True)[0]

    def valued(self, points: np.ndarray) -> np.ndarray:
        """Of the points [k, m], canonical, the one that the critic values most."""
        points = self.env.canonical(points)
        states = torch.from_numpy(self.state).expand(len(points), -1)
        actions = torch.from_numpy(points.astype(np.float32))
        with torch.no_grad():
            values = self.model.critic(states, actions)[0]
        return points[int(values.argmax())]

    def best(self) -> np.ndarray:
        """The best point so far."""
        return self.points[int(np.argmax(self.gains))]


def begin_learning(agent: DDPG) -> None:
    """Make the agent ready for `train` steps of ours, with no log: it would make a folder."""
    from stable_baselines3.common.logger import Logger

    agent.set_logger(Logger(folder=None, output_formats=[]))
    agent._setup_learn(total_timesteps=1)


@contextmanager
def own_generators(seed: int) -> Iterator[None]:
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
