"""Affine grids of 1 to 8 bits, one for each output channel.

A channel's weights are stored as codes `v ∈ {0, …, 2ᵇ − 1}` and mean `s · (v − z/2)`: a positive
scale `s` and a zero point counted in half steps. Half steps let every level be used: `z = 2ᵇ − 1`
is the symmetric grid without a zero (`±s/2` for one bit), `z = 2ᵇ` and `z = 2ᵇ − 2` are the grids
with a zero and one level more on the negative or the positive side.

In an 8-bit container the same numbers are `(s/2) · (2v − z)` for b ≤ 7, and `s · (v − 128)` for 8.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

MAX_BITS = 8
#: candidates for the scale, as fractions of the one that reaches the largest weight
_STEPS = {1: 24, 2: 32, 3: 32, 4: 28, 5: 20, 6: 14, 7: 10, 8: 8}
_SMALLEST = {1: 0.1, 2: 0.2, 3: 0.3, 4: 0.4, 5: 0.5, 6: 0.65, 7: 0.75, 8: 0.85}


@dataclass(frozen=True)
class Grid:
    """Grids of C channels.

    Attributes:
        bits: int64 [C], 1 to 8.
        scale: float32 [C], positive.
        zero: int64 [C], zero point in half steps; always 256 for 8 bits.
    """

    bits: Tensor
    scale: Tensor
    zero: Tensor


def quantize(weight: Tensor, grid: Grid) -> Tensor:
    """Codes uint8 [C, K] of the nearest levels: `v = clip(round(w/s + z/2), 0, 2ᵇ − 1)`."""
    scale, zero = grid.scale[:, None], grid.zero[:, None] / 2
    top = (2**grid.bits - 1)[:, None].to(weight.dtype)
    return (weight / scale + zero).round().clamp(min=torch.zeros_like(top), max=top).to(torch.uint8)


def dequantize(codes: Tensor, grid: Grid) -> Tensor:
    """`s · (v − z/2)`, float32 [C, K]."""
    return (codes.float() - grid.zero[:, None] / 2) * grid.scale[:, None]


def container(codes: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """Integers q and scales t with `weight = t · q`, q in [−128, 127].

    Returns:
        q int16 [C, K] and t float32 [C]: `2v − z` and `s/2` for b ≤ 7, `v − 128` and `s` for 8.
    """
    wide = (grid.bits == MAX_BITS)[:, None]
    v = codes.to(torch.int16)
    q = torch.where(wide, v - 128, 2 * v - grid.zero[:, None].to(torch.int16))
    return q, torch.where(grid.bits == MAX_BITS, grid.scale, grid.scale / 2)


def fits_container(bits: Tensor, zero: Tensor) -> Tensor:
    """Whether all levels of each grid lie in the 8-bit container, bool [C]."""
    narrow = (zero >= 0) & (zero <= 128) & (2 ** (bits + 1) - 2 - zero <= 127)
    return (bits >= 1) & torch.where(bits == MAX_BITS, zero == 2**MAX_BITS, narrow & (bits < 8))


def round_scale(scale: Tensor) -> Tensor:
    """The nearest float16 number, as float32; at least the smallest positive normal one."""
    tiny = torch.finfo(torch.float16).tiny
    return scale.clamp(min=tiny, max=torch.finfo(torch.float16).max).half().float()


def zero_points(bits: int) -> tuple[int, ...]:
    """Zero points (half steps) tried for a width."""
    levels = 2**bits
    if bits == 1:
        return (1,)
    if bits == MAX_BITS:
        return (levels,)
    return (levels - 1, levels, levels - 2) if bits < 7 else (levels - 1, levels)


def fit(weight: Tensor, bits: int, *, refine: int = 3) -> tuple[Grid, Tensor]:
    """The grid of `bits` bits with the least squared error for each channel.

    Candidates: every zero point of :func:`zero_points` with scales between a fraction of the
    largest weight and the whole of it; the best is refined by alternating nearest codes and the
    least-squares scale `s = ⟨w, v − z/2⟩ / ‖v − z/2‖²` (never worse), then rounded to float16.

    Args:
        weight: float32 [C, K].
        bits: 1 to 8.
        refine: rounds of alternation.

    Returns:
        The grid and the squared error ‖Q(w) − w‖² of each channel, float64 [C].
    """
    rows = weight.shape[0]
    top = 2**bits - 1
    best_error = torch.full((rows,), torch.inf)
    best_scale = torch.ones(rows)
    best_zero = torch.full((rows,), zero_points(bits)[0], dtype=torch.int64)
    high, low = weight.amax(1).clamp(min=0), (-weight.amin(1)).clamp(min=0)
    for zero in zero_points(bits):
        reach = (
            torch.maximum(high / (top - zero / 2), low / (zero / 2)) if zero != 2 * top else high
        )
        for fraction in torch.linspace(_SMALLEST[bits], 1.0, _STEPS[bits]):
            scale = (reach * fraction).clamp(min=1e-12)
            scaled = weight / scale[:, None]
            levels = (scaled + zero / 2).round_().clamp_(0, top).sub_(zero / 2)
            error = (levels - scaled).square_().sum(1) * scale.square()
            better = error < best_error
            best_error = torch.where(better, error, best_error)
            best_scale = torch.where(better, scale, best_scale)
            best_zero = torch.where(better, zero, best_zero)
    half = best_zero[:, None] / 2
    scale = best_scale
    for _ in range(refine):
        levels = (weight / scale[:, None] + half).round_().clamp_(0, top).sub_(half)
        fitted = (weight * levels).sum(1) / levels.square().sum(1).clamp(min=1e-12)
        scale = torch.where(fitted > 0, fitted, scale)
    grid = Grid(torch.full((rows,), bits), round_scale(scale), best_zero)
    error = (dequantize(quantize(weight, grid), grid).double() - weight.double()).square().sum(1)
    return grid, error
