"""Small random graphs and networks."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch_geometric.nn import (
    GATConv,
    GATv2Conv,
    GCNConv,
    GINConv,
    GraphConv,
    MessagePassing,
    SAGEConv,
    TransformerConv,
)
from torch_geometric.utils import to_undirected


def graph(nodes: int = 40, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Features [nodes, 6] and edges, most of which end in few nodes."""
    g = torch.Generator().manual_seed(seed)
    ends = (nodes * torch.rand(3 * nodes, generator=g) ** 3).long()
    starts = torch.randint(nodes, (3 * nodes,), generator=g)
    edges = torch.stack([starts, ends])[:, starts != ends]
    return torch.randn(nodes, 6, generator=g), to_undirected(edges, num_nodes=nodes)


class Largest(MessagePassing):
    """A layer that nobody has seen: the largest of weighted differences."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(aggr="max")
        self.mix = nn.Linear(inputs, outputs)
        self.slope = nn.Parameter(torch.ones(1, outputs))

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        found: Tensor = self.propagate(edge_index, h=self.mix(x)) * self.slope
        return found

    def message(self, h_i: Tensor, h_j: Tensor) -> Tensor:
        return h_j - h_i


def _mlp(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, 8), nn.ReLU(), nn.Linear(8, outputs))


LAYERS = {
    "gcn": GCNConv,
    "gat": lambda i, o: GATConv(i, o, heads=2, concat=False),
    "gatv2": lambda i, o: GATv2Conv(i, o, heads=2, concat=False),
    "gin": lambda i, o: GINConv(_mlp(i, o)),
    "sage": SAGEConv,
    "graph": GraphConv,
    "transformer": lambda i, o: TransformerConv(i, o, heads=2, concat=False),
    "own": Largest,
}


class Net(nn.Module):
    """Two layers of a kind with a dropout between."""

    def __init__(self, kind: str, dropout: float = 0.0) -> None:
        super().__init__()
        self.first, self.last = LAYERS[kind](6, 8), LAYERS[kind](8, 3)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        hidden = self.dropout(self.first(x, edge_index).relu())
        found: Tensor = self.last(hidden, edge_index)
        return found


def net(kind: str, dropout: float = 0.0) -> Net:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Net(kind, dropout)
