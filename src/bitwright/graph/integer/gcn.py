"""GCN: `Q(Â) Q(x̂ Ŵᵀ) + b`, one product, then the sum of its codes with 8-bit coefficients."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch_geometric.nn.conv.gcn_conv import gcn_norm

from bitwright.errors import BitwrightError
from bitwright.graph.integer.neighbours import Neighbourhoods, neighbourhoods, summed
from bitwright.graph.integer.place import Follows, Place, grid_of, linear
from bitwright.graph.integer.products import Affine, Grid, Product
from bitwright.graph.weights import edge_steps


@dataclass(frozen=True)
class GCNLayer:
    """From codes to codes, or to floats."""

    messages: Product
    grid: Grid
    near: Neighbourhoods
    after: Affine

    def __call__(self, codes: Tensor) -> Tensor:
        """Codes int8 [nodes, inputs padded]."""
        return summed(self.messages(codes), self.grid, self.near, self.near.steps, self.after)


def layer(place: Place) -> GCNLayer:
    """The layer on bytes.

    Raises:
        BitwrightError: it does not normalize, or keeps the edges of another graph.
    """
    conv = place.conv
    if not conv.normalize:
        raise BitwrightError(f"{place.path} has normalize=False; on bytes run GCNConv with it")
    edges, weights = gcn_norm(place.edges, None, place.nodes, conv.improved, conv.add_self_loops)
    kept = conv._cached_edge_index
    if kept is not None and not all(map(torch.equal, kept, (edges, weights))):
        raise BitwrightError(f"{place.path} is cached and keeps other edges; use cached=False")
    steps, _ = edge_steps(weights, edges[1], place.nodes, 8)
    factors = (weights / steps[edges[1]]).round().to(torch.uint8)
    grid = grid_of(place.net, f"{place.path}:x")
    return GCNLayer(
        linear(conv.lin, place.grid, Follows(grid=grid)),
        grid,
        neighbourhoods(edges, place.nodes, factors, steps),
        place.follows.after(None if conv.bias is None else conv.bias.detach(), conv.out_channels),
    )
