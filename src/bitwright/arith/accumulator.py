"""Narrow accumulators: what they do with sums of products, and which sums can occur.

A row of integer weights w meets integers x_i of a range `low ≤ 0 ≤ high` (stored integer − zero
point). The sum of any subset of the products, so every partial sum in every order, lies between

    −R⁻ = low · Σ w⁺ − high · Σ w⁻    and    R⁺ = high · Σ w⁺ − low · Σ w⁻ ,

w⁺ = max(w, 0), w⁻ = max(−w, 0), and both ends are reached by the whole sum (x_i = high where
w_i > 0 and low elsewhere, or the other way round). So the bound is exact: rows within it never
overflow whatever comes in, and of others some input does. With low = 0, after a ReLU, it is
`max(Σ w⁺, Σ w⁻) · high`: A2Q+'s (arXiv 2401.10432) without its centred weights, and half of A2Q's
`‖w‖₁ · high` (arXiv 2308.13504, eq. 5) where signs balance. With low < 0 that product is no bound.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from bitwright.arith.saturation import pairs as paired
from bitwright.errors import BitwrightError

#: what happens to a sum that does not fit
KINDS = ("wrap", "pairs", "saturate")
LEAST_BITS, MOST_BITS = 12, 32


@dataclass(frozen=True)
class Accumulator:
    """A two's complement register that products are summed in.

    Attributes:
        bits: 12 to 32.
        kind: `wrap`: sums modulo 2^bits, so that only the last one has to fit; `saturate`: clipped
            after every product, so that every partial sum has to; `pairs`: two products of stored
            integers (no zero point taken off) are added, clipped, and added up in 32 bits, as
            `vpmaddubsw` does with 16 bits.
    """

    bits: int = 16
    kind: str = "wrap"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise BitwrightError(
                f"accumulator kind {self.kind!r} is unknown; use {', '.join(KINDS)}"
            )
        whole = isinstance(self.bits, int) and not isinstance(self.bits, bool)
        if not whole or not LEAST_BITS <= self.bits <= MOST_BITS:
            raise BitwrightError(
                f"accumulators have {LEAST_BITS} to {MOST_BITS} bits, not {self.bits!r}"
            )

    @property
    def lowest(self) -> int:
        """−2^(bits − 1)."""
        return -int(2 ** (self.bits - 1))

    @property
    def highest(self) -> int:
        """2^(bits − 1) − 1."""
        return int(2 ** (self.bits - 1)) - 1

    def excess(self, low: Tensor | int, high: Tensor | int) -> Tensor:
        """How many times too large the sums of a range are, float64; ≤ 1 fits."""
        return torch.maximum(
            torch.as_tensor(low).double() / self.lowest,
            torch.as_tensor(high).double() / self.highest,
        )


@dataclass(frozen=True)
class Bounded:
    """An accumulator that layers must not be able to overflow.

    Attributes:
        accumulator: of all of them.
        inputs: layer name -> the least and the greatest integer it can read, zero point taken off.
    """

    accumulator: Accumulator
    inputs: Mapping[str, tuple[int, int]]


@dataclass(frozen=True)
class Operands:
    """Integers that a layer multiplies.

    Attributes:
        weight: int64 [rows, K] or [rows, channels, *kernel].
        low, high: range of what comes in, zero point taken off; `low <= 0 <= high`.
        depthwise: every row reads a channel of its own: kernels that add pairs do not pair those.
    """

    weight: Tensor
    low: int
    high: int
    depthwise: bool = False


def reach(operands: Operands, kind: str) -> tuple[Tensor, Tensor]:
    """The least and the greatest sum that the accumulator meets, int64 [rows] each, both attained.

    For `pairs` the sums of two neighbours of stored integers 0..high − low, of which single
    products are a part; for the others the sums of any products in any order.
    """
    if kind == "pairs":
        together = operands.weight.flatten(1)[..., None]
        if not operands.depthwise:
            together = paired(operands.weight)
        top, found = operands.high - operands.low, together.long()
        return top * found.clamp(max=0).sum(2).amin(1), top * found.clamp(min=0).sum(2).amax(1)
    flat = operands.weight.flatten(1).long()
    plus, minus = flat.clamp(min=0).sum(1), (-flat).clamp(min=0).sum(1)
    low, high = operands.low, operands.high
    return low * plus - high * minus, high * plus - low * minus


def worst_inputs(operands: Operands) -> tuple[Tensor, Tensor]:
    """Inputs, int64 [rows, K] each, on which the sums are least and greatest."""
    flat = operands.weight.flatten(1)
    low, high = torch.tensor(operands.low), torch.tensor(operands.high)
    return torch.where(flat > 0, low, high), torch.where(flat > 0, high, low)


def reduced(q: Tensor) -> tuple[Tensor, Tensor]:
    """Integer rows divided by the largest power of two in all of a row's numbers.

    `2v − z` of even zero points counts half steps: half of it is as exact, and needs half the
    accumulator.

    Args:
        q: integers [rows, K].

    Returns:
        int64 [rows, K], and the powers of two, int64 [rows]; rows of zeros are left as they are.
    """
    found = q.long()
    joined = torch.zeros(len(found), dtype=torch.int64)
    for place in range(7):
        odd = (found.abs() >> place & 1).any(1)
        joined = torch.where((joined == 0) & odd, 2**place, joined)
    factor = joined.clamp(min=1)
    return found // factor[:, None], factor
