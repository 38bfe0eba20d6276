"""The theorem that a layer cannot overflow, in numbers; or where it fails, and the smallest fix."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bitwright.arith.accumulator import Accumulator, Operands, reach
from bitwright.errors import BitwrightError
from bitwright.overflow.guarantee import guaranteed_layer
from bitwright.overflow.operands import input_ranges, operands, weight_integers
from bitwright.quantize import Quantized


@dataclass(frozen=True)
class LayerBound:
    """What a layer's accumulators can meet, over all inputs.

    Attributes:
        layer: its name.
        channel: of the largest excess.
        input_low, input_high: range of what it reads, zero point taken off.
        plus, minus: Σ w⁺ and Σ w⁻ of that channel's integers.
        low, high: the least and the greatest number met, both reached by some input.
        accumulator: that it was held against.
    """

    layer: str
    channel: int
    input_low: int
    input_high: int
    plus: int
    minus: int
    low: int
    high: int
    accumulator: Accumulator

    @property
    def holds(self) -> bool:
        """Whether no input can overflow it."""
        return self.low >= self.accumulator.lowest and self.high <= self.accumulator.highest

    @property
    def bits_needed(self) -> int:
        """Of an accumulator that would hold all of it."""
        return 1 + max((-self.low - 1).bit_length() if self.low < 0 else 0, self.high.bit_length())

    def __str__(self) -> str:
        """The theorem, or what breaks it."""
        a = self.accumulator
        what = "sums of pairs" if a.kind == "pairs" else "all partial sums, in any order,"
        reached = f"{self.low:,} … {self.high:,} reached (channel {self.channel})"
        room = f"{a.lowest:,} … {a.highest:,}"
        word = "inside" if self.holds else "NOT inside"
        return (
            f"{self.layer}: for inputs {self.input_low} … {self.input_high}, {what} stay within "
            f"{reached}, {word} {room}"
        )

    def to_dict(self) -> dict[str, Any]:
        """For a JSON file."""
        return {**asdict(self), "holds": self.holds, "bits_needed": self.bits_needed}


def layer_bounds(quantized: Quantized, accumulator: Accumulator) -> tuple[LayerBound, ...]:
    """Every layer on integers with the channel that is closest to overflow, or overflows most."""
    return tuple(
        _worst(name, given, accumulator) for name, given in operands(quantized, accumulator).items()
    )


def _worst(name: str, given: Operands, accumulator: Accumulator) -> LayerBound:
    low, high = reach(given, accumulator.kind)
    row = int(accumulator.excess(low, high).argmax())
    flat = given.weight.flatten(1)[row].long()
    return LayerBound(
        layer=name,
        channel=row,
        input_low=given.low,
        input_high=given.high,
        plus=int(flat.clamp(min=0).sum()),
        minus=int((-flat).clamp(min=0).sum()),
        low=int(low[row]),
        high=int(high[row]),
        accumulator=accumulator,
    )


def require(quantized: Quantized, accumulator: Accumulator) -> tuple[LayerBound, ...]:
    """The bounds, all of which hold.

    Raises:
        BitwrightError: one does not; names layer, channel, bound, and the smallest fix.
    """
    found = layer_bounds(quantized, accumulator)
    broken = [b for b in found if not b.holds]
    if broken:
        first = max(broken, key=lambda b: float(accumulator.excess(b.low, b.high)))
        more = f" ({len(broken)} layers of {len(found)} are too large)" if len(broken) > 1 else ""
        raise BitwrightError(
            f"layer {first.layer!r}, channel {first.channel}: inputs {first.input_low} … "
            f"{first.input_high} reach {first.low:,} … {first.high:,}, outside the "
            f"{first.accumulator.lowest:,} … {first.accumulator.highest:,} of a "
            f"{accumulator.bits}-bit accumulator ({accumulator.kind}); "
            f"{smallest_fix(quantized, first)}{more}"
        )
    return found


def smallest_fix(quantized: Quantized, bound: LayerBound) -> str:
    """What would make it hold: accumulator bits, or a wider step of that channel alone."""
    layer = next(la for la in quantized.network.layers if la.name == bound.layer)
    stored = quantized.layers[layer.name]
    within = input_ranges(quantized.network, quantized.edges)[layer.name]
    fixed = guaranteed_layer(layer, stored, within, bound.accumulator)
    q, step = weight_integers(fixed, bound.accumulator.kind)
    _, before = weight_integers(stored, bound.accumulator.kind)
    row = bound.channel
    factor = float(step[row] / before[row])
    plus, minus = int(q[row].clamp(min=0).sum()), int((-q[row]).clamp(min=0).sum())
    return (
        f"smallest fix: {bound.bits_needed} bits, or integers of that channel {factor:.2f} times "
        f"as coarse (Σw⁺ {bound.plus:,} -> {plus:,}, Σw⁻ {bound.minus:,} -> {minus:,}), as "
        "--accumulator-mode guaranteed makes them"
    )


def lines(bounds: Sequence[LayerBound]) -> list[str]:
    """A line a layer, and one for all of them."""
    found = [str(b) for b in bounds]
    if bounds and all(b.holds for b in bounds):
        a = bounds[0].accumulator
        tightest = max(bounds, key=lambda b: float(a.excess(b.low, b.high)))
        share = max(tightest.low / a.lowest, tightest.high / a.highest)
        found.append(
            f"theorem: no input overflows a {a.bits}-bit accumulator ({a.kind}) in any of "
            f"{len(bounds)} layers; {tightest.layer} comes closest, to {math.floor(100 * share)} %"
        )
    return found
