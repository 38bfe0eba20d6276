"""Edges by target in groups of four, and sums of byte rows over them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from bitwright.graph.integer.dots import AHEAD
from bitwright.graph.integer.kernels import sum_neighbours
from bitwright.graph.integer.products import Affine, Grid, rounding, width_of


@dataclass(frozen=True)
class Neighbourhoods:
    """Edges by target; groups that are not full end with their last column once more, and k = 0.

    Attributes:
        starts: int64 [nodes + 1], each node's first group of four edges.
        counts: int64 [nodes], edges into each.
        columns: int32 [groups + some to look ahead, 4], sources.
        factors: k, uint8 [groups + the same, 4].
        steps: float32 [nodes]; the coefficient of an edge is its target's step times k.
    """

    starts: Tensor
    counts: Tensor
    columns: Tensor
    factors: Tensor
    steps: Tensor

    @cached_property
    def totals(self) -> Tensor:
        """Σ k into each node, int64 [nodes]."""
        sums = torch.zeros(len(self.factors) + 1, dtype=torch.int64)
        sums[1:] = self.factors.sum(1, dtype=torch.int64).cumsum(0)
        return sums[self.starts[1:]] - sums[self.starts[:-1]]


def neighbourhoods(
    edge_index: Tensor, nodes: int, factors: Tensor | None = None, steps: Tensor | None = None
) -> Neighbourhoods:
    """Edges [2, edges] from sources to targets, int64.

    Args:
        factors: k uint8 [edges]; none: ones.
        steps: float32 [nodes]; none: ones.
    """
    order = edge_index[1].argsort(stable=True)
    counts = torch.bincount(edge_index[1], minlength=nodes)
    groups = (counts + 3) // 4
    starts = torch.zeros(nodes + 1, dtype=torch.int64)
    starts[1:] = groups.cumsum(0)
    every = 4 * (int(starts[-1]) + AHEAD)
    first = 4 * starts[:-1] - (counts.cumsum(0) - counts)
    places = torch.arange(len(order)) + first.repeat_interleave(counts)
    known = torch.full((every,), -1, dtype=torch.int64)
    known[places] = torch.arange(len(order))
    filled = known.cummax(0).values.clamp(min=0)
    columns = torch.zeros(every, dtype=torch.int32)
    if len(order):
        columns = edge_index[0][order].int()[filled]
    k = torch.zeros(every, dtype=torch.uint8)
    k[places] = torch.ones_like(k[places]) if factors is None else factors[order]
    given = torch.ones(nodes) if steps is None else steps
    return Neighbourhoods(starts, counts, columns.reshape(-1, 4), k.reshape(-1, 4), given)


def summed(
    codes: Tensor, grid: Grid, near: Neighbourhoods, scale: Tensor, after: Affine,
    own: float | None = None,
) -> Tensor:  # fmt: skip
    """`scale_i · s (Σ_j k_ij (q_j − z) + own (q_i − z))`, then `after`.

    Args:
        codes: q − 128, int8 [nodes, channels padded], of the grid.
        grid: (s, z) of the codes.
        near: neighbours; their steps are not looked at.
        scale: float32 [nodes].
        after: factors and offsets by channel, and the grid that follows.
        own: factor of a node's own row.
    """
    step, zero = grid
    out = after.empty(len(codes))
    sum_neighbours(
        codes.numpy(), near.starts.numpy(), near.columns.numpy(),
        near.factors.view(torch.int32).numpy().reshape(-1), near.totals.numpy(), 128 - zero,
        (step * scale).numpy(), None if own is None else np.float32(own), after.gain.numpy(),
        after.bias.numpy(), *rounding(after.grid), width_of(codes.shape[1]), out.numpy(),
    )  # fmt: skip
    return out
