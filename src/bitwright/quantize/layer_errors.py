"""How far each layer's output has moved from the float network's."""

from __future__ import annotations

import math

from torch import Tensor
from torch.fx import Node

from bitwright.quantize.correct import Quantized, float_outputs
from bitwright.quantize.simulate import simulate


def layer_errors(quantized: Quantized, x: Tensor) -> dict[str, float]:
    """`‖ŷ − y‖ / ‖y‖` of each layer's output, in the order of the network.

    y is a layer's output in the float network, with its bias and before its activation function, ŷ
    the same in the quantized one behind everything that was rounded before it; the norms are over
    all rows, elements and calls. Layers whose output is zero throughout have none, nor do lookups.

    Args:
        quantized: the network.
        x: [n, ...] rows. The outputs of all layers on them are kept in memory.
    """
    network = quantized.network
    owner = {call: layer.name for layer in network.layers for call in layer.calls}
    floats = float_outputs(network, x)
    error = dict.fromkeys((layer.name for layer in network.layers), 0.0)
    size = dict(error)

    def compare(node: Node, value: Tensor) -> None:
        if node.name in floats:
            y = floats[node.name].double()
            error[owner[node.name]] += float((value.double() - y).square().sum())
            size[owner[node.name]] += float(y.square().sum())

    simulate(quantized, x, chunk=len(x), found=compare)
    return {name: math.sqrt(error[name] / size[name]) for name in error if size[name] > 0}
