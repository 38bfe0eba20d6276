"""GraphSAGE: `Ŵ_l Q(mean_j x_j) + Ŵ_r x_i + b`, sums of codes, then two products."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from bitwright.errors import BitwrightError
from bitwright.graph.integer.neighbours import Neighbourhoods, neighbourhoods, summed
from bitwright.graph.integer.place import Follows, Place, grid_of, linear
from bitwright.graph.integer.products import Affine, Grid, Product, affine


@dataclass(frozen=True)
class SAGELayer:
    """From codes to codes, or to floats.

    Attributes:
        share: one over the number of neighbours, float32 [nodes].
        means: what means become, codes of the product `others`.
        own, others: products of a node's own row and of the means, whose sum becomes codes.
    """

    grid: Grid
    near: Neighbourhoods
    share: Tensor
    means: Affine
    own: Product
    others: Product

    def __call__(self, codes: Tensor) -> Tensor:
        """Codes int8 [nodes, inputs padded]."""
        means = summed(codes, self.grid, self.near, self.share, self.means)
        return self.others(means, (self.own, codes))


def layer(place: Place) -> SAGELayer:
    """The layer on bytes.

    Raises:
        BitwrightError: it projects, normalizes, or leaves its own row out.
    """
    conv = place.conv
    if conv.project or conv.normalize or not conv.root_weight:
        raise BitwrightError(
            f"{place.path} is no plain GraphSAGE: on bytes run those without projection or norm"
        )
    grid = grid_of(place.net, f"{place.path}/lin_l")
    near = neighbourhoods(place.edges, place.nodes)
    return SAGELayer(
        place.grid,
        near,
        1 / near.counts.clamp(min=1).float(),
        affine(conv.lin_l.in_channels, None, None, grid),
        linear(conv.lin_r, place.grid, Follows(place.follows.gain)),
        linear(conv.lin_l, grid, place.follows),
    )
