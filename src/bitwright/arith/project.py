"""Rounding onto integers whose positive and negative sums are bounded: exact for squared errors.

    min Σ_i (q_i − t_i)²  over integers q,  Σ q⁺ ≤ P,  Σ q⁻ ≤ N,  lo ≤ q_i ≤ hi

Signs of q and t agree at the optimum, so that both sides are problems of their own. From the
nearest integers r the sum has to fall by d; the step from m to m − 1 costs `2(t − m) + 1`, more
with every step of one number, so the d cheapest steps of all are the optimum. In the reals it is
the soft threshold of the projection onto an ℓ₁ ball (A2Q, arXiv 2308.13504, initializes by it; AXE,
arXiv 2409.17092, rounds after it).
"""

from __future__ import annotations

import torch
from torch import Tensor

from bitwright.arith.accumulator import Accumulator
from bitwright.arith.grid import Grid

#: halvings of the threshold; steps whose costs differ by less than 2⁻²⁸ of the range count as equal
_HALVINGS = 28


def round_within(
    target: Tensor, positive: Tensor, negative: Tensor, lo: Tensor, hi: Tensor
) -> Tensor:
    """The nearest integers within both sums, of target's type, [rows, K].

    Args:
        target: floats [rows, K].
        positive, negative: [rows], P and N ≥ 0.
        lo, hi: [rows], `lo <= 0 <= hi`.

    Cost: a bisection over [rows, K].
    """
    plus = _side(target.clamp(min=0), positive, hi)
    minus = _side((-target).clamp(min=0), negative, -lo)
    return plus - minus


def _side(t: Tensor, most: Tensor, top: Tensor) -> Tensor:
    """Nonnegative numbers rounded so that no row's sum passes `most`."""
    nearest = t.round().minimum(top[:, None].to(t.dtype))
    heavy = nearest.sum(1) > most
    if not bool(heavy.any()):
        return nearest
    found = nearest.clone()
    found[heavy] = _lowered(t[heavy], nearest[heavy], most[heavy].to(t.dtype))
    return found


def _lowered(t: Tensor, nearest: Tensor, most: Tensor) -> Tensor:
    """The d cheapest steps taken: with threshold u, those of `t − m ≤ u`, m the number left."""
    below = (t - nearest).amin(1) - 1  # nothing is taken
    above = t.amax(1) + 1  # everything is
    for _ in range(_HALVINGS):
        middle = (below + above) / 2
        fits = _left(t, nearest, middle).sum(1) <= most
        below, above = torch.where(fits, below, middle), torch.where(fits, middle, above)
    found = _left(t, nearest, above)
    spare = most - found.sum(1)  # steps that cost the same: give some back
    tied = _left(t, nearest, below) - found
    before = tied.cumsum(1) - tied
    return found + tied.minimum((spare[:, None] - before).clamp(min=0))


def _left(t: Tensor, nearest: Tensor, threshold: Tensor) -> Tensor:
    """Each number after all steps m → m − 1 with `t − m ≤ threshold`: the first m below is kept."""
    kept = torch.ceil(t - threshold[:, None]) - 1
    return kept.clamp(min=0).minimum(nearest)


def allowed_sums(
    rounded: Tensor, within: tuple[int, int], accumulator: Accumulator
) -> tuple[Tensor, Tensor]:
    """P and N, float64 [rows]: sums of positive and of negative integers that cannot overflow.

    With low = 0 each has a bound of its own. With low < 0 they share one, and both shrink by the
    same factor from what rounding to nearest gives.

    Args:
        rounded: integers [rows, K], before anything shrinks.
        within: low and high of the inputs; accumulator: that has to hold.
    """
    low, high = within
    plus, minus = rounded.clamp(min=0).sum(1), (-rounded).clamp(min=0).sum(1)
    if high == 0 and low == 0:
        return plus, minus
    if low == 0:
        most, least = (
            torch.tensor(v // high).to(plus) for v in (accumulator.highest, -accumulator.lowest)
        )
        return plus.clamp(max=most), minus.clamp(max=least)
    up, down = high * plus - low * minus, high * minus - low * plus
    share = torch.minimum(
        accumulator.highest / up.clamp(min=1), -accumulator.lowest / down.clamp(min=1)
    ).clamp(max=1)
    return (share * plus).floor(), (share * minus).floor()


def codes_within(
    scaled: Tensor, grid: Grid, *, within: tuple[int, int], accumulator: Accumulator
) -> Tensor:
    """The nearest codes of rows whose sums the accumulator holds, whatever comes in; [rows, K].

    Args:
        scaled: weights in steps from the lowest level, `w/s + z/2`, clipped to the grid.
        grid: of the rows; those without a zero, for which the integers count half steps, are
            rounded to nearest: the bound does not know them.
        within: range of the inputs; accumulator: `wrap` or `saturate`.
    """
    half = (grid.zero[:, None] / 2).to(scaled.dtype)
    target = scaled - half
    rounded = target.round()
    limits = allowed_sums(rounded, within, accumulator)
    lo = (-grid.zero / 2).to(scaled.dtype)
    q = round_within(target, *limits, lo, lo + (2**grid.bits - 1))
    return torch.where((grid.zero % 2 == 0)[:, None], q + half, scaled.round())
