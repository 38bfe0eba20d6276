"""Fake quantization: the quantized network in float32, for judging and for training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from bitwright.network import batches, join, run
from bitwright.quantize.activations import fake_quantize
from bitwright.quantize.correct import Quantized
from bitwright.quantize.weights import constants


def simulate(
    quantized: Quantized,
    x: Tensor,
    *,
    chunk: int = 64,
    note: Callable[[Node, tuple[Any, ...]], None] | None = None,
    found: Callable[[Node, Any], None] | None = None,
) -> Tensor:
    """Outputs of the quantized network for the rows `x`, [n, ...], without gradient.

    Args:
        quantized: the network; x: [n, ...] rows, `chunk` at a time.
        note: called with every operation and its arguments before it is computed.
        found: called with every operation and its value before that is rounded.
    """
    group = {e.name: e.group for e in quantized.network.edges}
    edges = quantized.edges

    def edge(node: Node, value: Any) -> Any:
        grid = edges.get(group.get(node.name, -1))
        return value if grid is None else fake_quantize(value, grid)

    def call(node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if note:
            note(node, args)
        value = node.target(*args, **kwargs)  # type: ignore[operator]
        if found:
            found(node, value)
        return edge(node, value)

    weights = constants(quantized.network, quantized.layers)
    with torch.no_grad():
        return torch.cat(
            [
                join(run(quantized.network.module, rows, call, enter=edge, constants=weights))
                for rows in batches(x, chunk)
            ]
        )
