"""Widths under an accumulator: what every channel and input would lose where its sums must fit.

For each input width a, every channel's 8-bit grid that cannot overflow (:mod:`.guarantee`) leaves a
squared error, which the curvature prices as it prices rounding (HAWQ-V2, arXiv 1911.03852, eq.
2.11, by channels); narrow inputs lose themselves and leave weights room. A group of edges is read
by some layers, and every layer reads one group, so that the sum falls apart by groups:

    a_g = argmin_a  Ω_g(a) + Σ_{l reads g} Σ_c ½ (Tr_c / n_c) ‖Q_{c,a}(w_c) − w_c‖²

is the optimum of the whole, found by looking at all widths. Layers called on several groups are
priced with the first. Weights' widths are then chosen as always, among grids that fit: the knapsack
sees tables in which a width that cannot fit with its own step has the error of the one that does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from bitwright.arith.accumulator import Accumulator
from bitwright.arith.grid import MAX_BITS, quantize
from bitwright.curvature import Sensitivity
from bitwright.network import Layer, Network
from bitwright.overflow.guarantee import excess, fit_within, squared_errors
from bitwright.overflow.operands import input_ranges, read_groups
from bitwright.quantize import (
    EDGE_WIDTHS,
    EdgeGrid,
    EdgeTable,
    QuantizedLayer,
    WeightTable,
    channel_losses,
    edge_problem,
)


@dataclass(frozen=True)
class InputWidths:
    """Chosen widths of inputs.

    Attributes:
        edges: group -> grid.
        losses: group -> predicted loss at each of :data:`~bitwright.quantize.EDGE_WIDTHS`, that of
            the weights that read it and its own.
    """

    edges: dict[int, EdgeGrid]
    losses: dict[int, np.ndarray]


def input_widths(
    network: Network,
    sensitivity: Sensitivity,
    tables: Mapping[str, WeightTable],
    edges: Mapping[int, EdgeTable],
    accumulator: Accumulator,
    *,
    most: int = MAX_BITS,
    progress: Callable[[float], None] | None = None,
) -> InputWidths:
    """The widths of all inputs that lose least together with weights that cannot overflow.

    Args:
        network, sensitivity: captured and measured.
        tables: of the weights; edges: of the activations, at all widths.
        accumulator: that every sum must fit.
        most: bits that an input may have.
        progress: called with the finished fraction.
    """
    problem = edge_problem(network, sensitivity, edges, MAX_BITS)
    losses = {g: problem.loss[i].copy() for i, g in enumerate(sorted(edges))}
    for i, bits in enumerate(EDGE_WIDTHS):
        grids = {g: table.grids[bits] for g, table in edges.items()}
        fitted = fitted_tables(network, tables, grids, accumulator, widths=(MAX_BITS,))
        found = channel_losses("trace", network, sensitivity, fitted)
        for name, group in read_groups(network, grids).items():
            losses[group][i] += found[name][:, MAX_BITS - 1].sum()
        if progress:
            progress((i + 1) / len(EDGE_WIDTHS))
    allowed = np.where(np.array(EDGE_WIDTHS) <= most, 0.0, np.inf)
    chosen = {g: EDGE_WIDTHS[int(np.argmin(loss + allowed))] for g, loss in losses.items()}
    return InputWidths({g: edges[g].grids[b] for g, b in chosen.items()}, losses)


def fitted_tables(
    network: Network,
    tables: Mapping[str, WeightTable],
    edges: Mapping[int, EdgeGrid],
    accumulator: Accumulator,
    *,
    widths: tuple[int, ...] = tuple(range(1, MAX_BITS + 1)),
) -> dict[str, WeightTable]:
    """The tables with, for rows that could overflow, the error of their best grid that cannot.

    Their scales are those grids'; the integers come from :func:`~.guarantee.guaranteed` once widths
    are chosen, as they are not the nearest ones. Errors are above those of narrower widths nowhere.
    """
    ranges, found = input_ranges(network, edges), dict(tables)
    for layer in network.layers:
        if layer.name in ranges:
            found[layer.name] = _fitted(
                network.matrix(layer), layer, tables[layer.name], ranges[layer.name], accumulator,
                widths,
            )  # fmt: skip
    return found


def _fitted(
    matrix: Tensor,
    layer: Layer,
    table: WeightTable,
    within: tuple[int, int],
    accumulator: Accumulator,
    widths: tuple[int, ...],
) -> WeightTable:
    scale, zero, error = table.scale.clone(), table.zero.clone(), table.error.clone()
    for bits in widths:
        width = torch.full((layer.rows,), bits)
        grid = table.grid(width)
        stored = QuantizedLayer(quantize(matrix, grid), grid, torch.zeros(layer.rows))
        exposed = excess(layer, stored, within, accumulator) > 1
        if bool(exposed.any()):
            some = matrix[exposed].double()
            codes, fitted = fit_within(some, width[exposed], within, accumulator)
            scale[bits - 1, exposed] = fitted.scale
            zero[bits - 1, exposed] = fitted.zero
            error[bits - 1, exposed] = squared_errors(some, codes, fitted)
    return replace(table, scale=scale, zero=zero, error=error)
