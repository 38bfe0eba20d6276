"""Multi-bit grids of 2 to 4 bases, fitted: levels `c + Σ_i α_i bit_i(v)` of least squared error.

Nearest codes and the least-squares offset and coordinates are alternated (Lloyd's algorithm, with
levels that are sums), from the best uniform grid, from greedy signs (ALQ, Qu et al., arXiv
1912.08883, sec. 4.1: bᵢ = sign(residual)) and from narrower and wider ones; the error never grows.
Then coordinates and offset become integers in half steps, at the step that leaves the least error.

Rows are sorted once: nearest codes are cuts of the sorted row, found by bisection, and all that
least squares need are the counts and sums between cuts, differences of running sums. A round costs
16 bisections a row, whatever the row's length.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from bitwright.arith.grid import (
    BASES,
    MAX_LEVEL,
    Grid,
    dequantize,
    quantize,
    round_scale,
)
from bitwright.arith.grid import fit as fit_uniform

#: rounds of alternation for real and for integer coordinates
_ROUNDS, _INTEGER_ROUNDS = 12, 3
#: ratios between coordinates, and shares of a uniform grid's reach, that starts have
_RATIOS, _SHARES = (2.0, 1.5), (0.7, 0.85, 1.0)
#: half steps that the farther end is tried at: which of them suits all coordinates is luck
_ENDS = range(MAX_LEVEL, 31, -3)


@dataclass(frozen=True)
class _Sorted:
    """Rows in rising order with running sums: float64 [C, K] and [C, K + 1]."""

    values: Tensor
    sums: Tensor

    def cuts(self, levels: Tensor) -> tuple[Tensor, Tensor]:
        """How many weights are nearest to each level, and their sums: [C, L] each."""
        ranked, order = levels.sort(dim=1)
        middles = (ranked[:, 1:] + ranked[:, :-1]) / 2
        inner = torch.searchsorted(self.values, middles.contiguous())
        first = torch.zeros(len(levels), 1, dtype=torch.int64)
        ends = torch.cat([first, inner, first + self.values.shape[1]], 1)
        counts, sums = ends.diff(dim=1).double(), self.sums.gather(1, ends).diff(dim=1)
        back = order.argsort(dim=1)
        return counts.gather(1, back), sums.gather(1, back)

    def error(self, levels: Tensor) -> Tensor:
        """‖ŵ − w‖² − ‖w‖² of each row on its nearest levels, [C]."""
        counts, sums = self.cuts(levels)
        return (levels * (counts * levels - 2 * sums)).sum(1)


def fit(weight: Tensor, bits: int) -> tuple[Grid, Tensor]:
    """Multi-bit grids of `bits` bases, each row's with the least squared error that was found.

    Args:
        weight: float32 [C, K].
        bits: 2 to 4.

    Returns:
        The grid, scales rounded to float16, and ‖Q(w) − w‖² of each channel, float64 [C].

    Raises:
        ValueError: another number of bases, or weights that are not finite.
    """
    if bits not in BASES:
        raise ValueError(f"multi-bit grids have {BASES[0]} to {BASES[-1]} bases, not {bits}")
    if not bool(torch.isfinite(weight).all()):
        raise ValueError("weights are NaN or infinite")
    values = weight.double().sort(dim=1).values
    rows = _Sorted(values, torch.nn.functional.pad(values.cumsum(1), (1, 0)))
    signs = _signs(bits)
    best = torch.full((len(weight),), torch.inf, dtype=torch.float64)
    found = torch.zeros(len(weight), bits + 1, dtype=torch.float64)
    for start in _starts(weight, rows, bits):
        solved = _alternated(rows, start, signs)
        error = rows.error(solved @ signs)
        better = error < best
        best = torch.where(better, error, best)
        found[better] = solved[better]
    grid = _integers(rows, found, bits)
    error = (dequantize(quantize(weight, grid), grid).double() - weight.double()).square().sum(1)
    return grid, error


def _signs(bits: int) -> Tensor:
    """bit_i(v), and ones for the offset, float64 [bits + 1, 2^bits]."""
    codes = torch.arange(2**bits)
    own = (codes >> torch.arange(bits)[:, None]) & 1
    return torch.cat([own, torch.ones(1, 2**bits, dtype=torch.int64)]).double()


def _starts(weight: Tensor, rows: _Sorted, bits: int) -> Iterator[Tensor]:
    """Coordinates and offsets to set out from, [C, bits + 1]."""
    uniform, _ = fit_uniform(weight, bits)
    step, power = uniform.scale.double(), 2.0 ** torch.arange(bits, dtype=torch.float64)
    yield torch.cat([step[:, None] * power, -(step * uniform.zero / 2)[:, None]], 1)
    yield greedy(weight, bits)
    reach = step * (2**bits - 1)
    for ratio in _RATIOS:
        shape = ratio ** torch.arange(bits, dtype=torch.float64)
        shape /= shape.sum()
        for share in _SHARES:
            for low in (-0.5, -0.5 - 0.5 / 2**bits, -0.5 + 0.5 / 2**bits):
                own = (share * reach)[:, None]
                yield torch.cat([own * shape, own * low], 1)


def greedy(weight: Tensor, bits: int) -> Tensor:
    """ALQ's start: bᵢ = sign(residual), αᵢ = mean |residual|, as offset and coordinates.

    Returns:
        float64 [C, bits + 1]: 2αᵢ for each bit, and −Σ αᵢ.
    """
    residual, alphas = weight.double(), []
    for _ in range(bits):
        alpha = residual.abs().mean(1)
        residual = residual - torch.where(residual >= 0, 1.0, -1.0) * alpha[:, None]
        alphas.append(alpha)
    found = torch.stack(alphas, 1)
    return torch.cat([2 * found, -found.sum(1, keepdim=True)], 1)


def _alternated(rows: _Sorted, solved: Tensor, signs: Tensor) -> Tensor:
    """Nearest codes, then least squares, in turns; rows that would lose stay as they are."""
    levels = solved @ signs
    error = rows.error(levels)
    for _ in range(_ROUNDS):
        counts, sums = rows.cuts(levels)
        system = torch.einsum("iv,cv,jv->cij", signs, counts, signs)
        ridge = 1e-9 * system.diagonal(dim1=1, dim2=2).amax(1)
        system += torch.diag_embed(ridge[:, None].expand(solved.shape))
        fitted, _ = torch.linalg.solve_ex(system, sums @ signs.T)
        now = rows.error(fitted @ signs)
        better = now < error
        if not bool(better.any()):
            break
        solved = torch.where(better[:, None], fitted, solved)
        error, levels = torch.where(better, now, error), solved @ signs
    return solved


def _integers(rows: _Sorted, solved: Tensor, bits: int) -> Grid:
    """Positive integer coordinates and offsets in half steps, scales in float16."""
    alpha, offset = solved[:, :bits], solved[:, bits]
    offset = offset + alpha.clamp(max=0).sum(1)  # a negative one turns its bits over
    alpha = alpha.abs()
    signs = _signs(bits)
    far = torch.maximum(-offset, offset + alpha.sum(1)).clamp(min=1e-12)
    best = torch.full_like(far, torch.inf)
    chosen = torch.zeros(len(far), bits + 1, dtype=torch.int64)
    chosen_step = torch.ones_like(far)
    for end in _ENDS:
        step = far / end
        d = (alpha / step[:, None]).round().clamp(min=1)
        zero = (-offset / step).round()
        zero = zero.clamp(min=0, max=MAX_LEVEL).maximum(d.sum(1) - MAX_LEVEL)
        zero = zero.minimum(d.sum(1))
        held = zero <= MAX_LEVEL  # and so is what is above it
        integers = torch.cat([d, -zero[:, None]], 1)
        levels = integers @ signs
        for _ in range(_INTEGER_ROUNDS):
            counts, sums = rows.cuts(levels * step[:, None])
            size = (counts * levels.square()).sum(1)
            fitted = (levels * sums).sum(1) / size.clamp(min=1e-12)
            step = torch.where((size > 0) & (fitted > 0), fitted, step)
        step = round_scale((2 * step).float()).double() / 2
        error = rows.error(levels * step[:, None])
        better = held & (error < best)
        best = torch.where(better, error, best)
        chosen[better], chosen_step[better] = integers[better].long(), step[better]
    blank = torch.zeros(len(far), BASES[-1] - bits, dtype=torch.int64)
    return Grid(
        torch.full((len(far),), bits),
        (2 * chosen_step).float(),
        -chosen[:, bits],
        torch.cat([chosen[:, :bits], blank], 1),
    )
