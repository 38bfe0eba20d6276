"""GAT: `Σ_j Q(α_ij) Q(x̂_j Ŵᵀ)` by head; scores and their softmax in float, products on bytes.

Scores are sums over a node's channels of what the linear layer gives before it is rounded, and the
softmax is over a node's edges: both cost less than one pass over the messages, and are not what
reads memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch_geometric.nn import GATConv
from torch_geometric.utils import add_self_loops, remove_self_loops

from bitwright.errors import BitwrightError
from bitwright.graph.integer.attention import attend_and_sum, node_scores
from bitwright.graph.integer.neighbours import Neighbourhoods, neighbourhoods
from bitwright.graph.integer.place import Place, grid_of
from bitwright.graph.integer.products import BLOCK, Affine, Grid, Product, affine, product, rounding
from bitwright.graph.weights import round_weights


@dataclass(frozen=True)
class GATLayer:
    """From codes to codes, or to floats.

    Attributes:
        messages: the linear layer, with each head's channels padded to a multiple of four.
        source, target: attention of a head's channels, float32 [heads, channels padded].
        slope: of the leaky ReLU.
        channels: of a head.
        mean: whether heads are averaged, not side by side.
    """

    messages: Product
    grid: Grid
    near: Neighbourhoods
    source: Tensor
    target: Tensor
    slope: float
    channels: int
    mean: bool
    after: Affine

    def __call__(self, codes: Tensor) -> Tensor:
        """Codes int8 [nodes, inputs padded]."""
        rows = self.messages.after.empty(len(codes))
        scores = torch.empty(2, len(codes), len(self.source))
        parts = zip(codes.split(BLOCK), rows.split(BLOCK), scores.split(BLOCK, 1), strict=True)
        given = (self.messages.less.numpy(), self.messages.scale.numpy(),
                 self.source.numpy(), self.target.numpy())  # fmt: skip
        for some, target, found in parts:
            sums = torch._int_mm(some, self.messages.weight)
            self.messages.finish(sums, None, target)
            node_scores(sums.numpy(), *given, found.numpy())
        out, (step, zero) = self.after.empty(len(codes)), self.grid
        attend_and_sum(
            rows.numpy(), self.near.starts.numpy(), self.near.counts.numpy(),
            self.near.columns.numpy().reshape(-1), scores.numpy(), self._powers(scores).numpy(),
            np.float32(self.slope), 128 - zero, np.float32(step), self.channels, self.mean,
            self.after.gain.numpy(), self.after.bias.numpy(), *rounding(self.after.grid),
            out.numpy(),
        )  # fmt: skip
        return out

    def _powers(self, scores: Tensor) -> Tensor:
        """Exponentials of nodes, float32 [2, nodes, 2 heads]; a target's are at most one."""
        source, target = scores
        most = source.amax(0)
        whole = target + most
        peak = torch.maximum(whole, self.slope * whole)
        return torch.stack(
            [
                torch.cat([source - most, self.slope * (source - most)], 1),
                torch.cat([whole - peak, self.slope * whole - peak], 1),
            ]
        ).exp_()


def layer(place: Place) -> GATLayer:
    """The layer on bytes.

    Raises:
        BitwrightError: it is another attention than GAT's.
    """
    conv = place.conv
    shared = isinstance(conv, GATConv) and getattr(conv, "lin", None) is not None
    if not shared or conv.res is not None or conv.lin_edge is not None:
        raise BitwrightError(
            f"{place.path} is a {type(conv).__name__}; on bytes run GATConv without residuals and "
            "edge features"
        )
    if not 0 <= conv.negative_slope <= 1 or not conv.add_self_loops:
        raise BitwrightError(f"{place.path} needs self loops, and a slope between 0 and 1")
    heads, each = conv.heads, conv.out_channels
    grid, wide = grid_of(place.net, f"{place.path}:x"), -(-each // 4) * 4
    weight = _by_head(conv.lin.weight.detach(), heads, wide)
    edges, _ = remove_self_loops(place.edges)
    edges, _ = add_self_loops(edges, num_nodes=place.nodes)
    ends: Any = (
        _by_head(round_weights(att.detach(), 8).reshape(heads * each, 1), heads, wide)
        for att in (conv.att_src, conv.att_dst)
    )
    source, target = (end.reshape(heads, wide).contiguous() for end in ends)
    channels = heads * each if conv.concat else each
    bias = None if conv.bias is None else conv.bias.detach()
    return GATLayer(
        product(weight, place.grid, affine(heads * wide, None, None, grid)),
        grid, neighbourhoods(edges, place.nodes), source, target, conv.negative_slope, each,
        not conv.concat, place.follows.after(bias, channels),
    )  # fmt: skip


def _by_head(weight: Tensor, heads: int, wide: int) -> Tensor:
    """Rows of each head with zeros behind them, [heads · wide, inputs]."""
    own = weight.reshape(heads, -1, weight.shape[1])
    found = own.new_zeros(heads, wide, weight.shape[1])
    found[:, : own.shape[1]] = own
    return found.flatten(0, 1)
