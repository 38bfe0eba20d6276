"""From sensitivity to a problem: what each channel would lose at each width, and what it costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from bitwright.allocate.plan import Plan
from bitwright.allocate.problem import Problem
from bitwright.arith.grid import MAX_BITS
from bitwright.curvature import Estimate, Sensitivity
from bitwright.network import Network
from bitwright.quantize.weights import WeightTable

WIDTHS = tuple(range(1, MAX_BITS + 1))


def shrunk(estimate: Estimate) -> np.ndarray:
    """Traces [C] shrunk towards the layer's mean by as much as their errors explain their spread.

    `t_c = m + w (v_c − m)`, `w = max(0, 1 − mean_c(se_c²) / var_c(v_c)) · n / (n + 1)` with the
    measured traces v, their mean m, standard errors se and n samples: positive-part James–Stein
    (Efron and Morris, JASA 68, 1973) with one noise level a layer, a channel's own error being as
    uncertain as its trace. An optimizer otherwise takes the bits of just those channels whose
    traces came out too small: of 1,000 class rows, those of classes no calibration image shows.
    The last factor keeps a channel that never carried a gradient (a dead ReLU) unobserved rather
    than insensitive.
    """
    value = estimate.value
    spread = value.var()
    weight = max(0.0, 1 - estimate.variance.mean() / spread) if spread > 0 else 0.0
    weight *= estimate.samples / (estimate.samples + 1)
    return weight * value + (1 - weight) * value.mean()


def channel_problem(
    network: Network,
    sensitivity: Sensitivity,
    tables: Mapping[str, WeightTable],
    budget_bits: int,
    allowed: Mapping[str, Sequence[int]] | None = None,
    *,
    shrink: bool = True,
) -> Problem:
    """One item a channel: predicted loss `½ · (Tr H_c / n_c) · ‖Q_b(w_c) − w_c‖²` at b bits.

    HAWQ-V2's score (arXiv 1911.03852, eq. 2.11) for each channel instead of each layer.

    Args:
        network, sensitivity, tables: what was captured, measured and fitted.
        budget_bits: bound on Σ bits · weights.
        allowed: layer name -> widths it may take; all eight where absent.
        shrink: take :func:`shrunk` traces; False takes them as measured.
    """
    losses, costs, choices, names = [], [], [], []
    for layer in network.layers:
        estimate = sensitivity.layers[layer.name]
        trace = (shrunk(estimate) if shrink else estimate.value) / layer.fan_in
        losses.append(0.5 * trace[:, None] * tables[layer.name].error.numpy().T)
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


def plan_bits(network: Network, plan: Plan) -> dict[str, np.ndarray]:
    """The plan's widths, layer name -> int64 [rows]."""
    cuts = np.cumsum([layer.rows for layer in network.layers])[:-1]
    parts = np.split(np.asarray(plan.bits), cuts)
    return {layer.name: part for layer, part in zip(network.layers, parts, strict=True)}
