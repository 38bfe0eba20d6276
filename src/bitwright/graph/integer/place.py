"""One layer of message passing of a trained network: grids around it, and what follows it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.nn import BatchNorm

from bitwright.errors import BitwrightError
from bitwright.graph.degree_quant import DegreeQuant
from bitwright.graph.integer.products import Affine, Grid, Product, affine, product


@dataclass(frozen=True)
class Follows:
    """Behind a product: factors of a batch-norm by channel, and the grid of what it is clipped to.

    Attributes:
        gain, shift: float32 [channels], or None without a norm.
        grid: that of ReLU's result; None: floats follow, without ReLU.
    """

    gain: Tensor | None = None
    shift: Tensor | None = None
    grid: Grid | None = None

    def after(self, bias: Tensor | None, channels: int) -> Affine:
        """The same with the bias of a layer."""
        if self.shift is not None and self.gain is not None:
            bias = self.shift if bias is None else self.shift + self.gain * bias
        return affine(channels, self.gain, bias, self.grid)


@dataclass(frozen=True)
class Place:
    """A layer where it stands.

    Attributes:
        net: the whole network.
        path: of the layer in it, as its ranges are called.
        conv: the layer.
        edges: int64 [2, edges].
        nodes: their number.
        grid: of its input.
        follows: what its output goes through.
    """

    net: DegreeQuant
    path: str
    conv: Any
    edges: Tensor
    nodes: int
    grid: Grid
    follows: Follows


def grid_of(net: DegreeQuant, site: str) -> Grid:
    """Step and zero point of an activation."""
    step, zero = net.range_of(site).grid(8)
    return float(step), int(zero)


def relu_grid(net: DegreeQuant, site: str) -> Grid:
    """The same of what ReLU gives.

    Raises:
        BitwrightError: its levels do not begin at zero.
    """
    found = grid_of(net, site)
    if found[1]:
        raise BitwrightError(f"{site} has the zero point {found[1]}; after ReLU there is none")
    return found


def normed(norm: nn.Module | None) -> tuple[Tensor | None, Tensor | None]:
    """Factors and offsets by channel of a batch-norm in evaluation mode; none without one.

    Raises:
        BitwrightError: another norm.
    """
    norm = norm.module if isinstance(norm, BatchNorm) else norm
    if norm is None or isinstance(norm, nn.Identity):
        return None, None
    if not isinstance(norm, nn.BatchNorm1d) or norm.running_var is None:
        raise BitwrightError(f"a norm is a {type(norm).__name__}; on bytes run batch-norms")
    assert norm.running_mean is not None
    gain = torch.rsqrt(norm.running_var + norm.eps)
    gain = gain if norm.weight is None else gain * norm.weight
    mean = norm.running_mean * gain
    return gain.detach(), (-mean if norm.bias is None else norm.bias - mean).detach()


def linear(layer: Any, grid: Grid, follows: Follows) -> Product:
    """A linear layer on codes of the grid."""
    weight: Tensor = layer.weight.detach()
    bias = None if layer.bias is None else layer.bias.detach()
    return product(weight, grid, follows.after(bias, len(weight)))
