"""Weights and activations in one problem: a part for each, their products bounded (BOPs)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from bitwright.allocate.plan import Plan
from bitwright.allocate.problem import Problem, Product
from bitwright.network import Network
from bitwright.quantize.activations import EDGE_WIDTHS, EdgeGrid
from bitwright.quantize.edge_scores import EdgeTable


def with_activations(weights: Problem, activations: Problem, product: Product) -> Problem:
    """The items of both, activations behind the weights; they cost nothing of the budget.

    In the 8-bit container of the file a narrow activation saves no bytes; it counts in `product`.

    Args:
        weights: one item a channel.
        activations: :func:`~bitwright.quantize.edge_scores.edge_problem`, an item a group of edges;
            its budget is not looked at.
        product: of all items in this order.
    """
    n, k = len(weights.names), len(activations.names)
    first = weights.choices.index(activations.choices[0])
    place = slice(first, first + len(activations.choices))
    loss = np.tile(activations.loss[:, :1], (1, len(weights.choices)))
    loss[:, place] = activations.loss
    allowed = np.zeros(loss.shape, dtype=bool)
    allowed[:, place] = activations.allowed
    return Problem(
        names=(*weights.names, *(f"activations of {name}" for name in activations.names)),
        choices=weights.choices,
        loss=np.concatenate([weights.loss, loss]),
        cost=np.concatenate([weights.cost, np.zeros(loss.shape, dtype=np.int64)]),
        budget=weights.budget,
        allowed=np.concatenate([weights.allowed, allowed]),
        tie=np.concatenate([weights.tie, n + np.arange(k)]),
        limits=tuple(
            replace(li, cost=np.concatenate([li.cost, np.zeros(loss.shape)]))
            for li in weights.limits
        ),
        part=np.repeat([0, 1], [n, k]),
        products=(product,),
        bases=np.concatenate([weights.bases, np.zeros(loss.shape, dtype=bool)]),
    )


def blank_edges(network: Network) -> Problem:
    """The activations' items before anything is measured: no losses."""
    groups = sorted({e.group for e in network.edges})
    first = {e.group: e.name for e in reversed(network.edges)}
    shape = (len(groups), len(EDGE_WIDTHS))
    return Problem(
        names=tuple(first[g] for g in groups),
        choices=EDGE_WIDTHS,
        loss=np.zeros(shape),
        cost=np.tile(np.array(EDGE_WIDTHS), (len(groups), 1)),
        budget=0,
        allowed=np.ones(shape, dtype=bool),
        tie=np.arange(len(groups)),
    )


def edge_grids(tables: Mapping[int, EdgeTable], plan: Plan) -> dict[int, EdgeGrid]:
    """The grids of a plan's activations, by group of edges."""
    groups = sorted(tables)
    widths = plan.bits[len(plan.names) - len(groups) :].tolist()
    return {g: tables[g].grids[b] for g, b in zip(groups, widths, strict=True)}


def edge_order(activations: Problem) -> np.ndarray:
    """Activations by falling sensitivity, int64 [k]: the predicted loss of a number at 4 bits.

    Trace times squared step, as channels of weights are ordered.
    """
    column = activations.choices.index(4)
    numbers = activations.cost[:, 0] / activations.choices[0]
    return np.argsort(-activations.loss[:, column] / numbers, kind="stable")
