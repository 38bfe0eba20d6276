"""Trained networks of 8 bits on bytes: GCN, GIN, GraphSAGE and GAT of PyTorch Geometric.

What is one number after another on bytes: features are rounded once, products are int8 in int32,
sums over neighbours are exact in 32 bits, and each pass writes the codes that the next one reads.
ReLU is the clip to levels that begin at zero, batch-norms are factors of channels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.nn import global_mean_pool
from torch_geometric.nn.aggr import MeanAggregation, SumAggregation
from torch_geometric.nn.models import GAT, GCN, GIN, GraphSAGE

from bitwright.errors import BitwrightError
from bitwright.graph.degree_quant import DegreeQuant
from bitwright.graph.integer import gat, gcn, gin, sage
from bitwright.graph.integer.place import Follows, Place, grid_of, linear, normed, relu_grid
from bitwright.graph.integer.products import Grid, Product, coded
from bitwright.graph.nets import GraphClassifier, NodeClassifier

#: makers of layers on bytes
KINDS: dict[type[nn.Module], Callable[[Place], Callable[[Tensor], Tensor]]] = {
    GCN: gcn.layer,
    GIN: gin.layer,
    GraphSAGE: sage.layer,
    GAT: gat.layer,
}
#: what messages become where it is not their sum
_AGGREGATIONS = {GraphSAGE: MeanAggregation}


@dataclass(frozen=True)
class Readout:
    """The mean over the nodes of each graph, and two linear layers.

    Attributes:
        batch: number of each node's graph, int64 [nodes].
    """

    batch: Tensor
    grid: Grid
    first: Product
    last: Product

    def __call__(self, x: Tensor) -> Tensor:
        """Logits of graphs."""
        return self.last(self.first(coded(global_mean_pool(x.relu_(), self.batch), self.grid)))


@dataclass(frozen=True)
class ByteNetwork:
    """Called with features float32 [nodes, inputs] of the graph that it was made for.

    Attributes:
        shape: nodes and inputs.
        grid: of the features.
        layers: from codes to codes, the last one to floats.
        readout: of networks for graphs.
    """

    shape: tuple[int, int]
    grid: Grid
    layers: tuple[Callable[[Tensor], Tensor], ...]
    readout: Readout | None

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        """Logits float32 [nodes, classes], or [graphs, classes].

        Raises:
            BitwrightError: features of another shape or type.
        """
        if x.shape != self.shape or x.dtype != torch.float32:
            raise BitwrightError(f"x is {_said(x)}; this network is for float32 {list(self.shape)}")
        x = coded(x, self.grid)
        for layer in self.layers:
            x = layer(x)
        return x if self.readout is None else self.readout(x)


@torch.no_grad()
def on_bytes(
    net: DegreeQuant, edge_index: Tensor, nodes: int, batch: Tensor | None = None
) -> ByteNetwork:
    """A trained network on bytes, for one graph or one batch of graphs.

    It answers as `net` does in evaluation mode, but for sums that lie between two levels: the
    order of additions in float decides there, and one level of a hidden activation is the most
    that a number then differs by. Activations, weights, messages and coefficients of edges are
    8-bit, sums 32-bit integers; factors of channels and nodes, attention scores with their softmax,
    and the mean over a graph's nodes are computed in float.

    Args:
        net: a GCN, GIN, GraphSAGE or GAT of :func:`bitwright.graph.build`, or of the same form.
        edge_index: int64 [2, edges], from sources to targets.
        nodes: their number.
        batch: number of each node's graph, int64 [nodes], of networks for graphs.

    Raises:
        BitwrightError: it is another network, or has not 8 bits everywhere; edges or `batch` are
            of another shape or type, or name nodes and graphs that there are not.
    """
    if nodes < 1 or edge_index.shape[:-1] != (2,) or not _indexes(edge_index, nodes):
        raise BitwrightError(
            f"edge_index is {_said(edge_index)}; use int64 [2, edges] of 0 to {nodes - 1}"
        )
    if batch is not None and (batch.shape != (nodes,) or not _indexes(batch, nodes)):
        raise BitwrightError(f"batch is {_said(batch)}; use int64 [{nodes}] of 0 to {nodes - 1}")
    whole: Any = net.net
    wrapped, graphs = isinstance(whole, NodeClassifier), isinstance(whole, GraphClassifier)
    path, body = ("body/", whole.body) if wrapped or graphs else ("", whole)
    _refuse(net, body)
    first = grid = grid_of(net, "features" if wrapped else f"{path}convs/0")
    layers = []
    for i, conv in enumerate(body.convs):
        follows = Follows()
        if i < len(body.convs) - 1:
            follows = Follows(*normed(body.norms[i]), relu_grid(net, f"{path}dropout"))
        place = Place(net, f"{path}convs/{i}", conv, edge_index, nodes, grid, follows)
        layers.append(KINDS[type(body)](place))
        grid = follows.grid or grid
    readout = _readout(net, batch, nodes) if graphs else None
    return ByteNetwork((nodes, body.in_channels), first, tuple(layers), readout)


def _indexes(values: Tensor, count: int) -> bool:
    """Whether all are int64 indexes below `count`; compiled passes do not look."""
    inside = (values >= 0) & (values < count)
    return values.dtype == torch.int64 and bool(inside.all())


def _said(x: Tensor) -> str:
    """Type and shape, and of whole numbers the range."""
    whole = x.numel() and not x.is_floating_point()
    held = f" of {x.min()} to {x.max()}" if whole else ""
    return f"{str(x.dtype).removeprefix('torch.')} {list(x.shape)}{held}"


def _readout(net: DegreeQuant, batch: Tensor | None, nodes: int) -> Readout:
    whole: Any = net.net
    if batch is None:
        batch = torch.zeros(nodes, dtype=torch.int64)
    grid, hidden = grid_of(net, "first"), relu_grid(net, "dropout")
    first = linear(whole.first, grid, Follows(grid=hidden))
    return Readout(batch, grid, first, linear(whole.last, hidden, Follows()))


def _refuse(net: DegreeQuant, body: Any) -> None:
    if type(body) not in KINDS:
        names = ", ".join(kind.__name__ for kind in KINDS)
        raise BitwrightError(f"the network is a {type(body).__name__}; on bytes run {names}")
    if body.jk_mode is not None or body.act_first or not isinstance(body.act, nn.ReLU):
        raise BitwrightError(
            "the network joins its layers, or has no ReLU behind its norms; such are not on bytes"
        )
    wanted = _AGGREGATIONS.get(type(body), SumAggregation)
    for i, conv in enumerate(body.convs):
        if type(conv.aggr_module) is not wanted or conv.flow != "source_to_target":
            raise BitwrightError(
                f"convs/{i} has the aggregation {type(conv.aggr_module).__name__} and the flow "
                f"{conv.flow}; on bytes run {wanted.__name__} from source_to_target"
            )
    if (net.scheme.bits, net.scheme.weight_bits) != (8, 8) or net.scheme.widths is not None:
        raise BitwrightError(f"bits are {net.scheme.bits}; on bytes run networks of 8 everywhere")
