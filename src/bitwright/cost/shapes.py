"""The shapes that layers are called with: all that a layer's time depends on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch.fx import Node

from bitwright.network import Layer, Network
from bitwright.network.network import fused_activation
from bitwright.network.ops import is_lookup


@dataclass(frozen=True)
class LayerShape:
    """One call of a layer for one input row.

    Attributes:
        kind: `conv1d`, `conv2d` or `linear`.
        weight: shape of the weight, output channels first.
        input: shape of what it reads, batch axis left out.
        stride, padding, dilation: one number an axis; empty for `linear`.
        groups: of a convolution; 1 for `linear`.
        stored: whether its result stays in 8 bits where activations do.
    """

    kind: str
    weight: tuple[int, ...]
    input: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    stored: bool

    def __str__(self) -> str:
        """`conv2d 32×16×3×3 /2 on 16×28×28`: weight, stride, input."""
        words = [self.kind, _times(self.weight)]
        if set(self.stride) - {1}:
            words.append(f"/{_short(self.stride)}")
        if set(self.dilation) - {1}:
            words.append(f"dilation {_short(self.dilation)}")
        if self.groups > 1:
            words.append(f"groups {self.groups}")
        return " ".join([*words, "on", _times(self.input)])


def calls(network: Network) -> list[tuple[Layer, LayerShape]]:
    """Every call of every layer but lookups, in the order of the layers."""
    nodes = {n.name: n for n in network.module.graph.nodes}
    edges = {e.name for e in network.edges}
    pairs = [(la, nodes[name]) for la in network.layers for name in la.calls]
    return [(la, _shape(la, node, edges)) for la, node in pairs if not is_lookup(node)]


def _shape(layer: Layer, node: Node, edges: set[str]) -> LayerShape:
    source: Any = node.args[0]
    clip = fused_activation(node)
    stored = node.name in edges or (clip is not None and clip.name in edges)
    axes = 0 if layer.kind == "linear" else len(layer.shape) - 2
    given = node.args[3:6] if axes else ()
    stride, padding, dilation = (_per_axis(v, axes) for v in (*given, *(1, 0, 1)[len(given) :]))
    return LayerShape(
        kind=layer.kind,
        weight=layer.shape,
        input=tuple(source.meta["row_shape"]),
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=layer.groups,
        stored=stored,
    )


def _per_axis(value: Any, axes: int) -> tuple[int, ...]:
    """One number an axis, as `aten.conv` reads a number or a list of one."""
    values = [value] if isinstance(value, int) else list(value)
    return tuple(int(v) for v in (values * axes if len(values) == 1 else values)[:axes])


def _times(sizes: tuple[int, ...]) -> str:
    return "×".join(map(str, sizes))


def _short(sizes: tuple[int, ...]) -> str:
    return str(sizes[0]) if len(set(sizes)) == 1 else _times(sizes)
