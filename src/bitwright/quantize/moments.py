"""Second moments of what a layer's weights multiply, of some calibration rows and positions."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from bitwright.network import Layer, Network, batches, run
from bitwright.network.ops import is_lookup

#: positions of an image's side beyond which not all are looked at: neighbours say the same
_SIDE = 8
#: floats of inputs cut out at once
_LIMIT = 4_000_000


@dataclass(frozen=True)
class Moments:
    """Of inputs x (the float network's x₀ beside them), centred: float64 [groups, fan_in, fan_in].

    Attributes:
        gram: `cov(x, x)`. Centred, as the bias takes up what an error does on average.
        drift: `cov(x₀ − x, x)`; zero where x is the float network's.
        mean, floats: E[x] and E[x₀], [groups, fan_in].
        halves: the same of every second piece of the rows, and of the others; None of few rows.
    """

    gram: Tensor
    drift: Tensor
    mean: Tensor
    floats: Tensor
    halves: tuple[Moments, Moments] | None = None


class Sums:
    """Moments of a layer in the making, of every second piece of its rows by themselves."""

    def __init__(self, layer: Layer) -> None:
        shape = 2, layer.groups, layer.fan_in, layer.fan_in
        self.layer = layer
        self.gram = torch.zeros(shape, dtype=torch.float64)
        self.drift = torch.zeros(shape, dtype=torch.float64)
        self.mean = torch.zeros(shape[:3], dtype=torch.float64)
        self.mean_drift = torch.zeros(shape[:3], dtype=torch.float64)
        self.count, self.turn = [0, 0], 0

    def add(self, node: Node, x: Tensor, floats: Tensor | None = None) -> None:
        """What one call sees: the inputs x, and the float network's there; any number of times."""
        positions = math.prod(node.meta["row_shape"]) // self.layer.rows
        size = max(1, _LIMIT // (self.layer.groups * self.layer.fan_in * positions))
        pieces = x.split(size)
        beside = [None] * len(pieces) if floats is None else floats.split(size)
        for piece, other in zip(pieces, beside, strict=True):
            half, turn = self.turn % 2, self.turn // 2
            a = columns(self.layer, node, piece, turn)
            self.gram[half] += (a @ a.mT).double()
            self.mean[half] += a.double().sum(2)
            self.count[half] += a.shape[2]
            if other is not None:
                d = columns(self.layer, node, other, turn) - a
                self.drift[half] += (d @ a.mT).double()
                self.mean_drift[half] += d.double().sum(2)
            self.turn += 1

    def moments(self) -> Moments:
        """What was added, centred."""
        whole = _centred(
            sum(self.count),
            *(t.sum(0) for t in (self.gram, self.drift, self.mean, self.mean_drift)),
        )
        if not all(self.count):
            return whole
        first, second = (
            _centred(n, *(t[i] for t in (self.gram, self.drift, self.mean, self.mean_drift)))
            for i, n in enumerate(self.count)
        )
        return replace(whole, halves=(first, second))


def _centred(n: int, gram: Tensor, drift: Tensor, mean: Tensor, mean_drift: Tensor) -> Moments:
    """Moments from sums over n samples."""
    n = max(n, 1)
    mean, mean_drift = mean / n, mean_drift / n
    return Moments(
        gram / n - mean[:, :, None] * mean[:, None],
        drift / n - mean_drift[:, :, None] * mean[:, None],
        mean,
        mean + mean_drift,
    )


def float_moments(
    network: Network,
    x: Tensor,
    layers: Mapping[str, Layer] | None = None,
    *,
    chunk: int = 64,
    progress: Callable[[float], None] | None = None,
) -> dict[str, Moments]:
    """Layer name -> moments of the float network's inputs of `x`, over all the layer's calls.

    Args:
        network: captured; x: [n, ...] rows.
        layers: by name, those wanted; None for all but embeddings, which multiply nothing.
        chunk: rows in a pass.
        progress: called with the finished fraction.
    """
    wanted = layers
    if wanted is None:
        wanted = {la.name: la for la in network.layers if la.kind != "embedding"}
    sums = {name: Sums(layer) for name, layer in wanted.items()}
    by_call = {call: sums[la.name] for la in wanted.values() for call in la.calls}

    def call(node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if node.name in by_call and not is_lookup(node):
            by_call[node.name].add(node, args[0])
        return node.target(*args, **kwargs)  # type: ignore[operator]

    pieces = batches(x, chunk)
    with torch.no_grad():
        for i, rows in enumerate(pieces):
            run(network.module, rows, call)
            if progress:
                progress((i + 1) / len(pieces))
    return {name: each.moments() for name, each in sums.items()}


def columns(layer: Layer, node: Node, x: Tensor, turn: int = 0, most: int = _SIDE) -> Tensor:
    """What each group's weights multiply, [groups, fan_in, samples].

    Of large images every second or k-th position along each axis, another set of them each `turn`.

    Args:
        layer: linear, or a convolution of any dimension; node: its call.
        x: the call's input.
        turn: which of the sets.
        most: positions along an axis that are looked at.
    """
    if layer.kind == "linear":
        return x.reshape(1, -1, x.shape[-1]).mT
    space = len(layer.shape) - 2
    stride, padding, dilation = (
        _all(node.args[3 + i] if len(node.args) > 3 + i else default, space)
        for i, default in enumerate((1, 0, 1))
    )
    if any(padding):
        x = torch.nn.functional.pad(x, [p for p in reversed(padding) for _ in range(2)])
    kernel = layer.shape[2:]
    sides, starts, steps = [], [], []
    for size, k, s, d in zip(x.shape[2:], kernel, stride, dilation, strict=True):
        side = (size - d * (k - 1) - 1) // s + 1
        step = max(1, side // most)
        start, turn = turn % step, turn // step
        sides.append(math.ceil((side - start) / step))
        starts.append(start * s)
        steps.append(step * s)
    n, c = x.shape[:2]
    strides = x.stride()[2:]
    view = x.as_strided(
        (n, c, *kernel, *sides),
        (
            *x.stride()[:2],
            *(t * d for t, d in zip(strides, dilation, strict=True)),
            *(t * s for t, s in zip(strides, steps, strict=True)),
        ),
        x.storage_offset() + sum(t * s for t, s in zip(strides, starts, strict=True)),
    )
    return view.movedim(0, 1 + space).reshape(layer.groups, layer.fan_in, -1)


def _all(value: Any, space: int) -> tuple[int, ...]:
    """A convolution's option for every axis of space."""
    found = (value,) if isinstance(value, int) else tuple(value)
    return found * space if len(found) == 1 else found
