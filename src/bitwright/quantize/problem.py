"""From predicted losses to a problem: one item a channel, what it loses and costs at each width."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from bitwright.allocate.plan import Plan
from bitwright.allocate.problem import Problem
from bitwright.curvature import Sensitivity
from bitwright.network import Network
from bitwright.quantize.scores import WIDTHS, Rows, channel_losses, shrunk
from bitwright.quantize.weights import WeightTable


def channel_problem(
    network: Network,
    sensitivity: Sensitivity,
    tables: Mapping[str, WeightTable],
    budget_bits: int,
    allowed: Mapping[str, Sequence[int]] | None = None,
    *,
    shrink: bool = True,
    score: str | Mapping[str, np.ndarray] = "trace",
    rows: Rows | None = None,
) -> Problem:
    """One item a channel, with what it would lose at each width and what it costs there.

    Args:
        network, sensitivity, tables: what was captured, measured and fitted.
        budget_bits: bound on Σ bits · weights.
        allowed: layer name -> widths it may take; all eight where absent.
        shrink: take :func:`shrunk` numbers; False takes them as measured.
        score: a name in `SCORES`; or what :func:`channel_losses` gave, to solve several problems
            for one measurement.
        rows: for scores other than `trace`.

    Raises:
        BitwrightError: an unknown score, or one whose rows or labels are not given.
    """
    if isinstance(score, str):
        score = channel_losses(score, network, sensitivity, tables, shrink=shrink, rows=rows)
    losses, costs, choices, names = [], [], [], []
    for layer in network.layers:
        losses.append(score[layer.name])
        costs.append(np.tile(np.array(WIDTHS, dtype=np.int64) * layer.fan_in, (layer.rows, 1)))
        free = set((allowed or {}).get(layer.name, WIDTHS))
        choices.append(np.tile(np.array([w in free for w in WIDTHS]), (layer.rows, 1)))
        names += [f"{layer.name}[{c}]" for c in range(layer.rows)]
    n = len(names)
    return Problem(
        names=tuple(names),
        choices=WIDTHS,
        loss=np.concatenate(losses),
        cost=np.concatenate(costs),
        budget=int(budget_bits),
        allowed=np.concatenate(choices),
        tie=np.arange(n),
    )


def layer_ties(network: Network) -> np.ndarray:
    """Tie ids that give all channels of a layer one width."""
    return np.repeat(np.arange(len(network.layers)), [layer.rows for layer in network.layers])


def trace_order(
    network: Network, sensitivity: Sensitivity, tables: Mapping[str, WeightTable] | None = None
) -> np.ndarray:
    """Channels by descending sensitivity, int64 [n]; ties keep their place.

    With `tables`, by trace × squared step (the squared error at 4 bits per weight): invariant to
    rescaling a channel. Without, by the raw mean trace, the paper's literal order.
    """
    scores = []
    for layer in network.layers:
        trace = shrunk(sensitivity.layers[layer.name]) / layer.fan_in
        if tables is not None:
            trace = trace * tables[layer.name].error[3].numpy() / layer.fan_in
        scores.append(trace)
    return np.argsort(-np.concatenate(scores), kind="stable")


def layer_order(network: Network, sensitivity: Sensitivity) -> np.ndarray:
    """Channels by falling mean trace of their layers, HAWQ-V2's order, int64 [n]."""
    mean = [sensitivity.layers[la.name].value.sum() / la.weights for la in network.layers]
    return np.argsort(-np.array(mean)[layer_ties(network)], kind="stable")


def plan_bits(network: Network, plan: Plan) -> dict[str, np.ndarray]:
    """The plan's widths of weights, layer name -> int64 [rows]; activations may stand behind."""
    return plan_rows(network, plan.bits)


def plan_rows(network: Network, values: np.ndarray) -> dict[str, np.ndarray]:
    """One value an item of a plan, by layer: layer name -> [rows]."""
    cuts = np.cumsum([layer.rows for layer in network.layers])
    parts = np.split(np.asarray(values), cuts)[:-1]
    return {layer.name: part for layer, part in zip(network.layers, parts, strict=True)}
