"""Widths of activations: what each edge would lose at each width (HAWQ-V2, arXiv 1911.03852, 3.3).

    Ω_e(b) = ½ Σ_c Tr_c · E‖Q_b(x_c) − x_c‖²

with the trace Tr_c of edge e's channel c (summed over its positions) and the mean squared error of
one of its numbers. Edges of one group share a grid and a width; one whose values are those of
another of its group (a reshape, a pooling by maximum) loses nothing of its own. The paper takes the
traces of whole activations; by channels the error is where the curvature is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bitwright.allocate.problem import Problem
from bitwright.curvature import Sensitivity
from bitwright.network import Network, batches, fresh_edges
from bitwright.quantize.activations import (
    EDGE_WIDTHS,
    EdgeGrid,
    channels,
    fake_quantize,
    histograms,
    watch,
)


@dataclass(frozen=True)
class EdgeTable:
    """Of one group of edges.

    Attributes:
        grids: width -> grid.
        errors: edge -> mean squared error of a number, float64 [C, widths]; of its fresh edges.
    """

    grids: Mapping[int, EdgeGrid]
    errors: Mapping[str, np.ndarray]


def edge_tables(
    network: Network,
    x: Tensor,
    *,
    weights: Mapping[str, np.ndarray] | None = None,
    percentile: float | None = None,
    chunk: int = 64,
    progress: Callable[[float], None] | None = None,
) -> dict[int, EdgeTable]:
    """Grids of all widths for each group, and their errors on `x`.

    Args:
        network: captured network.
        x: [n, ...] calibration rows.
        weights, percentile: what decides on ranges, as for :func:`calibrate`.
        chunk: rows in a pass.
        progress: called with the finished fraction of the first two of three passes.
    """
    group = {e.name: e.group for e in network.edges}
    found = histograms(network, x, weights=weights, chunk=chunk, progress=progress)
    grids = {g: {b: h.grid(b, percentile) for b in EDGE_WIDTHS} for g, h in found.items()}
    fresh = fresh_edges(network)
    errors: dict[str, Tensor] = {}
    seen: dict[str, int] = {}

    def note(name: str, value: Tensor) -> None:
        numbers = channels(value)
        found = torch.stack(
            [
                (fake_quantize(numbers, grid) - numbers).double().square().sum(1)
                for grid in grids[group[name]].values()
            ],
            1,
        )
        errors[name] = errors.get(name, torch.zeros_like(found)) + found
        seen[name] = seen.get(name, 0) + numbers.shape[1]

    for rows in batches(x, chunk):
        watch(network, rows, fresh, note)
    return {
        g: EdgeTable(
            grids[g],
            {n: (errors[n] / seen[n]).numpy() for n in sorted(fresh) if group[n] == g},
        )
        for g in grids
    }


def edge_problem(
    network: Network,
    sensitivity: Sensitivity,
    tables: Mapping[int, EdgeTable],
    mean_bits: float,
) -> Problem:
    """One item a group of edges; the budget is memory: mean bits of a stored number.

    Args:
        network, sensitivity, tables: what was captured, measured and fitted.
        mean_bits: bound on Σ bits · numbers / Σ numbers over fresh edges, of one row.
    """
    size = {e.name: int(np.prod(e.shape)) for e in network.edges}
    groups = sorted(tables)
    widths = np.array(EDGE_WIDTHS)
    numbers = np.array([sum(size[n] for n in tables[g].errors) for g in groups], dtype=np.int64)
    loss = np.array([
        sum((0.5 * sensitivity.edges[n].value @ e for n, e in tables[g].errors.items()),
            np.zeros(len(widths)))
        for g in groups
    ])  # fmt: skip
    first = {e.group: e.name for e in reversed(network.edges)}
    return Problem(
        names=tuple(first[g] for g in groups),
        choices=EDGE_WIDTHS,
        loss=loss,
        cost=np.maximum(numbers, 1)[:, None] * widths,
        budget=int(mean_bits * np.maximum(numbers, 1).sum()),
        allowed=np.ones_like(loss, dtype=bool),
        tie=np.arange(len(groups)),
    )
