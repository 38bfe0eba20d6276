"""GCN: `Q(Â) Q(x̂ Ŵᵀ) + b`, one product, then the sum of its codes with 8-bit coefficients."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch_geometric.nn.conv.gcn_conv import gcn_norm

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
    """The layer on bytes."""
    edges, weights = gcn_norm(place.edges, None, place.nodes)
    steps, _ = edge_steps(weights, edges[1], place.nodes, 8)
    factors = (weights / steps[edges[1]]).round().to(torch.uint8)
    grid = grid_of(place.net, f"{place.path}:x")
    conv = place.conv
    return GCNLayer(
        linear(conv.lin, place.grid, Follows(grid=grid)),
        grid,
        neighbourhoods(edges, place.nodes, factors, steps),
        place.follows.after(None if conv.bias is None else conv.bias.detach(), conv.out_channels),
    )
