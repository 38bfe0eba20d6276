"""The network as a machine with narrow accumulators computes it, overflows and all."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx import Node

from bitwright.arith.accumulator import Accumulator
from bitwright.deploy.integer import IntegerNetwork, Stored
from bitwright.network import Layer
from bitwright.overflow.count import in_kernel_order, kernel_order, sums
from bitwright.overflow.operands import operands, weight_integers
from bitwright.quantize import Quantized
from bitwright.quantize.weights import channel_axis


def emulated(quantized: Quantized, accumulator: Accumulator) -> IntegerNetwork:
    """The integer network whose layers' sums are those of the accumulator.

    Args:
        quantized: the network; accumulator: its register.

    Cost: for `wrap` that of the exact one; for the others product by product.
    """
    given = operands(quantized, accumulator)
    units = {
        name: (weight_integers(stored, "pairs")[1], weight_integers(stored, accumulator.kind)[1])
        for name, stored in quantized.layers.items()
    }

    def narrow(layer: Layer, node: Node, x: Stored) -> Tensor:
        one = given[layer.name]
        inside = x.q - x.grid.zero
        if accumulator.kind == "wrap":
            exact = sums(layer, node, inside, one.weight)
            found = (exact - accumulator.lowest) % 2**accumulator.bits + accumulator.lowest
        else:
            found = _by_products(layer, node, x, inside)
        file, own = units[layer.name]  # integers divided by a power of two, and back
        return found * _along(own / file, found, layer)

    def _by_products(layer: Layer, node: Node, x: Stored, inside: Tensor) -> Tensor:
        from bitwright.arith.narrow_sums import narrow_sums

        matrix, size = in_kernel_order(given[layer.name]), layer.rows // layer.groups
        offset = x.grid.zero if accumulator.kind == "pairs" else 0
        parts = []
        for group, found in enumerate(kernel_order(layer, node, inside)):
            columns = (found + offset).long()
            rows = matrix[group * size : (group + 1) * size]
            part = torch.from_numpy(narrow_sums(columns.numpy(), rows.numpy(), accumulator))
            parts.append(part - offset * rows.sum(1))
        result = torch.cat(parts, 1).double()  # [images × positions, rows], images within positions
        shape = sums(layer, node, inside[:1], given[layer.name].weight).shape[1:]
        if layer.kind == "linear":
            return result.reshape(len(inside), *shape)
        return result.T.reshape(layer.rows, len(inside), *shape[1:]).transpose(0, 1)

    return IntegerNetwork(quantized, narrow)


def _along(vector: Tensor, like: Tensor, layer: Layer) -> Tensor:
    shape = [1] * like.ndim
    shape[channel_axis(layer)] = -1
    return vector.reshape(shape)
