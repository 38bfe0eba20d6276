"""Affine grids of 1 to 8 bits, one for each output channel.

A channel's weights are stored as codes `v ∈ {0, …, 2ᵇ − 1}` and mean `s · (v − z/2)`: a positive
scale `s` and a zero point counted in half steps. Half steps let every level be used: `z = 2ᵇ − 1`
is the symmetric grid without a zero (`±s/2` for one bit), `z = 2ᵇ` and `z = 2ᵇ − 2` are the grids
with a zero and one level more on the negative or the positive side.

A multi-bit channel of b = 2 to 4 bases has positions `p(v) = ½ Σ_i d_i bit_i(v)` in the place of
v: integer coordinates d_i ≥ 1 in half steps, 2ⁱ⁺¹ for a uniform grid. With the signs `±1` of bits
that is `s/2 · (Σ_i ½ d_i (±1)_i + ½ Σ_i d_i − z)`, bases as in :mod:`bitwright.arith.multibit` and
an offset, as grids with a zero have one.

In an 8-bit container the same numbers are `(s/2) · (2p − z)` for b ≤ 7, and `s · (v − 128)` for 8.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

MAX_BITS = 8
#: bases that a multi-bit channel may have: its width
BASES = (2, 3, 4)
#: the largest integer of a multi-bit channel in the container: no kernel saturates on such rows
#: (:mod:`bitwright.arith.saturation`), as on those of 6 bits
MAX_LEVEL = 63
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
        coordinates: int64 [C, 4], of multi-bit channels the b coordinates in half steps, zeros
            behind them and in uniform channels; None where all are uniform.
    """

    bits: Tensor
    scale: Tensor
    zero: Tensor
    coordinates: Tensor | None = None

    @property
    def multibit(self) -> Tensor:
        """Which channels have coordinates, bool [C]."""
        if self.coordinates is None:
            return torch.zeros(len(self.bits), dtype=torch.bool, device=self.bits.device)
        return self.coordinates[:, 0] > 0


def joined(grids: Sequence[Grid]) -> Grid:
    """The channels of all grids, one after another."""
    parts = [g.coordinates for g in grids]
    coordinates = None
    if any(p is not None for p in parts):
        blank = (torch.zeros(len(g.bits), BASES[-1], dtype=torch.int64) for g in grids)
        coordinates = torch.cat([b if p is None else p for b, p in zip(blank, parts, strict=True)])
    bits, scale, zero = (
        torch.cat([getattr(g, name) for g in grids]) for name in ("bits", "scale", "zero")
    )
    return Grid(bits, scale, zero, coordinates)


def positions_of(coordinates: Tensor) -> Tensor:
    """`½ Σ_i d_i bit_i(v)` of all codes v of four bits, float32 [..., 16]."""
    codes = torch.arange(2 ** BASES[-1], device=coordinates.device)
    shifts = torch.arange(BASES[-1], device=coordinates.device)
    bits = ((codes >> shifts[:, None]) & 1).float()
    return coordinates.float() @ bits / 2


@dataclass(frozen=True)
class Ordered:
    """Positions of multi-bit rows in ascending order.

    Attributes:
        middles: between neighbours, floats [..., 15]; behind the last one infinite.
        codes: of the positions, int64 [..., 16].
    """

    middles: Tensor
    codes: Tensor

    def nearest(self, position: Tensor) -> Tensor:
        """Codes of the positions nearest to `position` [..., K], int64; of two the lower one."""
        return self.codes.gather(-1, torch.searchsorted(self.middles, position.contiguous()))


def ordered(coordinates: Tensor, bits: Tensor, dtype: torch.dtype) -> Ordered:
    """The positions of rows of `coordinates` [..., 4] and `bits` [...]."""
    table = positions_of(coordinates).to(dtype)
    codes = torch.arange(table.shape[-1], device=table.device)
    table = torch.where(codes < 2 ** bits[..., None], table, torch.inf)
    table, order = table.sort(dim=-1, stable=True)
    return Ordered(((table[..., 1:] + table[..., :-1]) / 2).contiguous(), order)


def positions(codes: Tensor, grid: Grid) -> Tensor:
    """p(v): the codes themselves, or sums of coordinates; float32 [C, K]."""
    return positions_at(codes.float(), grid.coordinates)


def positions_at(codes: Tensor, coordinates: Tensor | None) -> Tensor:
    """p(v) of codes [..., K], integers as floats, and coordinates [..., 4] of their rows."""
    if coordinates is None:
        return codes
    table = positions_of(coordinates).to(codes.dtype)
    return positions_in(codes, table, coordinates[..., :1] > 0)


def positions_in(codes: Tensor, table: Tensor, multibit: Tensor) -> Tensor:
    """p(v) from `table` [..., 16] in rows that are `multibit` [..., 1], and v in the others."""
    inside = codes.long().clamp(max=table.shape[-1] - 1)
    return torch.where(multibit, table.gather(-1, inside), codes)


def nearest(position: Tensor, grid: Grid) -> Tensor:
    """The nearest positions of levels, clipped to the grid, [C, K]."""
    top = reach(grid)[:, None].to(position.dtype)
    found = position.round().clamp(min=torch.zeros_like(top), max=top)
    own = grid.multibit
    if grid.coordinates is None or not bool(own.any()):
        return found
    rows = ordered(grid.coordinates[own], grid.bits[own], position.dtype)
    codes = rows.nearest(position[own])
    found[own] = positions_of(grid.coordinates[own]).to(found.dtype).gather(1, codes)
    return found


def reach(grid: Grid) -> Tensor:
    """The largest position, float32 [C]: `2ᵇ − 1`, or `½ Σ_i d_i`."""
    top = (2**grid.bits - 1).float()
    if grid.coordinates is None:
        return top
    return torch.where(grid.multibit, grid.coordinates.sum(1) / 2, top)


def quantize(weight: Tensor, grid: Grid) -> Tensor:
    """Codes uint8 [C, K] of the nearest levels: `v = clip(round(w/s + z/2), 0, 2ᵇ − 1)`."""
    scale, zero = grid.scale[:, None], grid.zero[:, None] / 2
    top = (2**grid.bits - 1)[:, None].to(weight.dtype)
    at = weight / scale + zero
    codes = at.round().clamp(min=torch.zeros_like(top), max=top).to(torch.uint8)
    own = grid.multibit
    if grid.coordinates is not None and bool(own.any()):
        rows = ordered(grid.coordinates[own], grid.bits[own], at.dtype)
        codes[own] = rows.nearest(at[own]).to(torch.uint8)
    return codes


def dequantize(codes: Tensor, grid: Grid) -> Tensor:
    """`s · (p(v) − z/2)`, float32 [C, K]."""
    return (positions(codes, grid) - grid.zero[:, None] / 2) * grid.scale[:, None]


def container(codes: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """Integers q and scales t with `weight = t · q`, q in [−128, 127].

    Returns:
        q int16 [C, K] and t float32 [C]: `2p − z` and `s/2` for b ≤ 7, `v − 128` and `s` for 8.
    """
    wide = (grid.bits == MAX_BITS)[:, None]
    twice = (2 * positions(codes, grid)).to(torch.int16)
    q = torch.where(wide, twice // 2 - 128, twice - grid.zero[:, None].to(torch.int16))
    return q, torch.where(grid.bits == MAX_BITS, grid.scale, grid.scale / 2)


def fits_container(bits: Tensor, zero: Tensor) -> Tensor:
    """Whether all levels of each uniform grid lie in the 8-bit container, bool [C]."""
    narrow = (zero >= 0) & (zero <= 128) & (2 ** (bits + 1) - 2 - zero <= 127)
    return (bits >= 1) & torch.where(bits == MAX_BITS, zero == 2**MAX_BITS, narrow & (bits < 8))


def are_bases(bits: Tensor, zero: Tensor, coordinates: Tensor) -> Tensor:
    """Whether each row is of multi-bit form, its levels within :data:`MAX_LEVEL`, bool [C]."""
    there = torch.arange(BASES[-1]) < bits[:, None]
    known = (bits >= BASES[0]) & (bits <= BASES[-1])
    right = torch.where(there, coordinates >= 1, coordinates == 0).all(1)
    high = coordinates.sum(1) - zero
    return known & right & (zero >= 0) & (zero <= MAX_LEVEL) & (high >= 0) & (high <= MAX_LEVEL)


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
        reach = torch.maximum(high / (top - zero / 2), low / (zero / 2))
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
