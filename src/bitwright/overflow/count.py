"""N_o: how many accumulators overflow on data (OAQ, IJCAI 2020, arXiv 2005.13297, section 3).

The network runs on integers as its file does, with exact sums, so that every layer sees what it
would see if nothing had overflowed before it; each layer's sums are then computed again as the
accumulator would. The bias joins in 32 bits afterwards, as in kernels with narrow accumulators.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.fx import Node

from bitwright.arith.accumulator import Accumulator, Operands
from bitwright.deploy.integer import IntegerNetwork, Stored, exact_sums
from bitwright.network import Layer, batches
from bitwright.overflow.operands import operands
from bitwright.quantize import Quantized
from bitwright.quantize.moments import columns
from bitwright.quantize.saturation import is_depthwise
from bitwright.quantize.weights import channel_axis


@dataclass
class Count:
    """Of one layer, on the rows seen so far.

    Attributes:
        over: sums that overflow, for each output channel, int64 [rows].
        sums: of all there are, for each output channel.
        low, high: the least and the greatest number that the accumulator meets, int64 [rows]:
            sums, partial sums, or sums of pairs.
    """

    over: Tensor
    sums: int
    low: Tensor
    high: Tensor

    @property
    def total(self) -> int:
        """N_o of the layer."""
        return int(self.over.sum())

    def excess(self, accumulator: Accumulator) -> Tensor:
        """How many times too large the largest number of each channel is, float64 [rows]."""
        return accumulator.excess(self.low, self.high)


def overflows(
    quantized: Quantized,
    x: Tensor,
    accumulator: Accumulator,
    *,
    chunk: int = 32,
    progress: Callable[[float], None] | None = None,
) -> dict[str, Count]:
    """Count the overflows of every layer that reads integers.

    Args:
        quantized: the network.
        x: [n, ...] rows.
        accumulator: that sums are kept in.
        chunk: rows in a pass.
        progress: called with the finished fraction.

    Cost: for `wrap` a second pass of the layers; for the others the same product by product.
    """
    network = IntegerNetwork(quantized)
    given = operands(quantized, accumulator)
    found: dict[str, Count] = {}
    pieces = batches(x, chunk)
    for i, rows in enumerate(pieces):
        for layer, node, stored in layer_inputs(network, rows):
            _add(found, layer, _counted(layer, node, stored, given[layer.name], accumulator))
        if progress:
            progress((i + 1) / len(pieces))
    return found


def layer_inputs(network: IntegerNetwork, x: Tensor) -> list[tuple[Layer, Node, Stored]]:
    """Every call of a layer on integers, with what it reads, for the rows `x`."""
    notes: dict[str, Stored] = {}

    def note(name: str, value: Stored | Tensor) -> None:
        if isinstance(value, Stored):
            notes[name] = value

    network.trace(x, note)
    captured = network.quantized.network
    nodes = {n.name: n for n in captured.module.graph.nodes}
    calls = [(layer, nodes[name]) for layer in captured.layers for name in layer.calls]
    return [
        (layer, node, notes[node.args[0].name])
        for layer, node in calls
        if node.args[0].name in notes
    ]


def sums(layer: Layer, node: Node, x: Tensor, weight: Tensor) -> Tensor:
    """A layer's exact sums without bias, float64, for inputs with the zero point taken off."""
    return exact_sums(node, x, weight.reshape(layer.shape), torch.zeros(layer.rows), node.args[3:])


def _counted(
    layer: Layer, node: Node, stored: Stored, given: Operands, accumulator: Accumulator
) -> Count:
    x = stored.q - stored.grid.zero
    if accumulator.kind == "wrap":
        exact = sums(layer, node, x, given.weight).movedim(channel_axis(layer), 0).flatten(1).long()
        over = ((exact < accumulator.lowest) | (exact > accumulator.highest)).sum(1)
        return Count(over, exact.shape[1], exact.amin(1), exact.amax(1))
    from bitwright.arith.narrow_sums import met  # numba: nobody who imports bitwright waits for it

    matrix, size = in_kernel_order(given), layer.rows // layer.groups
    parts, count = [], 0
    offset = stored.grid.zero if accumulator.kind == "pairs" else 0  # padding is a zero point
    for group, ordered in enumerate(kernel_order(layer, node, x)):
        inside = ordered + offset
        rows = matrix[group * size : (group + 1) * size]
        parts.append(met(inside.long().numpy(), rows.numpy(), accumulator))
        count = len(inside)
    low, high, over = (torch.from_numpy(np.concatenate(p)) for p in zip(*parts, strict=True))
    return Count(over, count, low, high)


def in_kernel_order(given: Operands) -> Tensor:
    """Weights int64 [rows, K], channels of one kernel position side by side."""
    weight = given.weight.long()
    if weight.ndim == 2:
        return weight
    ordered = weight.flatten(2).transpose(1, 2).flatten(1)
    if not given.depthwise:
        return ordered
    return torch.stack([ordered, torch.zeros_like(ordered)], 2).flatten(1)  # pairs of one


def kernel_order(layer: Layer, node: Node, x: Tensor) -> Iterator[Tensor]:
    """What every sum of each group multiplies, [sums, K], in the order of the weights above."""
    size = math.prod(layer.shape[2:])
    paired = layer.kind != "linear" and is_depthwise(layer)
    for found in columns(layer, node, x, most=max(x.shape)):  # one group after another
        ordered = found.mT.unflatten(1, (-1, size)).mT.flatten(1)
        yield torch.stack([ordered, torch.zeros_like(ordered)], 2).flatten(1) if paired else ordered


def _add(found: dict[str, Count], layer: Layer, more: Count) -> None:
    before = found.get(layer.name)
    if before is None:
        found[layer.name] = more
        return
    found[layer.name] = Count(
        before.over + more.over,
        before.sums + more.sums,
        before.low.minimum(more.low),
        before.high.maximum(more.high),
    )
