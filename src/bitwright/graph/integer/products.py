"""int8 products in 32 bits, and what becomes of their sums: the next codes, or floats."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bitwright.errors import BitwrightError
from bitwright.graph.integer.dots import has_byte_dots
from bitwright.graph.integer.kernels import finish, to_codes
from bitwright.graph.integer.matmul import multiply
from bitwright.graph.weights import weight_steps

#: step and zero point of codes 0 to 255
Grid = tuple[float, int]

#: nodes whose products with 64 channels take a megabyte, as much as a core's own cache holds
BLOCK = 4096

_DOTS = has_byte_dots()


def padded(channels: int) -> int:
    """Bytes of a row of so many channels: 16, 32, or a multiple of 64."""
    return next((n for n in (16, 32) if channels <= n), -(-channels // 64) * 64)


def width_of(stride: int) -> int:
    """Bytes that are summed at once, of rows of so many."""
    return min(stride, 64)


def rounding(grid: Grid | None) -> tuple[np.float32 | None, np.float32]:
    """1 / s and z of a grid as passes take them; no 1 / s for floats."""
    if grid is None:
        return None, np.float32(0)
    return np.float32(1) / np.float32(grid[0]), np.float32(grid[1])


def lengthened(values: Tensor, length: int) -> Tensor:
    """The vector with zeros behind it."""
    return torch.cat([values, values.new_zeros(length - len(values))])


@dataclass(frozen=True)
class Affine:
    """`v · gain + bias` by channel, float32 [channels padded], and what follows.

    Attributes:
        channels: of the result, where it is in float.
        grid: of the codes that follow; None: the result is in float.
    """

    gain: Tensor
    bias: Tensor
    channels: int
    grid: Grid | None

    def empty(self, rows: int) -> Tensor:
        """Memory for the result."""
        if self.grid is None:
            return torch.empty(rows, self.channels)
        return torch.empty(rows, len(self.gain), dtype=torch.int8)


def affine(channels: int, gain: Tensor | None, bias: Tensor | None, grid: Grid | None) -> Affine:
    """Of vectors [channels]; none are ones, and zeros."""
    gain = torch.ones(channels) if gain is None else gain
    bias = torch.zeros(channels) if bias is None else bias
    width = padded(channels)
    return Affine(lengthened(gain, width), lengthened(bias, width), channels, grid)


def coded(x: Tensor, grid: Grid) -> Tensor:
    """Codes q − 128 of features float32 [nodes, channels], int8 [nodes, channels padded]."""
    out = torch.empty(len(x), padded(x.shape[1]), dtype=torch.int8)
    to_codes(x.contiguous().numpy(), *rounding(grid), out.numpy())
    return out


@dataclass(frozen=True)
class Product:
    """A linear layer on codes.

    Attributes:
        weight: int8 [inputs padded, outputs padded].
        less: int32 [outputs padded], what the zero point of the codes adds to each sum.
        scale: float32 [outputs padded], of the sums, with factors by channel that come behind.
        after: what follows; its gain is in the scale already.
    """

    weight: Tensor
    less: Tensor
    scale: Tensor
    after: Affine

    @cached_property
    def packed(self) -> tuple[Any, Any, Any]:
        """Weights, begin and scale as :func:`bitwright.graph.integer.matmul.multiply` has them."""
        inputs, outputs = self.weight.shape
        width = width_of(outputs)
        blocks = self.weight.reshape(inputs // 4, 4, outputs // width, width).permute(2, 0, 3, 1)
        begin = -self.less - 128 * self.weight.sum(0, dtype=torch.int32)  # of unsigned codes
        return blocks.contiguous().numpy(), begin.numpy(), self.scale.numpy()

    def __call__(self, codes: Tensor, more: tuple[Product, Tensor] | None = None) -> Tensor:
        """Of codes int8 [nodes, inputs padded]: `x Wᵀ + bias`.

        Args:
            codes: x.
            more: another layer of as many outputs, without bias, and its codes, added in float.
        """
        out = self.after.empty(len(codes))
        if _DOTS:
            other = None if more is None else (more[1].numpy(), *more[0].packed)
            multiply(
                codes.numpy(), *self.packed, self.after.bias.numpy(), other,
                *rounding(self.after.grid), width_of(len(self.scale)), out.numpy(),
            )  # fmt: skip
            return out
        for start in range(0, len(codes), BLOCK):  # stay in the processor's cache until codes
            part = slice(start, start + BLOCK)
            added = None if more is None else more[0]._in_float(more[1][part])
            self.finish(torch._int_mm(codes[part], self.weight), added, out[part])
        return out

    def _in_float(self, codes: Tensor) -> Tensor:
        """`x Wᵀ`, float32 [nodes, outputs padded]."""
        sums = torch._int_mm(codes, self.weight)
        return (sums - self.less).float() * self.scale

    def finish(self, sums: Tensor, added: Tensor | None, out: Tensor) -> None:
        """Write what the sums int32 [nodes, outputs padded] stand for."""
        finish(
            sums.numpy(), self.less.numpy(), self.scale.numpy(), self.after.bias.numpy(),
            None if added is None else added.numpy(), *rounding(self.after.grid), out.numpy(),
        )  # fmt: skip


def product(weight: Tensor, grid: Grid, after: Affine) -> Product:
    """The layer with weights [outputs, inputs] on codes of the grid.

    Raises:
        BitwrightError: it is so wide that `Σ_i |q_i − z| |w_i| ≤ 255 Σ_i |w_i|` may pass 2³¹ − 1.
    """
    steps, _ = weight_steps(weight, 8)
    assert len(steps) == len(weight)  # any other number would be broadcast
    levels = (weight / steps[:, None]).round().to(torch.int8)
    most = 255 * int(levels.abs().sum(1, dtype=torch.int64).max())
    if most >= 2**31:
        raise BitwrightError(
            f"sums of a layer of {weight.shape[1]} inputs reach {most:,}, which is beyond 32-bit "
            "integers; leave it in float, or make it narrower"
        )
    outputs, inputs = len(after.gain), padded(weight.shape[1])
    codes = torch.zeros(outputs, inputs, dtype=torch.int8)
    codes[: len(levels), : levels.shape[1]] = levels
    scale = grid[0] * lengthened(steps, outputs) * after.gain
    less = (grid[1] - 128) * codes.sum(1, dtype=torch.int32)
    return Product(codes.T.contiguous(), less, scale, after)
