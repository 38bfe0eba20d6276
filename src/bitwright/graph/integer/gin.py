"""GIN: `MLP(Σ_j x_j + (1 + ε) x_i)`, sums of codes without factors, then products."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch_geometric.nn import MLP

from bitwright.errors import BitwrightError
from bitwright.graph.integer.neighbours import Neighbourhoods, neighbourhoods, summed
from bitwright.graph.integer.place import Follows, Place, grid_of, linear, normed, relu_grid
from bitwright.graph.integer.products import Affine, Grid, Product, affine


@dataclass(frozen=True)
class GINLayer:
    """From codes to codes, or to floats.

    Attributes:
        own: 1 + ε.
        sums: what sums become, codes of the MLP's input.
        products: of the MLP.
    """

    grid: Grid
    near: Neighbourhoods
    own: float
    sums: Affine
    products: tuple[Product, ...]

    def __call__(self, codes: Tensor) -> Tensor:
        """Codes int8 [nodes, inputs padded]."""
        codes = summed(codes, self.grid, self.near, self.near.steps, self.sums, self.own)
        for one in self.products:
            codes = one(codes)
        return codes


def layer(place: Place) -> GINLayer:
    """The layer on bytes.

    Raises:
        BitwrightError: its network is no MLP with ReLU.
    """
    mlp, path = place.conv.nn, f"{place.path}/nn/lins"
    if not (isinstance(mlp, MLP) and isinstance(mlp.act, nn.ReLU) and mlp.plain_last):
        raise BitwrightError(f"{place.path}/nn is a {type(mlp).__name__}; use an MLP with ReLU")
    if mlp.act_first:
        raise BitwrightError(f"{place.path}/nn has ReLU before its norms; on bytes it is behind")
    grids = [grid_of(place.net, f"{path}/0")]
    grids += [relu_grid(place.net, f"{path}/{i}") for i in range(1, len(mlp.lins))]
    inner = [Follows(*normed(norm), grid) for norm, grid in zip(mlp.norms, grids[1:], strict=True)]
    products = [
        linear(lin, grid, follows)
        for lin, grid, follows in zip(mlp.lins, grids, [*inner, place.follows], strict=True)
    ]
    own = 1 + float(place.conv.eps)
    sums = affine(mlp.lins[0].in_channels, None, None, grids[0])
    near = neighbourhoods(place.edges, place.nodes)
    return GINLayer(place.grid, near, own, sums, tuple(products))
