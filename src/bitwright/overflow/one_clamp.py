"""The released rule (alibaba/MNN, OAQ_quantizer.py): one clamp a layer, for inputs and weights.

Inputs and weights of a convolution are integers of −c … c with one c for both, at first 127; the
sums are computed in 16 bits that wrap and in 32, and while they differ anywhere, c falls by one. A
layer that would need c below a least one stays at plain 8 bits, exposed; depthwise convolutions and
anything with more than one reader's input are not handled there. A sum that leaves the range on the
way and comes back is no difference: wrapping forgives it, and a saturating register would not.

Here for comparison: an input read by several layers takes the smallest c of them.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from bitwright.arith.accumulator import Accumulator
from bitwright.overflow.count import overflows
from bitwright.overflow.guarantee import with_zero
from bitwright.overflow.on_data import Fitted
from bitwright.overflow.operands import read_groups
from bitwright.quantize import EdgeGrid, Quantized
from bitwright.quantize.saturation import is_depthwise, widened

LARGEST, SMALLEST = 127, 31


def one_clamp(quantized: Quantized, x: Tensor, accumulator: Accumulator) -> Fitted:
    """Clamps by the released rule; every layer's falls by one a pass while it overflows on `x`."""
    layers = {la.name: la for la in quantized.network.layers}
    clamp = {n: LARGEST for n, la in layers.items() if not is_depthwise(la)}
    given_up: set[str] = set()
    history: list[int] = []
    built = quantized
    for _ in range(LARGEST - SMALLEST + 2):
        counts = overflows(built, x, accumulator)
        over = {n for n in clamp if n not in given_up and n in counts and counts[n].total}
        history.append(sum(c.total for c in counts.values()))
        if not over:
            break
        for name in over:
            clamp[name] -= 1
            if clamp[name] < SMALLEST:
                given_up.add(name)
                clamp[name] = LARGEST
        built = _clamped(quantized, clamp)
    factors = {
        n: torch.full((la.rows,), LARGEST / clamp.get(n, LARGEST)).double()
        for n, la in layers.items()
    }
    return Fitted(built, factors, tuple(history))


def _clamped(quantized: Quantized, clamp: dict[str, int]) -> Quantized:
    least: dict[int, int] = {}
    for name, group in read_groups(quantized.network, quantized.edges).items():
        least[group] = min(least.get(group, LARGEST), clamp.get(name, LARGEST))
    edges = {g: _levels(grid, least.get(g, LARGEST)) for g, grid in quantized.edges.items()}
    layers = {}
    for name, stored in quantized.layers.items():
        factor = torch.full((len(stored.codes),), LARGEST / clamp.get(name, LARGEST)).double()
        layers[name] = widened(with_zero(stored, factor > 1), stored.matrix(), factor)
    return replace(quantized, layers=layers, edges=edges)


def _levels(grid: EdgeGrid, clamp: int) -> EdgeGrid:
    """The same range over −c … c, of which an input without negative values has 0 … c."""
    count = clamp if grid.zero == 0 else 2 * clamp
    share = grid.top / count
    if share <= 1:
        return grid
    bits = min(grid.bits, max(2, count.bit_length()))
    return EdgeGrid(float(torch.tensor(grid.scale * share).item()), round(grid.zero / share), bits)
