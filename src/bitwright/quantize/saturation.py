"""Weights that no kernel can saturate on: found from weights and ranges, made by a wider step.

Rows of 6 bits or fewer, and multi-bit ones, are always safe, `255 · (64 + 64) < 2¹⁵`; of rows of 7
and 8 bits those are not whose pairs of large weights meet. Depthwise convolutions are computed
without pairs.
See docs/decisions/0022-signed-containers.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from bitwright.arith.grid import container, quantize, round_scale
from bitwright.arith.saturation import excess
from bitwright.network import Layer, Network
from bitwright.quantize.activations import EdgeGrid
from bitwright.quantize.weights import QuantizedLayer


def exposed(
    network: Network, layers: Mapping[str, QuantizedLayer], edges: Mapping[int, EdgeGrid]
) -> dict[str, Tensor]:
    """Layers with rows that could saturate: how many times too large each row's pairs are.

    Args:
        network: captured network.
        layers: stored layers.
        edges: group of tied edges -> grid; layers whose input has none are computed in float.

    Returns:
        Layer name -> float64 [rows]; rows above 1 could saturate. Safe layers are left out.
    """
    tops = input_tops(network, edges)
    found = {}
    for layer in network.layers:
        if layer.name not in tops or is_depthwise(layer):
            continue
        ratio = _excess(layer, layers[layer.name], tops[layer.name])
        if bool((ratio > 1).any()):
            found[layer.name] = ratio
    return found


def input_tops(network: Network, edges: Mapping[int, EdgeGrid]) -> dict[str, int]:
    """Layer name -> the largest integer that any of its calls reads; layers that read integers."""
    grids = {e.name: edges[e.group] for e in network.edges if e.group in edges}
    nodes = {n.name: n for n in network.module.graph.nodes}
    tops: dict[str, int] = {}
    for layer in network.layers:
        for call in layer.calls:
            grid = grids.get(nodes[call].args[0].name)
            if grid is not None:
                tops[layer.name] = max(tops.get(layer.name, 0), grid.top)
    return tops


def is_depthwise(layer: Layer) -> bool:
    """Whether every output channel reads one input channel of its own."""
    return layer.kind != "linear" and layer.shape[1] == 1 and layer.groups == layer.rows > 1


def narrowed(
    network: Network, layers: Mapping[str, QuantizedLayer], edges: Mapping[int, EdgeGrid]
) -> dict[str, QuantizedLayer]:
    """The layers with a wider step in every row that could saturate; the others as they are.

    The step grows by as little as makes all pairs of the row fit (a factor of 2 at most, where two
    neighbours are both at the end of the grid), and the row's stored values are rounded to it. The
    widths stay. A row of 7 bits on half steps counts as two of 8 bits do.
    """
    tops = input_tops(network, edges)
    found = dict(layers)
    by_name = {layer.name: layer for layer in network.layers}
    for name, ratio in exposed(network, layers, edges).items():
        stored, matrix = layers[name], layers[name].matrix()
        factor = torch.ones_like(ratio)
        while bool((ratio > 1).any()):
            factor = torch.where(ratio > 1, factor * ratio.clamp(min=1 + 2**-8), factor)
            stored = widened(layers[name], matrix, factor)
            ratio = _excess(by_name[name], stored, tops[name])
        found[name] = stored
    return found


def widened(stored: QuantizedLayer, matrix: Tensor, factor: Tensor) -> QuantizedLayer:
    """The layer with steps wider by a factor, its weights rounded to them.

    Args:
        stored: the layer; matrix: the weights to round, [rows, fan_in].
        factor: float64 [rows]; rows with 1 stay as they are.
    """
    wide = factor > 1
    scale = torch.where(wide, _rounded_up(stored.grid.scale * factor), stored.grid.scale)
    grid = replace(stored.grid, scale=scale)
    codes = torch.where(wide[:, None], quantize(matrix, grid), stored.codes)
    return replace(stored, codes=codes, grid=grid)


def _excess(layer: Layer, stored: QuantizedLayer, top: int) -> Tensor:
    return excess(container(stored.codes, stored.grid)[0].reshape(layer.shape), top)


def _rounded_up(scale: Tensor) -> Tensor:
    """The next float16 number that is not below, as float32."""
    half = round_scale(scale.float())
    above = torch.nextafter(half.half(), torch.tensor(torch.inf, dtype=torch.float16)).float()
    return torch.where(half.double() < scale, above, half)
