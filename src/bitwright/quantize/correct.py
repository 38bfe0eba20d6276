"""Affine correction of every layer's output against the float model.

For each output channel the gain a and offset b that minimize `E[(a·y_q + b − y)²]` over images and
positions, `a = cov(y, y_q)/var(y_q)`, `b = E[y] − a·E[y_q]`, are absorbed into the row's scale and
bias. Layers are visited in order, each behind the corrected ones before it. (Matching mean and
variance instead, as batch-norm re-estimation does, measured worse at every width: see
docs/decisions/0003-correction.md.)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from bitwright.arith.grid import round_scale
from bitwright.network import Layer, Network, run
from bitwright.network.ops import is_lookup
from bitwright.quantize.activations import EdgeGrid, fake_quantize
from bitwright.quantize.weights import QuantizedLayer, channel_axis

#: gains outside mean that the channel is lost anyway
GAINS = (1 / 16, 16.0)


@dataclass(frozen=True)
class Quantized:
    """A quantized network: what is stored, what is simulated, what is exported.

    Attributes:
        network: the captured float graph it came from.
        layers: layer name -> stored numbers.
        edges: edge group -> grid; empty when activations stay float.
    """

    network: Network
    layers: Mapping[str, QuantizedLayer]
    edges: Mapping[int, EdgeGrid]


def float_outputs(network: Network, x: Tensor) -> dict[str, Tensor]:
    """The float output of every layer call on `x` but lookups; the reference of the correction."""
    calls = {name for layer in network.layers for name in layer.calls}
    found: dict[str, Tensor] = {}

    def call(node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        value = node.target(*args, **kwargs)  # type: ignore[operator]
        if node.name in calls and not is_lookup(node):
            found[node.name] = value
        return value

    with torch.no_grad():
        run(network.module, x, call)
    return found


def rows_that_fit(network: Network, limit_bytes: float = 1.5e9) -> int:
    """How many rows' layer outputs fit in `limit_bytes` (the correction keeps them all)."""
    per_row = 4 * sum(layer.macs // layer.fan_in for layer in network.layers)
    return max(8, int(limit_bytes // max(per_row, 1)))


def correct(
    network: Network,
    layers: Mapping[str, QuantizedLayer],
    edges: Mapping[int, EdgeGrid],
    x: Tensor,
    reference: Mapping[str, Tensor],
    *,
    gain: bool = True,
) -> Quantized:
    """Correct all layers in one pass of the quantized network.

    Args:
        network: captured float network.
        layers: rounded layers.
        edges: grids of the edges; empty for float activations.
        x: [n, ...] images to correct on.
        reference: :func:`float_outputs` of `x`.
        gain: also correct the gain; False corrects the offset alone.

    Returns:
        The corrected network.
    """
    by_call = {name: layer for layer in network.layers for name in layer.calls}
    group = {e.name: e.group for e in network.edges}
    fixed: dict[str, QuantizedLayer] = dict(layers)

    def edge(name: str, value: Tensor) -> Tensor:
        if name in group and group[name] in edges:
            return fake_quantize(value, edges[group[name]])
        return value

    def call(node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        layer = by_call.get(node.name)
        if layer is None:
            return edge(node.name, node.target(*args, **kwargs))  # type: ignore[operator]
        stored = fixed[layer.name]
        weight = stored.matrix().reshape(layer.shape)
        if is_lookup(node):  # each row is by itself: nothing to correct with
            return edge(node.name, node.target(weight, *args[1:], **kwargs))  # type: ignore[operator]
        value = node.target(args[0], weight, None, *args[3:], **kwargs)  # type: ignore[operator]
        axis = channel_axis(layer)
        if len(layer.calls) == 1:
            target = reference[node.name]
            stored, a = fit_affine(layer, stored, [value], [target], gain)
            fixed[layer.name] = stored
            value = value.mul_(along(a, value, axis))
        value = value.add_(along(stored.bias, value, axis))
        return edge(node.name, value)

    with torch.no_grad():
        run(network.module, x, call, enter=lambda n, v: edge(n.name, v))
    return Quantized(network, fixed, edges)


def along(vector: Tensor, like: Tensor, axis: int) -> Tensor:
    """The vector, to be broadcast with `like` along an axis."""
    shape = [1] * like.ndim
    shape[axis] = -1
    return vector.reshape(shape)


def fit_affine(
    layer: Layer,
    stored: QuantizedLayer,
    values: Sequence[Tensor],
    targets: Sequence[Tensor],
    gain: bool = True,
) -> tuple[QuantizedLayer, Tensor]:
    """The corrected layer, and the gain its outputs `values` are to be multiplied with."""
    axis, count = channel_axis(layer), sum(v.numel() for v in values) // layer.rows

    def channels(t: Tensor) -> Tensor:
        return t.movedim(axis, 0).flatten(1)

    def mean(parts: Iterable[Tensor]) -> Tensor:
        return torch.stack([p.sum(1) for p in parts]).sum(0) / count

    mean_q, mean_y = (mean(map(channels, ts)) for ts in (values, targets))
    a = torch.ones_like(mean_q)
    if gain:
        variance = mean((channels(q) - mean_q[:, None]).square() for q in values)
        covariance = mean(
            (channels(q) - mean_q[:, None]) * (channels(y) - mean_y[:, None])
            for q, y in zip(values, targets, strict=True)
        )
        a = torch.where(variance > 1e-12, covariance / variance.clamp(min=1e-12), a)
        a = a.clamp(*GAINS)
    scale = round_scale(stored.grid.scale * a)
    a = scale / stored.grid.scale  # what float16 leaves of it
    grid = replace(stored.grid, scale=scale)
    return QuantizedLayer(stored.codes, grid, mean_y - a * mean_q), a
