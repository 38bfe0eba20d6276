"""Bit operations: what a multiplication costs where its operands have few bits.

`BOPs = Σ_c MACs_c · b_c · b_a` over all output channels c of all layers, with the multiply-
accumulates MACs_c of one input row, the width b_c of the channel's weights and the width b_a of
the activations it reads (Baskin et al., UNIQ, arXiv 1804.10969, without the accumulator's term).
A proxy: this runtime multiplies 8-bit integers whatever the width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from bitwright.network import Network

FLOAT_BITS = 32


def bops_per_bit(network: Network, activations: int | Mapping[int, int] | None = 8) -> np.ndarray:
    """Bit operations of each channel for each bit of its weights: `MACs_c · b_a`, int64 [n].

    Channels are in the order of the problem's items; times the width gives the channel's BOPs.
    Layers left in float are not in it.

    Args:
        network: captured network.
        activations: bits of all edges, or of each group; None for float, which counts 32. A layer
            whose input is no edge reads float.
    """
    nodes = {n.name: n for n in network.module.graph.nodes}
    width: dict[str, int] = {}
    if activations is not None:
        for e in network.edges:
            width[e.name] = activations if isinstance(activations, int) else activations[e.group]
    found = []
    for layer in network.layers:
        total = 0
        for name in layer.calls:
            node = nodes[name]
            macs = math.prod(node.meta["row_shape"]) // layer.rows * layer.fan_in
            total += macs * width.get(node.args[0].name, FLOAT_BITS)
        found.append(np.full(layer.rows, total, dtype=np.int64))
    return np.concatenate(found)
