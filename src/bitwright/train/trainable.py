"""A quantized network as a module to train: straight-through gradients, learned steps.

The stored weight of a row is `s · (clip(round(w/s + z/2)) − z/2)` of a latent weight w; its
gradient passes to w unchanged where nothing was clipped (Bengio et al., arXiv 1308.3432), and to
the step s as in LSQ (Esser et al., arXiv 1902.08153). Bits and zero points stay; latent weights,
steps and biases are the parameters. Batch-norm is folded, so there are no statistics to freeze.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node

from bitwright.arith.grid import Grid, quantize, round_scale
from bitwright.network import Layer, Network, join, run
from bitwright.quantize import EdgeGrid, Quantized, QuantizedLayer


class Trainable(nn.Module):
    """Computes what the quantized network computes, with gradients, in float.

    Args:
        quantized: corrected; left as it is.
        entered: whether all layers are quantized at once; False leaves them float until they
            :meth:`enter`.
        metadata: of the artefact that it came from, kept for the next one.

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
    ) -> None:
        super().__init__()
        self.origin, self.metadata = quantized, dict(metadata or {})
        self.rows = nn.ModuleList(
            _Rows(quantized.network, layer, quantized.layers[layer.name])
            for layer in quantized.network.layers
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

        Latent weights move in units of ten steps of their layer, biases in units of their mean,
        log steps by the rate itself.
        """
        found: list[dict[str, Any]] = []
        for rows in self.rows:
            assert isinstance(rows, _Rows)
            step = float(rows.scale.mean())
            spread = float(rows.bias.detach().abs().mean()) or step
            found.append({"params": [rows.weight], "lr": rate * 10 * step})
            found.append({"params": [rows.log_step], "lr": rate})
            found.append({"params": [rows.bias], "lr": rate * spread})
        return found

    def forward(self, x: Tensor) -> Tensor:
        """The network's first output for rows [n, ...]."""
        first = self.rows[0].weight
        self._placed = self._placed.to(first.device)  # type: ignore[arg-type]
        network, edges = self._placed, self.origin.edges
        group = {e.name: e.group for e in network.edges}
        constants: dict[str, Tensor] = {}
        for layer, rows in zip(network.layers, self.rows, strict=True):
            if layer.name in self._entered:
                constants[layer.weight] = rows().reshape(layer.shape)
                constants[layer.bias] = rows.bias  # type: ignore[assignment]

        def edge(node: Node, value: Any) -> Any:
            grid = edges.get(group.get(node.name, -1))
            return value if grid is None else _straight_edge(value, grid)

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
        return replace(self.origin, layers=layers)


class _Rows(nn.Module):
    """Latent weights [rows, fan_in], log steps [rows] and biases [rows] of a layer."""

    bits: Tensor
    scale: Tensor
    zero: Tensor

    def __init__(self, network: Network, layer: Layer, stored: QuantizedLayer) -> None:
        super().__init__()
        # float weights times the correction's gain: their codes are the stored codes, up to what
        # rounding that looks at data, or training before, may have moved
        w = network.matrix(layer).detach()
        meant = stored.matrix()
        gain = (w * meant).sum(1) / w.square().sum(1).clamp(min=1e-12)
        latent = w * gain.clamp(1 / 16, 16)[:, None]
        same = quantize(latent, stored.grid) == stored.codes
        self.weight = nn.Parameter(torch.where(same, latent, meant).clone())
        self.log_step = nn.Parameter(stored.grid.scale.log())
        self.bias = nn.Parameter(stored.bias.clone())
        for name in ("bits", "scale", "zero"):
            self.register_buffer(name, getattr(stored.grid, name).clone(), persistent=False)

    def forward(self) -> Tensor:
        """Fake-quantized weights [rows, fan_in]."""
        return _straight(self.weight, self.log_step, Grid(self.bits, self.scale, self.zero))

    def stored(self, grid: Grid) -> QuantizedLayer:
        scale = round_scale(self.log_step.detach().cpu().exp())
        grid = replace(grid, scale=scale)
        codes = quantize(self.weight.detach().cpu(), grid)
        return QuantizedLayer(codes, grid, self.bias.detach().cpu().clone())


def _straight(weight: Tensor, log_step: Tensor, grid: Grid) -> Tensor:
    """Fake-quantized weights [rows, fan_in]; LSQ's gradient scale on the step."""
    half = grid.zero[:, None] / 2
    top = (2**grid.bits - 1)[:, None].to(weight.dtype)
    damp = 1 / math.sqrt(weight.shape[1])
    step = log_step.exp()[:, None]
    step = step * damp + (step * (1 - damp)).detach()
    scaled = (weight / step + half).clamp(min=torch.zeros_like(top), max=top)
    levels = scaled + (scaled.round() - scaled).detach()
    return (levels - half) * step


def _straight_edge(x: Tensor, grid: EdgeGrid) -> Tensor:
    scaled = (x / grid.scale + grid.zero).clamp(0, grid.top)
    levels = scaled + (scaled.round() - scaled).detach()
    return (levels - grid.zero) * grid.scale
