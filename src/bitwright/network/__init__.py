"""A network as bitwright sees it: a captured graph, its weights and its edges."""

from bitwright.network.modes import answers, evaluating, join
from bitwright.network.network import Edge, Layer, Network, build, describe, doubled, fresh_edges
from bitwright.network.run import batches, outputs, run

__all__ = [
    "Edge",
    "Layer",
    "Network",
    "answers",
    "batches",
    "build",
    "describe",
    "doubled",
    "evaluating",
    "fresh_edges",
    "join",
    "outputs",
    "run",
]
