"""A network as bitwright sees it: a captured graph, its weights and its edges."""

from bitwright.network.network import Edge, Layer, Network, build, describe, doubled, fresh_edges
from bitwright.network.run import batches, join, outputs, run

__all__ = [
    "Edge",
    "Layer",
    "Network",
    "batches",
    "build",
    "describe",
    "doubled",
    "fresh_edges",
    "join",
    "outputs",
    "run",
]
