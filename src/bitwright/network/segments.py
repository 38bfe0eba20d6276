"""A graph cut where all that is computed passes through one value: blocks in their order."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch.fx import Graph, GraphModule, Node

from bitwright.network.network import Layer, Network


@dataclass(frozen=True)
class Segment:
    """A part of a network with at least one layer.

    Attributes:
        module: from the value it starts with to the one it ends with; names are the network's.
        end: name of that value; None for the network's outputs.
        layers: those whose calls all lie inside.
    """

    module: GraphModule
    end: str | None
    layers: tuple[Layer, ...]


def segments(network: Network, ends: Collection[str]) -> list[Segment]:
    """The network in as many parts as it can be cut into.

    Residual blocks stay whole, since two values are alive inside them.

    Args:
        network: captured network.
        ends: names of the values that a part may end with.
    """
    nodes = list(network.module.graph.nodes)
    last = {source: i for i, node in enumerate(nodes) for source in node.all_input_nodes}
    calls = {name for layer in network.layers for name in layer.calls}
    cuts, alive, rowwise, layers = [], set[Node](), set[Node](), 0
    for i, node in enumerate(nodes):
        if node.op == "placeholder" or rowwise.intersection(node.all_input_nodes):
            rowwise.add(node)
            alive.add(node)
        alive = {n for n in alive if last.get(n, -1) > i}
        layers += node.name in calls
        if node.op == "placeholder":
            cuts.append(i)
        elif alive == {node} and node.name in ends and layers:
            cuts.append(i)
            layers = 0
    if not layers and len(cuts) > 1:  # what is left belongs to the last part
        cuts.pop()
    found = []
    for begin, end in zip(cuts, [*cuts[1:], len(nodes) - 1], strict=True):
        module = _between(network.module, nodes, begin, end)
        names = {node.name for node in module.graph.nodes}
        inside = tuple(la for la in network.layers if la.calls and names.issuperset(la.calls))
        stop = None if nodes[end].op == "output" else nodes[end].name
        found.append(Segment(module, stop, inside))
    return found


def _between(module: GraphModule, nodes: Sequence[Node], begin: int, end: int) -> GraphModule:
    """What computes one node from another; constants on the way are computed again."""
    graph = Graph()
    known = {nodes[begin]: graph.placeholder(nodes[begin].name)}
    known[nodes[begin]].meta = dict(nodes[begin].meta)

    def get(node: Node) -> Node:
        if node not in known:
            known[node] = graph.node_copy(node, get)
        return known[node]

    stop = nodes[end]
    graph.output(torch.fx.map_arg(stop.args[0], get) if stop.op == "output" else (get(stop),))
    return GraphModule(module, graph)
