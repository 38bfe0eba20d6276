"""Which channels of a network's values may be rescaled without changing what it computes.

A value may be stored as `x_c / r_c`, r_c > 0, where everything between the layers that make it and
the layers that read it lets factors through: a clip at zero, a pooling, a sum of values with the
same factors. The layers that make it divide their rows by r, those that read it multiply their
columns by r. Channels that such operations join share a factor; a channel that meets any other
operation, the input or the output keeps r = 1.

A clip from above at t (ReLU6) lets factors below 1 through where no value of the channel exceeds
`r_c t`: larger ones are then cut there.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor
from torch.fx import Node

from bitwright.network.capture import set_attribute
from bitwright.network.network import Layer, Network, copied
from bitwright.network.ops import aten, is_lookup, is_mean_over_space

_SAME = {
    aten.relu.default,
    aten.leaky_relu.default,
    aten.contiguous.default,
    aten.clone.default,
}
_POOLS = {
    aten.max_pool1d.default,
    aten.max_pool2d.default,
    aten.avg_pool1d.default,
    aten.avg_pool2d.default,
    aten.adaptive_max_pool2d.default,
    aten.adaptive_avg_pool1d.default,
    aten.adaptive_avg_pool2d.default,
}
_CLAMPS = {aten.relu6.default, aten.hardtanh.default, aten.clamp.default, aten.clamp_min.default}


@dataclass(frozen=True)
class Scaling:
    """Channels by what they must share.

    Attributes:
        groups: value (name of a graph node) -> int64 [channels], the group of each channel.
        axis: value -> the axis that counts its channels, without the rows' axis.
        count: of groups.
        free: bool [count]: whether the group may have another factor than 1.
    """

    groups: dict[str, np.ndarray]
    axis: dict[str, int]
    count: int
    free: np.ndarray


class _Builder:
    """Numbers channels and notes which ones are joined or held."""

    def __init__(self) -> None:
        self.ids: dict[Node, np.ndarray] = {}
        self.axis: dict[Node, int] = {}
        self.pairs: list[tuple[np.ndarray, np.ndarray]] = []
        self.held: list[np.ndarray] = []
        self.count = 0

    def new(self, node: Node, axis: int) -> np.ndarray:
        shape = node.meta["row_shape"]
        size = shape[axis] if shape else 1
        self.ids[node] = np.arange(self.count, self.count + size)
        self.axis[node] = axis % max(len(shape), 1)
        self.count += size
        return self.ids[node]

    def join(self, a: np.ndarray, b: np.ndarray) -> None:
        self.pairs.append((a, b))

    def hold(self, node: Node) -> None:
        if node in self.ids:
            self.held.append(self.ids[node])

    def found(self) -> Scaling:
        a, b = (np.concatenate([np.zeros(0, int), *(p[i] for p in self.pairs)]) for i in (0, 1))
        graph = coo_array((np.ones(len(a), bool), (a, b)), shape=(self.count, self.count))
        count, group = connected_components(graph, directed=False)
        free = np.ones(count, bool)
        for ids in self.held:
            free[group[ids]] = False
        groups = {node.name: group[ids] for node, ids in self.ids.items()}
        axis = {node.name: axis for node, axis in self.axis.items()}
        return Scaling(groups, axis, count, free)


def scaling(network: Network) -> Scaling:
    """The groups of channels of every value that varies with the rows."""
    by_call = {name: layer for layer in network.layers for name in layer.calls}
    inputs: dict[str, np.ndarray] = {}
    outputs: dict[str, np.ndarray] = {}
    builder = _Builder()
    for node in network.module.graph.nodes:
        if node.op == "output":
            for source in node.all_input_nodes:
                builder.hold(source)
        if node.op not in ("placeholder", "call_function") or not node.meta.get("is_float"):
            for source in node.all_input_nodes:
                builder.hold(source)
            continue
        layer = by_call.get(node.name)
        if layer is not None and not is_lookup(node) and _reads(builder, layer, node.args[0]):
            made = builder.new(node, -1 if layer.kind == "linear" else 0)
            read = builder.ids[node.args[0]]
            builder.join(inputs.setdefault(layer.name, read), read)
            builder.join(outputs.setdefault(layer.name, made), made)
        elif not _through(builder, node):
            for source in node.all_input_nodes:
                builder.hold(source)
            builder.new(node, 0)
            builder.hold(node)
    return builder.found()


def _reads(builder: _Builder, layer: Layer, source: Any) -> bool:
    """Whether the layer's columns are the channels of its input."""
    if source not in builder.ids:
        return False
    last = len(source.meta["row_shape"]) - 1
    expected = layer.groups * layer.shape[1]
    axis = last if layer.kind == "linear" else 0
    return builder.axis[source] == axis and len(builder.ids[source]) == expected


def _through(builder: _Builder, node: Node) -> bool:
    """Join the node's channels with its inputs', where it lets factors through."""
    rule = _rule(node)
    sources = [s for s in node.all_input_nodes if s.meta.get("is_float")]
    if rule is None or not sources or any(s not in builder.ids for s in sources):
        return False
    return rule(builder, node)


def _rule(node: Node) -> Callable[[_Builder, Node], bool] | None:
    target = node.target
    if target in _SAME:
        return _elementwise
    if target in _CLAMPS:
        low = 0 if target is aten.relu6.default else _argument(node, 1)
        return _elementwise if low == 0 else None
    if target in _POOLS or is_mean_over_space(node):
        return _pooled
    rules: dict[Any, Callable[[_Builder, Node], bool]] = {
        aten.add.Tensor: _sum,
        aten.cat.default: _joined,
        aten.flatten.using_ints: _reshaped,
        aten.view.default: _reshaped,
        aten.reshape.default: _reshaped,
        aten.slice.Tensor: _sliced,
        aten.pad.default: _padded,
        aten.mul.Tensor: _gated,
    }
    return rules.get(target)


def _argument(node: Node, place: int, default: Any = None) -> Any:
    return node.args[place] if len(node.args) > place else default


def _elementwise(builder: _Builder, node: Node) -> bool:
    source: Any = node.args[0]
    builder.join(builder.ids[source], builder.new(node, builder.axis[source]))
    return True


def _pooled(builder: _Builder, node: Node) -> bool:
    source: Any = node.args[0]
    if builder.axis[source] != 0 or len(source.meta["row_shape"]) < 2:
        return False
    return _elementwise(builder, node)


def _sum(builder: _Builder, node: Node) -> bool:
    a, b = node.args[0], node.args[1]
    shape = node.meta["row_shape"]
    for source in (a, b):
        if not isinstance(source, Node) or source.meta.get("row_shape") != shape:
            return False
    assert isinstance(a, Node) and isinstance(b, Node)
    if a not in builder.ids or b not in builder.ids or builder.axis[a] != builder.axis[b]:
        return False
    made = builder.new(node, builder.axis[a])
    builder.join(builder.ids[a], made)
    builder.join(builder.ids[b], made)
    return True


def _gated(builder: _Builder, node: Node) -> bool:
    """x · g: the factors of x go through, g keeps its values."""
    for x, g in ((node.args[0], node.args[1]), (node.args[1], node.args[0])):
        if not isinstance(x, Node) or x not in builder.ids or x is g:
            continue
        if x.meta["row_shape"] == node.meta["row_shape"]:
            if isinstance(g, Node):
                builder.hold(g)
            builder.join(builder.ids[x], builder.new(node, builder.axis[x]))
            return True
    return False


def _joined(builder: _Builder, node: Node) -> bool:
    sources: Any = node.args[0]
    axes = {builder.axis[s] for s in sources}
    dim = int(_argument(node, 1, 0)) % (len(node.meta["row_shape"]) + 1) - 1
    if len(axes) != 1 or dim < 0:
        return False
    (axis,) = axes
    made = builder.new(node, axis)
    start = 0
    for source in sources:
        ids = builder.ids[source]
        part = made[start : start + len(ids)] if dim == axis else made
        builder.join(ids, part)
        start += len(ids)
    return True


def _reshaped(builder: _Builder, node: Node) -> bool:
    """The same shape, or channels first flattened to one axis."""
    source: Any = node.args[0]
    before, after = source.meta["row_shape"], node.meta["row_shape"]
    if before == after:
        return _elementwise(builder, node)
    if len(after) != 1 or builder.axis[source] != 0 or math.prod(before) != after[0]:
        return False
    each = after[0] // before[0]
    builder.join(np.repeat(builder.ids[source], each), builder.new(node, 0))
    return True


def _sliced(builder: _Builder, node: Node) -> bool:
    source: Any = node.args[0]
    axis = builder.axis[source]
    dim = int(_argument(node, 1, 0)) % (len(source.meta["row_shape"]) + 1) - 1
    if dim < 0:
        return False
    ids = builder.ids[source]
    if dim == axis:
        ends = [_argument(node, i, d) for i, d in ((2, None), (3, None), (4, 1))]
        if any(isinstance(e, Node) for e in ends):
            return False
        ids = ids[slice(*ends)]
    builder.join(ids, builder.new(node, axis))
    return True


def _padded(builder: _Builder, node: Node) -> bool:
    """Zeros beside the values; zero is zero at any factor."""
    if _argument(node, 2, "constant") != "constant":
        return False
    source: Any = node.args[0]
    widths: Any = node.args[1]
    shape, axis = source.meta["row_shape"], builder.axis[source]
    place = 2 * (len(shape) - 1 - axis)  # pads go from the last axis
    before, after = widths[place : place + 2] if place < len(widths) else (0, 0)
    if before < 0 or after < 0:
        return False
    ids = builder.ids[source]
    builder.join(ids, builder.new(node, axis)[before : before + len(ids)])
    return True


def rescaled(network: Network, groups: Scaling, factors: np.ndarray) -> Network:
    """The network whose values are `x / factor`: the same function, its layers' weights changed.

    Args:
        network: captured; left as it is.
        groups: from :func:`scaling`.
        factors: float64 [groups.count], positive; those of groups that are not free must be 1.
    """
    if not np.all(factors[~groups.free] == 1) or not np.all(factors > 0):
        raise ValueError("factors must be positive, and 1 for groups that are not free")
    found = replace(network, module=copied(network.module))
    nodes = {node.name: node for node in network.module.graph.nodes}
    for layer in found.layers:
        call = layer.calls[0]
        if layer.kind == "embedding":  # what it gives is held
            continue
        source: Any = nodes[call].args[0]
        weight = found.tensor(layer.weight).double()
        if _moves(factors, groups, call):
            rows = torch.from_numpy(factors[groups.groups[call]])
            bias = found.tensor(layer.bias).double() / rows
            weight = weight / rows.reshape(-1, *[1] * (weight.ndim - 1))
            _put(found, layer.bias, bias)
        if _moves(factors, groups, source.name):
            columns = torch.from_numpy(factors[groups.groups[source.name]])
            columns = columns.reshape(layer.groups, 1, layer.shape[1], *[1] * (weight.ndim - 2))
            split = weight.reshape(layer.groups, -1, *weight.shape[1:])
            weight = (split * columns).reshape(weight.shape)
        _put(found, layer.weight, weight)
    return found


def _moves(factors: np.ndarray, groups: Scaling, name: str) -> bool:
    """Whether any factor of the value is not 1: those that are held may count another axis."""
    return name in groups.groups and bool((factors[groups.groups[name]] != 1).any())


def _put(network: Network, name: str, value: Tensor) -> None:
    set_attribute(network.module, name, value.to(network.tensor(name).dtype))


__all__ = ["Scaling", "rescaled", "scaling"]
