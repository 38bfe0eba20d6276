"""HAQ (Wang et al., arXiv 1811.08886, sec. 3): a DDPG agent walks the layers and sets their widths.

An episode has a step for each layer. The state is the layer's features, min-max normalized, with
its position and the last action; the action a ∈ [0, 1] is a width,

    column = round(m · a − 1/2),     m widths, ascending;

a plan over the budget is narrowed layer by layer, from the last backwards, round after round until
it fits; its reward goes to every step of the episode. Agent, rates, noise and warm-up are the
published code's: two hidden layers of 300, actor 1e-4, critic 1e-3, discount 1, τ 0.01, batches of
64, noise from a normal truncated to [0, 1] of standard deviation 0.5 · 0.99^episode.

Departures from it:

- the reward is −log of the evaluated value (HAQ: 0.1 · (accuracy − accuracy of the float model)),
  less its moving average over episodes, of decay 0.5;
- stable-baselines3's actor ends in tanh, rescaled, in place of a sigmoid: the same function;
- widths of weights alone, no separate steps for activations (they can be items);
- some hundred evaluations in place of 600 episodes with an epoch of training each: warm-up
  is 20 episodes or a quarter of the evaluations, and there are as many gradient steps as layers
  after each episode (ours; not in our sources).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Unpack

import gymnasium
import numpy as np
from scipy.special import ndtr, ndtri

from bitwright.allocate.cw_hawq import begin_learning, own_generators
from bitwright.allocate.plan import Plan, make_plan
from bitwright.allocate.problem import Bounds, Problem, merged, require_feasible
from bitwright.allocate.ratios import widest_not_above
from bitwright.allocate.search import Evaluate, Evaluator, SearchOptions, SearchResult

if TYPE_CHECKING:
    from stable_baselines3 import DDPG

#: learning rates
_RATES = {"actor": 1e-4, "critic": 1e-3}
_WARM_UP, _NOISE, _DECAY = 20, 0.5, 0.99
#: episodes without a plan that was not met before, after which nothing new is expected
_PATIENCE = 60


def haq(
    problem: Problem,
    tie: np.ndarray,
    features: np.ndarray,
    evaluate: Evaluate,
    **options: Unpack[SearchOptions],
) -> SearchResult:
    """Search a width for each layer; the best plan evaluated is returned.

    Args:
        problem: one item a channel.
        tie: int64 [n], the layer of each channel.
        features: float [L, f], what the agent sees of each layer by rising number in `tie`, which
            is the order of the walk. HAQ: depthwise or not, channels in and out, stride, kernel,
            weights, size of the input, index.
        evaluate: a plan's true loss, positive.
        **options: :class:`SearchOptions`; the agent does not see the plan to start from, and
            learns after each batch of episodes.

    Raises:
        BitwrightError: infeasible budget or limit, or a log that another search wrote.
        ValueError: not one row of features a layer.
    """
    tied = problem.with_ties(tie)
    require_feasible(tied)
    layers = _Layers(tied, np.asarray(features, dtype=float))
    run = Evaluator(evaluate, **options)
    rng = np.random.default_rng(run.seed + 1)
    warm_up = max(1, min(_WARM_UP, run.evaluations // 4))
    with own_generators(run.seed):
        agent = _agent(layers, run.evaluations, run.seed)
        average, episode, idle = None, 0, 0
        while run.left > 0 and idle < _PATIENCE:
            count = run.next
            walks = []
            for i in range(count):
                after = episode + i - warm_up
                noise = None if after < 0 else _NOISE * _DECAY**after
                walks.append(layers.walk(agent, noise, rng))
            known = len(run.history)
            values = run.plans([(layers.plan(w), tuple(map(float, w))) for w in walks])
            for actions, value in zip(walks, values, strict=True):
                reward = -float(np.log(max(value, 1e-12)))
                average = reward if average is None else 0.5 * average + 0.5 * reward
                _remember(agent, layers, actions, reward - average)
            episode += count
            idle = idle + 1 if len(run.history) == known else 0
            if episode >= warm_up:
                agent.train(gradient_steps=count * len(layers), batch_size=64)
    return run.result()


class _Layers(gymnasium.Env[np.ndarray, np.ndarray]):
    """The layers as the agent walks them: states, widths, and the budget."""

    def __init__(self, problem: Problem, features: np.ndarray) -> None:
        self.problem = problem
        self.whole, self.group = merged(problem)
        count = len(self.whole.names)
        if features.ndim != 2 or len(features) != count:
            raise ValueError(f"features have shape {features.shape} for {count} layers")
        self.bounds = Bounds(self.whole)
        self.columns = widest_not_above(self.whole.allowed)
        position = np.arange(count)[:, None]
        seen = np.hstack([features, position])
        low, high = seen.min(axis=0), seen.max(axis=0)
        self.seen = ((seen - low) / np.where(high > low, high - low, 1)).astype(np.float32)
        width = self.seen.shape[1] + 1
        self.observation_space = gymnasium.spaces.Box(0.0, 1.0, (width,), np.float32)
        self.action_space = gymnasium.spaces.Box(0.0, 1.0, (1,), np.float32)

    def __len__(self) -> int:
        return len(self.seen)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """The first layer's state."""
        super().reset(seed=seed)
        return self.state(0, 0.0), {}

    def state(self, layer: int, last: float) -> np.ndarray:
        """float32 [f + 2]: features and position in [0, 1], then the last action."""
        return np.append(self.seen[layer], np.float32(last))

    def walk(self, agent: DDPG, noise: float | None, rng: np.random.Generator) -> np.ndarray:
        """The actions of an episode, float [L]; at random without `noise`."""
        actions = np.empty(len(self))
        last = 0.0
        for layer in range(len(self)):
            if noise is None:
                last = float(rng.random())
            else:
                mean = agent.predict(self.state(layer, last), deterministic=True)[0]
                last = _truncated(float(mean[0]), noise, float(rng.random()))
            actions[layer] = last
        return actions

    def plan(self, actions: np.ndarray) -> Plan:
        """The widths of some actions, narrowed from the last layer backwards until they fit."""
        m = self.columns.shape[1]
        level = np.clip(np.rint(m * actions - 0.5), 0, m - 1).astype(np.int64)
        rows = np.arange(len(level))
        least = np.argmax(self.whole.allowed, axis=1)
        choice = self.columns[rows, level]
        while not self.bounds.fit(choice):
            for layer in rows[::-1]:
                now = int(choice[layer])
                if now == least[layer]:
                    continue
                choice[layer] = self.columns[layer, now - 1]
                if self.bounds.fit(choice):
                    break
        return make_plan(self.problem, choice[self.group], "haq")


def _agent(layers: _Layers, evaluations: int, seed: int) -> DDPG:
    from stable_baselines3 import DDPG

    agent = DDPG(
        "MlpPolicy",
        layers,
        buffer_size=max(128, 2 * evaluations) * len(layers),
        batch_size=64,
        gamma=1.0,
        tau=0.01,
        policy_kwargs={"net_arch": [300, 300]},
        seed=seed,
        device="cpu",
    )
    begin_learning(agent)
    for part, rate in _RATES.items():
        for group in getattr(agent, part).optimizer.param_groups:
            group["lr"] = rate
    # train() would put both back to one rate
    agent._update_learning_rate = lambda optimizers: None  # type: ignore[method-assign]
    return agent


def _remember(agent: DDPG, layers: _Layers, actions: np.ndarray, reward: float) -> None:
    """The episode's steps, each with the whole episode's reward."""
    assert agent.replay_buffer is not None
    last = 0.0
    for layer, action in enumerate(actions):
        ends = layer + 1 == len(layers)
        state = layers.state(layer, last)
        after = state if ends else layers.state(layer + 1, float(action))
        # the buffer holds actions as the actor puts them out, in [−1, 1]
        stored = np.array([[2 * action - 1]], dtype=np.float32)
        agent.replay_buffer.add(
            state[None], after[None], stored, np.array([reward]), np.array([ends]), [{}]
        )
        last = float(action)


def _truncated(mean: float, deviation: float, uniform: float) -> float:
    """A draw from the normal truncated to [0, 1], from a uniform one."""
    low, high = ndtr((0 - mean) / deviation), ndtr((1 - mean) / deviation)
    draw = mean + deviation * float(ndtri(low + uniform * (high - low)))
    return float(np.clip(draw, 0, 1))
