"""A quantized network as a module to train: straight-through gradients, learned steps.

The stored weight of a row is `s · (clip(round(w/s + z/2)) − z/2)` of a latent weight w, and an
activation that of its value; gradients are those of :mod:`bitwright.train.straight`. Bits and zero
points stay; latent weights, steps of weights and activations, and biases are the parameters.
Batch-norm is folded, so there are no statistics to freeze.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import Node

from bitwright.arith.accumulator import Bounded
from bitwright.arith.grid import Grid, quantize, round_scale
from bitwright.arith.project import codes_within
from bitwright.errors import BitwrightError
from bitwright.network import Layer, Network, join, run
from bitwright.quantize import EdgeGrid, Quantized, QuantizedLayer, as_corrected
from bitwright.train.straight import straight_values, straight_weights

#: codes of weights in steps from the lowest level, [rows, fan_in]
Rounding = Callable[[Tensor, Grid], Tensor]


class Trainable(nn.Module):
    """Computes what the quantized network computes, with gradients, in float.

    Args:
        quantized: corrected; left as it is.
        entered: whether all layers are quantized at once; False leaves them float until they
            :meth:`enter`.
        metadata: of the artefact that it came from, kept for the next one.
        bounded: an accumulator that no layer may overflow, whatever comes in: weights are rounded
            to the nearest integers among those that cannot (:mod:`bitwright.arith.project`).

    A plain module: any optimizer, loss and loop, `DistributedDataParallel`, and
    `state_dict` to stop and go on. Only one thing is its own: steps and biases want rates of
    their own, see :meth:`groups`.
    """

    def __init__(
        self,
        quantized: Quantized,
        *,
        entered: bool = True,
        metadata: Mapping[str, Any] | None = None,
        bounded: Bounded | None = None,
    ) -> None:
        super().__init__()
        self.origin, self.metadata = quantized, dict(metadata or {})
        grids = quantized.edges
        self.rows = nn.ModuleList(
            _Rows(quantized.network, layer, quantized.layers[layer.name], _rounding(bounded, layer))
            for layer in quantized.network.layers
        )
        self.edges = nn.ModuleDict(
            {str(g): _Step(grid, _ceiling(quantized.network, g)) for g, grid in grids.items()}
        )
        self._entered: list[str] = []
        self._placed: Network = quantized.network
        if entered:
            self.enter([layer.name for layer in quantized.network.layers])

    def enter(self, names: Sequence[str]) -> None:
        """Quantize these layers from now on."""
        self._entered += names

    def groups(self, rate: float = 1e-3) -> list[dict[str, Any]]:
        """Parameter groups for an optimizer of Adam's family.

        Latent weights move in units of ten steps of their layer, biases in units of their mean, log
        steps of weights by the rate itself, those of activations such that the largest value moves
        as weights do.
        """
        found: list[dict[str, Any]] = []
        for rows in self.rows:
            assert isinstance(rows, _Rows)
            step = float(rows.scale.mean())
            found.append({"params": [rows.weight], "lr": rate * 10 * step})
            found.append({"params": [rows.log_step], "lr": rate})
            if isinstance(rows.bias, nn.Parameter):
                spread = float(rows.bias.detach().abs().mean()) or step
                found.append({"params": [rows.bias], "lr": rate * spread})
        for edge in self.edges.values():
            assert isinstance(edge, _Step)
            found.append({"params": [edge.log_ratio], "lr": rate * 10 / edge.grid.top})
        return found

    def forward(self, x: Tensor) -> Tensor:
        """The network's first output for rows [n, ...]."""
        first = self.rows[0].weight
        self._placed = self._placed.to(first.device)  # type: ignore[arg-type]
        network = self._placed
        group = {e.name: str(e.group) for e in network.edges if str(e.group) in self.edges}
        steps: dict[str, nn.Module] = dict(self.edges.items())
        constants: dict[str, Tensor] = {}
        for layer, rows in zip(network.layers, self.rows, strict=True):
            if layer.name in self._entered:
                constants[layer.weight] = rows().reshape(layer.shape)
                if layer.bias:
                    constants[layer.bias] = rows.bias  # type: ignore[assignment]

        def edge(node: Node, value: Any) -> Any:
            return steps[group[node.name]](value) if node.name in group else value

        def call(node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            return edge(node, node.target(*args, **kwargs))  # type: ignore[operator]

        return join(run(network.module, x, call, enter=edge, constants=constants))

    def quantized(self) -> Quantized:
        """The network that the parameters stand for, on the CPU; steps rounded to float16."""
        layers = dict(self.origin.layers)
        for layer, rows in zip(self.origin.network.layers, self.rows, strict=True):
            if layer.name in self._entered:
                assert isinstance(rows, _Rows)
                layers[layer.name] = rows.stored(layers[layer.name].grid)
        edges = dict(self.origin.edges)
        for group, step in self.edges.items():
            assert isinstance(step, _Step)
            edges[int(group)] = step.stored()
        return replace(self.origin, layers=layers, edges=edges)


class _Rows(nn.Module):
    """Latent weights [rows, fan_in], log steps [rows] and biases [rows] of a layer."""

    bias: Tensor
    bits: Tensor
    scale: Tensor
    zero: Tensor
    coordinates: Tensor | None

    def __init__(
        self, network: Network, layer: Layer, stored: QuantizedLayer, rounding: Rounding | None
    ) -> None:
        super().__init__()
        if rounding is not None and bool(stored.grid.multibit.any()):
            raise BitwrightError(
                f"layer {layer.name!r} has channels of bases, which cannot be kept from overflowing"
            )
        self.rounding = rounding
        latent, meant = as_corrected(network.matrix(layer).detach(), stored), stored.matrix()
        same = quantize(latent, stored.grid) == stored.codes
        self.weight = nn.Parameter(torch.where(same, latent, meant).clone())
        self.log_step = nn.Parameter(stored.grid.scale.log())
        if len(stored.bias):
            self.bias = nn.Parameter(stored.bias.clone())
        else:  # of an embedding: nothing to train
            self.register_buffer("bias", stored.bias.clone(), persistent=False)
        for name in ("bits", "scale", "zero", "coordinates"):
            value = getattr(stored.grid, name)
            value = None if value is None else value.clone()
            self.register_buffer(name, value, persistent=False)

    def forward(self) -> Tensor:
        """Fake-quantized weights [rows, fan_in]."""
        grid = Grid(self.bits, self.scale, self.zero, self.coordinates)
        return straight_weights(self.weight, self.log_step, grid, self.rounding)

    def stored(self, grid: Grid) -> QuantizedLayer:
        scale = round_scale(self.log_step.detach().cpu().exp())
        grid = replace(grid, scale=scale)
        weight = self.weight.detach().cpu()
        codes = quantize(weight, grid)
        if self.rounding is not None:
            top = (2**grid.bits - 1)[:, None].to(weight.dtype)
            scaled = weight / scale[:, None] + grid.zero[:, None] / 2
            scaled = scaled.clamp(min=torch.zeros_like(top), max=top)
            codes = self.rounding(scaled, grid).to(torch.uint8)
        return QuantizedLayer(codes, grid, self.bias.detach().cpu().clone())


def _rounding(bounded: Bounded | None, layer: Layer) -> Rounding | None:
    if bounded is None or layer.name not in bounded.inputs:
        return None
    return partial(codes_within, within=bounded.inputs[layer.name], accumulator=bounded.accumulator)


class _Step(nn.Module):
    """The step of a group of edges, relative to its grid's; kept below a fused clip's ceiling."""

    def __init__(self, grid: EdgeGrid, ceiling: float) -> None:
        super().__init__()
        self.grid = grid
        self.largest = ceiling / max(grid.top - grid.zero, 1)
        self.log_ratio = nn.Parameter(torch.zeros(()))

    def step(self) -> Tensor:
        return (self.grid.scale * self.log_ratio.exp()).clamp(max=self.largest)

    def forward(self, x: Tensor) -> Tensor:
        """Fake-quantized values."""
        grid = self.grid
        return straight_values(x, self.step(), grid.zero, grid.top, grid.limits(x))

    def stored(self) -> EdgeGrid:
        scale = np.float32(self.step().detach().cpu().item())
        while float(scale) > self.largest:
            scale = np.nextafter(scale, np.float32(0))
        return replace(self.grid, scale=float(scale))


def _ceiling(network: Network, group: int) -> float:
    return min(e.ceiling for e in network.edges if e.group == group)
