"""The four networks by name: PyTorch Geometric's own, for nodes, or for graphs with a readout."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.nn import global_mean_pool
from torch_geometric.nn.models import GAT, GCN, GIN, GraphSAGE

from bitwright.errors import BitwrightError

KINDS = {"gcn": GCN, "gat": GAT, "gin": GIN, "sage": GraphSAGE}


@dataclass(frozen=True)
class Form:
    """Which network; everything that its weights' shapes follow from.

    Attributes:
        kind: gcn, gat, gin or sage.
        inputs: features of a node.
        hidden: channels between layers (all heads of gat together).
        outputs: classes.
        layers: of message passing.
        dropout: behind each but the last.
        heads: of gat.
        input_dropout: of the features, of networks for nodes. GIN, whose sums keep their size,
            learns the few labelled nodes of a citation graph by heart without much of it.
        graphs: whether graphs have labels, not nodes: a mean over the nodes, then two linear
            layers, and batch-norms between the layers (with the few labelled nodes of one graph
            they only learn those by heart: GIN on Cora falls from 73 to 50 %).
    """

    kind: str
    inputs: int
    hidden: int
    outputs: int
    layers: int = 2
    dropout: float = 0.5
    heads: int = 8
    input_dropout: float = 0.0
    graphs: bool = False


class NodeClassifier(nn.Module):
    """Message passing behind a dropout of the features."""

    def __init__(self, body: nn.Module, input_dropout: float) -> None:
        super().__init__()
        self.features = nn.Dropout(input_dropout)
        self.body = body

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """Logits [nodes, classes]."""
        found: Tensor = self.body(self.features(x), edge_index)
        return found


class GraphClassifier(nn.Module):
    """Message passing, the mean over each graph's nodes, two linear layers."""

    def __init__(self, body: nn.Module, hidden: int, outputs: int, dropout: float) -> None:
        super().__init__()
        self.body = body
        self.first = nn.Linear(hidden, hidden)
        self.dropout = nn.Dropout(dropout)
        self.last = nn.Linear(hidden, outputs)

    def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor | None = None) -> Tensor:
        """Logits [graphs, classes]; `batch` has the number of each node's graph."""
        pooled = global_mean_pool(self.body(x, edge_index).relu(), batch)
        found: Tensor = self.last(self.dropout(self.first(pooled).relu()))
        return found


def build(form: Form, seed: int = 0) -> nn.Module:
    """The float network, with random weights of the seed.

    Raises:
        BitwrightError: an unknown kind, heads that do not divide the channels, or dropout of the
            features of graphs.
    """
    if form.kind not in KINDS:
        raise BitwrightError(f"net is {form.kind!r}; use one of {', '.join(KINDS)}")
    for name in ("dropout", "input_dropout"):
        if not 0 <= (share := getattr(form, name)) < 1:
            raise BitwrightError(f"{name} is {share}; use a share from 0 to less than 1")
    options: dict[str, Any] = {"dropout": form.dropout}
    if form.kind == "gat":
        if form.hidden % form.heads:
            raise BitwrightError(f"hidden is {form.hidden}; {form.heads} heads need a multiple")
        options["heads"] = form.heads
    if form.graphs:
        options["norm"] = "batch_norm"
        if form.input_dropout:
            raise BitwrightError("input_dropout is of networks for nodes; leave it out for graphs")
    last = form.hidden if form.graphs else form.outputs
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        body = KINDS[form.kind](form.inputs, form.hidden, form.layers, last, **options)
        if not form.graphs:
            return NodeClassifier(body, form.input_dropout) if form.input_dropout else body
        return GraphClassifier(body, form.hidden, form.outputs, form.dropout)
