"""What a pruned model costs: parameters, multiply-accumulates, bytes, from counts of channels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from bitwright.errors import BitwrightError
from bitwright.prune.edit import MATRICES, VECTORS, depthwise
from bitwright.prune.groups import Group

UNITS = ("parameters", "macs", "bytes")


@dataclass(frozen=True)
class Size:
    """What is counted of a model.

    Attributes:
        parameters: numbers that training moves.
        macs: multiply-accumulates of convolutions and linear layers, for one row.
        bytes: of parameters and buffers as they are stored.
    """

    parameters: float
    macs: float
    bytes: float

    def __getitem__(self, unit: str) -> float:
        if unit not in UNITS:
            raise BitwrightError(f"{unit!r} is not counted; use {', '.join(UNITS)}")
        return float(getattr(self, unit))


@dataclass(frozen=True)
class _Layer:
    """Counts of a module: `out · in · each` weights of `uses` positions, `out · own` besides."""

    path: str
    out: float
    inputs: float
    each: float
    uses: float
    own: float
    stored: float


class Sizes:
    """Sizes of a model with fewer channels, exact and without building it.

    Args:
        model: left as it is; groups: of its channels.
        x: a row or more, run once for the positions of its layers.
        refit: whether layers that read less get a bias (:mod:`bitwright.prune.compensate`).
    """

    def __init__(
        self, model: nn.Module, groups: Sequence[Group], x: Tensor, *, refit: bool = False
    ) -> None:
        self.refit = refit
        self.groups = {g.name: g for g in groups}
        self._paths = {g.name: {m.path for m in g.members} for g in groups}
        uses = positions(model, x[:1])
        self.layers = {
            path: _layer(path, module, uses.get(path, 0.0))
            for path, module in model.named_modules()
            if isinstance(module, MATRICES + VECTORS)
        }
        listed = sum(_parameters(la) for la in self.layers.values())
        stored = sum(4 * (_parameters(la) + la.out * la.stored) for la in self.layers.values())
        tensors = [*model.parameters(), *model.buffers()]
        self._rest = Size(
            sum(p.numel() for p in model.parameters()) - listed,
            0.0,
            sum(t.numel() * t.element_size() for t in tensors) - stored,
        )

    def of(
        self, removed: Mapping[str, int], implanted: Mapping[str, int] | None = None, rank: int = 0
    ) -> Size:
        """The size with so many units of each group gone, and so many in implants of a rank."""
        layers = dict(self.layers)
        for name, count in removed.items():
            self._thin(layers, name, count)
        for name, count in (implanted or {}).items():
            for member in self.groups[name].members:
                if member.out and count and layers[member.path].each > 1:
                    _implant(layers, member.path, count, rank)
        return self._sum(layers)

    @property
    def whole(self) -> Size:
        """Of the model as it is."""
        return self._sum(self.layers)

    def _sum(self, layers: Mapping[str, _Layer]) -> Size:
        parameters = sum(_parameters(la) for la in layers.values())
        macs = sum(la.out * la.inputs * la.each * la.uses for la in layers.values())
        stored = sum(4 * (_parameters(la) + la.out * la.stored) for la in layers.values())
        rest = self._rest
        return Size(parameters + rest.parameters, macs, stored + rest.bytes)

    def saved(self, removed: Mapping[str, int], name: str, unit: str) -> float:
        """What one more unit of a group would save, with so many gone."""
        paths = self._paths[name]
        touching = {n: c for n, c in removed.items() if c and self._paths[n] & paths}
        some = {p: self.layers[p] for p in paths}
        for other, count in touching.items():
            self._thin(some, other, count)
        before = self._sum(some)[unit]
        self._thin(some, name, 1)
        return before - self._sum(some)[unit]

    def _thin(self, layers: dict[str, _Layer], name: str, count: int) -> None:
        """Take so many units of a group out of the layers that are there."""
        group = self.groups[name]
        for member in group.members:
            layer = layers.get(member.path)
            if layer is None or not count:
                continue
            channels = count * sum(map(len, member.channels)) / group.units
            if member.out:
                layers[member.path] = replace(layer, out=layer.out - channels)
            else:
                own = 1.0 if self.refit else layer.own
                layers[member.path] = replace(layer, inputs=layer.inputs - channels, own=own)


def _implant(layers: dict[str, _Layer], path: str, count: int, rank: int) -> None:
    """Take channels out of a convolution and put their implant beside it."""
    layer = layers[path]
    layers[path] = replace(layer, out=layer.out - count)
    if rank:  # of the k×k filters, and a mixture with a bias
        layers[f"{path}.0"] = replace(layer, out=rank, own=0)
        layers[f"{path}.1"] = replace(layer, out=count, inputs=rank, each=1, own=1)
    else:
        layers[f"{path}.0"] = replace(layer, out=count, each=1, own=1)


def _parameters(layer: _Layer) -> float:
    return layer.out * layer.inputs * layer.each + layer.out * layer.own


def _layer(path: str, module: nn.Module, uses: float) -> _Layer:
    bias = sum(1 for name, _ in module.named_parameters() if name == "bias")
    if isinstance(module, nn.Linear):
        return _Layer(path, module.out_features, module.in_features, 1, uses, bias, 0)
    if isinstance(module, nn.modules.conv._ConvNd):
        kernel = math.prod(module.kernel_size)
        if depthwise(module):  # its inputs go with its outputs
            return _Layer(path, module.out_channels, 1, kernel, uses, bias, 0)
        each = kernel / module.groups
        return _Layer(path, module.out_channels, module.in_channels, each, uses, bias, 0)
    own = sum(1 for p in module.parameters() if p.ndim)
    stored = sum(1 for b in module.buffers() if b.ndim)
    width = max((p.numel() for p in [*module.parameters(), *module.buffers()]), default=0)
    return _Layer(path, width, 0, 0, 0, own, stored)


def positions(model: nn.Module, x: Tensor) -> dict[str, float]:
    """Layer path -> output positions of all rows and calls, in the order of the first calls."""
    found: dict[str, float] = {}
    hooks = []

    def watch(path: str, module: nn.Module) -> Any:
        def hook(_: nn.Module, inputs: Any, output: Tensor) -> None:
            width = module.out_features if isinstance(module, nn.Linear) else module.out_channels
            found[path] = found.get(path, 0.0) + output.numel() / int(width)  # type: ignore

        return hook

    for path, module in model.named_modules():
        if isinstance(module, MATRICES):
            hooks.append(module.register_forward_hook(watch(path, module)))
    try:
        with torch.no_grad():
            model(x)
    finally:
        for hook in hooks:
            hook.remove()
    return found
