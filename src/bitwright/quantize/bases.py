"""Multi-bit rows as one more choice: `uniform k bits` or `k bases`, whichever costs less.

A row of k bases has the codes of a row of k bits, and k + 1 bytes more: coordinates and an offset
(:mod:`bitwright.arith.bases`). With the price λ of a bit, the multiplier of the budget where all
rows are uniform, a row's width k becomes k bases where

    loss of k bases + 8 (k + 1) λ  <  loss of k bits,

and costs that much more. Whatever chooses widths then goes on as always, and pays what they cost.
docs/decisions/0035-multi-bit-choice.md says what it is worth.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import torch

from bitwright.allocate.multipliers import price
from bitwright.allocate.plan import Plan
from bitwright.allocate.problem import Problem
from bitwright.arith import bases
from bitwright.arith.grid import BASES
from bitwright.network import Layer, Network
from bitwright.quantize.problem import plan_rows
from bitwright.quantize.scores import WIDTHS
from bitwright.quantize.weights import WeightTable

#: how the levels of a row may lie
LEVELS = ("uniform", "multi-bit")


def coordinate_bytes(bits: np.ndarray) -> np.ndarray:
    """Bytes of coordinates and offset that rows of so many bases take."""
    return np.asarray(bits) + 1


def bases_tables(
    network: Network,
    tables: Mapping[str, WeightTable],
    progress: Callable[[float], None] | None = None,
) -> dict[str, WeightTable]:
    """The tables with the best 2, 3 and 4 bases of each row in the place of those widths."""
    found = {}
    for i, layer in enumerate(network.layers):
        table, matrix = tables[layer.name], network.matrix(layer)
        scale, zero, error = (t.clone() for t in (table.scale, table.zero, table.error))
        coordinates = torch.zeros(*scale.shape, BASES[-1], dtype=torch.int64)
        for k in BASES:
            grid, lost = bases.fit(matrix, k)
            assert grid.coordinates is not None
            scale[k - 1], zero[k - 1], error[k - 1] = grid.scale, grid.zero, lost
            coordinates[k - 1] = grid.coordinates
        found[layer.name] = WeightTable(scale, zero, error, coordinates)
        if progress:
            progress((i + 1) / len(network.layers))
    return found


def multibit_problem(
    problem: Problem, network: Network, losses: Mapping[str, np.ndarray]
) -> Problem:
    """The problem with every width in the form that is worth its bytes.

    The narrowest width that an item may take stays uniform, so that what is feasible stays so; and
    bases whose bytes would cost more than the next width are no choice.

    Args:
        problem: of uniform rows, one item a channel, ties and limits applied.
        network: captured.
        losses: layer name -> float64 [rows, 8], predicted with :func:`bases_tables`.
    """
    worth = price(problem)
    loss = np.concatenate([losses[layer.name] for layer in network.layers])
    extra = np.concatenate([np.tile(_extra_bits(la), (la.rows, 1)) for la in network.layers])
    columns = np.arange(len(problem.choices))
    wider = columns > np.argmax(problem.allowed, axis=1)[:, None]
    better = (extra > 0) & wider & (loss + worth * extra < problem.loss)
    return replace(
        problem,
        loss=np.where(better, loss, problem.loss),
        cost=problem.cost + np.where(better, extra, 0),
        bases=better,
    )


def _extra_bits(layer: Layer) -> np.ndarray:
    """Bits of coordinates at each width, int64 [8]; 0 where there are no bases."""
    widths = np.array(WIDTHS, dtype=np.int64)
    extra = np.where(np.isin(widths, BASES), 8 * coordinate_bytes(widths), 0)
    return np.where(extra <= layer.fan_in, extra, 0)


def tables_of(
    network: Network,
    plan: Plan,
    uniform: Mapping[str, WeightTable],
    multibit: Mapping[str, WeightTable],
) -> dict[str, WeightTable]:
    """The tables that a plan is rounded on: multi-bit where it has bases."""
    if not plan.bases.any():
        return dict(uniform)
    found = {}
    for name, own in plan_rows(network, plan.bases).items():
        chosen = torch.from_numpy(own)
        one, other = uniform[name], multibit[name]
        assert other.coordinates is not None
        found[name] = WeightTable(
            torch.where(chosen, other.scale, one.scale),
            torch.where(chosen, other.zero, one.zero),
            torch.where(chosen, other.error, one.error),
            torch.where(chosen[:, None], other.coordinates, 0),
        )
    return found
