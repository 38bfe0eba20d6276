"""Frontiers of a run: what the best plans of every size lose, by layer and by channel.

HAWQ-V2 (arXiv 1911.03852, sec. 2.2) walks along the frontier of monotone assignments; the frontier
of all assignments and that of single channels stand beside it. All are kept whole, with every
point's widths; bounds other than the budget are left out.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np

from bitwright import allocate, quantize
from bitwright.allocate import Frontier, Plan
from bitwright.pipeline.bench import Workbench
from bitwright.report.summary import FrontierRow

SCHEMA = 1
#: states that a frontier by layer keeps: enough for all of MobileNetV2's, 53 layers × 8 widths
_STATES = 131_072
#: budgets of the frontier by channel, and points of a frontier that the report shows
_BUDGETS, _SHOWN = 30, 160


@dataclass(frozen=True, eq=False)
class Curve:
    """A frontier's points, by rising cost.

    Attributes:
        name: `channels`, `layers` or `layers, monotone`.
        method: the allocator.
        exact: whether no plan of its kind betters any point.
        cost: int64 [p], in bits.
        loss: float64 [p], predicted.
        widths: p texts: a digit a layer, in the order of the network; by channel a word a layer
            with a digit a channel.
    """

    name: str
    method: str
    exact: bool
    cost: np.ndarray
    loss: np.ndarray
    widths: tuple[str, ...]


def frontiers(bench: Workbench, plan: Plan) -> tuple[Curve, ...]:
    """The three frontiers of the run's problem; that by channel has a point at the plan's budget.

    The first two are the whole frontiers; by channel the knapsack is solved at thirty budgets.
    Cost: below a second for ResNet-20, about three for MobileNetV2.
    """
    problem = bench.weights(plan.budget).with_limits()
    tied = problem.with_ties(bench.layer_ties()[: len(problem.names)])
    layer = quantize.layer_ties(bench.network)
    order = quantize.layer_order(bench.network, bench.sensitivity)
    down = allocate.pareto(tied, order, resolution=_STATES)
    every = allocate.frontier_dp(tied, resolution=_STATES)
    _, first = np.unique(layer, return_index=True)
    least, most = allocate.feasible_range(problem)
    own = min(max(plan.budget, least), most)
    rise = np.linspace(0, 1, _BUDGETS) ** 1.5  # the first bits save the most
    budgets = sorted({*(least + (rise * (most - least)).astype(int)).tolist(), own})
    plans = [allocate.knapsack(problem.with_budget(b)) for b in budgets]
    return (
        _by_layer("layers, monotone", down, first),
        _by_layer("layers", every, first),
        _by_channel("channels", plans, layer),
    )


def _by_layer(name: str, found: Frontier, first: np.ndarray) -> Curve:
    points = found.points
    bits = np.array(found.problem.choices)[found.choices(first)]
    texts = (bits + ord("0")).astype(np.uint8)
    return Curve(
        name,
        found.method,
        found.exact,
        np.array([c for c, _ in points]),
        np.array([v for _, v in points]),
        tuple(row.tobytes().decode() for row in texts),
    )


def _by_channel(name: str, plans: list[Plan], layer: np.ndarray) -> Curve:
    """Each plan that betters those before it."""
    kept: list[Plan] = []
    for plan in plans:
        if not kept or (plan.cost > kept[-1].cost and plan.loss < kept[-1].loss):
            kept.append(plan)
    cuts = np.flatnonzero(np.diff(layer)) + 1
    widths = (
        " ".join("".join(map(str, part.tolist())) for part in np.split(plan.bits, cuts))
        for plan in kept
    )
    cost, loss = np.array([p.cost for p in kept]), np.array([p.loss for p in kept])
    return Curve(name, "knapsack", False, cost, loss, tuple(widths))


def to_json(curves: tuple[Curve, ...], bench: Workbench) -> str:
    """Versioned JSON; of every frontier a list for each quantity."""
    network = bench.network
    found = {
        "schema": SCHEMA,
        "layers": [la.name for la in network.layers],
        "weights": [la.weights for la in network.layers],
        "frontiers": [
            {
                "name": c.name,
                "method": c.method,
                "exact": c.exact,
                "cost_bits": c.cost.tolist(),
                "mean_bits": np.round(c.cost / network.weights, 6).tolist(),
                "loss": [float(f"{v:.9g}") for v in c.loss.tolist()],
                "widths": c.widths,
            }
            for c in curves
        ],
    }
    return json.dumps(found, separators=(",", ":"))


def shown(curve: Curve, weights: int, at: int) -> FrontierRow:
    """What the report draws of a frontier: points evenly along the cost, and that for `at` bits."""
    last = len(curve.cost) - 1
    wanted = np.linspace(curve.cost[0], curve.cost[-1], _SHOWN)
    index = np.searchsorted(curve.cost, wanted) if last >= _SHOWN else np.arange(last + 1)
    best = int(np.searchsorted(curve.cost, at, side="right")) - 1
    index = np.unique(np.clip([*index, best], 0, last))
    points = tuple((float(curve.cost[i] / weights), float(curve.loss[i])) for i in index)
    return FrontierRow(curve.name, curve.exact, last + 1, points)
