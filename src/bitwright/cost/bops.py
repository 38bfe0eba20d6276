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
from bitwright.network.ops import is_lookup

FLOAT_BITS = 32


def mac_pairs(network: Network) -> tuple[np.ndarray, np.ndarray]:
    """Multiply-accumulates of each channel with each group of edges, for one input row.

    Returns:
        int64 [n, groups], groups by rising number; int64 [n], those with float inputs: of a layer
        whose input is no edge.
    """
    nodes = {n.name: n for n in network.module.graph.nodes}
    groups = sorted({e.group for e in network.edges})
    place = {e.name: groups.index(e.group) for e in network.edges}
    stored, loose = [], []
    for layer in network.layers:
        row, other = np.zeros(len(groups), dtype=np.int64), 0
        for name in layer.calls:
            node = nodes[name]
            if is_lookup(node):
                continue
            macs = math.prod(node.meta["row_shape"]) // layer.rows * layer.fan_in
            if node.args[0].name in place:
                row[place[node.args[0].name]] += macs
            else:
                other += macs
        stored.append(np.tile(row, (layer.rows, 1)))
        loose.append(np.full(layer.rows, other, dtype=np.int64))
    return np.concatenate(stored), np.concatenate(loose)


def bops_per_bit(network: Network, activations: int | Mapping[int, float] | None = 8) -> np.ndarray:
    """Bit operations of each channel for each bit of its weights: `MACs_c · b_a`, [n].

    Channels are in the order of the problem's items; times the width gives the channel's BOPs.
    Layers left in float are not in it.

    Args:
        network: captured network.
        activations: bits of all edges, or of each group; None for float, which counts 32. A layer
            whose input is no edge reads float. Where channels of a group have their own, their
            mean: exact where every row reads every channel, and for all rows of one width.
    """
    stored, loose = mac_pairs(network)
    groups = sorted({e.group for e in network.edges})
    if isinstance(activations, Mapping):
        widths = np.array([activations[g] for g in groups])
    else:
        width = FLOAT_BITS if activations is None else activations
        widths = np.full(len(groups), width, dtype=np.int64)
    return np.asarray(stored @ widths + loose * FLOAT_BITS)
