"""What each layer of a quantized network multiplies and adds: integers and their ranges."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from bitwright.arith.accumulator import Accumulator, Operands, reduced
from bitwright.arith.grid import container
from bitwright.network import Layer, Network
from bitwright.quantize import EdgeGrid, Quantized, QuantizedLayer
from bitwright.quantize.saturation import is_depthwise


def _grids_read(
    network: Network, edges: Mapping[int, EdgeGrid]
) -> dict[str, list[tuple[int, EdgeGrid]]]:
    """Layer name -> groups and grids that its calls read; layers on float inputs are left out."""
    groups = {e.name: e.group for e in network.edges if e.group in edges}
    nodes = {n.name: n for n in network.module.graph.nodes}
    found: dict[str, list[tuple[int, EdgeGrid]]] = {}
    for layer in network.layers:
        for call in layer.calls:
            group = groups.get(nodes[call].args[0].name)
            if group is not None:
                found.setdefault(layer.name, []).append((group, edges[group]))
    return found


def read_groups(network: Network, edges: Mapping[int, EdgeGrid]) -> dict[str, int]:
    """Layer name -> the group of edges that its first call on integers reads."""
    return {name: grids[0][0] for name, grids in _grids_read(network, edges).items()}


def input_ranges(network: Network, edges: Mapping[int, EdgeGrid]) -> dict[str, tuple[int, int]]:
    """Layer name -> the least and the greatest integer it can read, zero points taken off."""
    return {
        name: (min(-g.zero for _, g in grids), max(g.top - g.zero for _, g in grids))
        for name, grids in _grids_read(network, edges).items()
    }


def weight_integers(stored: QuantizedLayer, kind: str) -> tuple[Tensor, Tensor]:
    """The row's integers, int64 [rows, K], and what one of them is worth, float64 [rows].

    For `pairs` those of the file's 8-bit container, which such kernels are given; for the others
    the same divided by their common power of two.
    """
    q, scale = container(stored.codes, stored.grid)
    if kind == "pairs":
        return q.long(), scale.double()
    found, factor = reduced(q)
    return found, scale.double() * factor


def operands(quantized: Quantized, accumulator: Accumulator) -> dict[str, Operands]:
    """Layer name -> what it multiplies, of the layers that read integers."""
    ranges = input_ranges(quantized.network, quantized.edges)
    found = {}
    for layer in quantized.network.layers:
        if layer.name in ranges:
            q, _ = weight_integers(quantized.layers[layer.name], accumulator.kind)
            found[layer.name] = of_layer(layer, q, ranges[layer.name])
    return found


def of_layer(layer: Layer, q: Tensor, within: tuple[int, int]) -> Operands:
    """A layer's integers [rows, K] with the range of its inputs."""
    return Operands(q.reshape(layer.shape), *within, depthwise=is_depthwise(layer))
