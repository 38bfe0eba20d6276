"""Range factors that leave no overflow on data: OAQ's α, found channel by channel in closed form.

OAQ (arXiv 2005.13297) raises a layer's α while there are overflows and lowers it while there are
none. What the accumulator met says at once where that ends: `α ← α · met / limit`. So α is found
for every channel by itself, in a few passes; activations keep their widths, as the loss is far more
sensitive to theirs (docs/decisions/0031-overflow.md).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from bitwright.arith.accumulator import Accumulator
from bitwright.overflow.count import Count, overflows
from bitwright.overflow.guarantee import with_zero
from bitwright.quantize import Quantized, QuantizedLayer
from bitwright.quantize.saturation import widened

#: passes in which factors are found; behind the second they only grow
PASSES = 12
#: how much more room than the largest number met is left for rows not seen: a third of a bit
MARGIN = 1.25


@dataclass(frozen=True)
class Fitted:
    """What fitting found.

    Attributes:
        quantized: the network, free of overflow on the rows seen.
        factors: layer name -> α of every channel, float64 [rows].
        history: N_o of the whole network in each pass.
    """

    quantized: Quantized
    factors: Mapping[str, Tensor]
    history: tuple[int, ...]


def fit_to_data(
    quantized: Quantized,
    x: Tensor,
    accumulator: Accumulator,
    *,
    correct: Callable[[Mapping[str, QuantizedLayer]], Quantized] | None = None,
    margin: float = MARGIN,
    chunk: int = 32,
    progress: Callable[[float], None] | None = None,
) -> Fitted:
    """Widen steps of channels until nothing overflows on `x`.

    Args:
        quantized: the network; left as it is.
        x: [n, ...] rows.
        accumulator: that sums are kept in.
        correct: makes the network of rounded layers again; None leaves biases and gains.
        margin: room left; 1 for none.
        chunk: rows in a pass.
        progress: called with the finished fraction.
    """
    built, history = quantized, []
    factors = {n: torch.ones(len(s.codes)).double() for n, s in quantized.layers.items()}
    for turn in range(PASSES):
        counts = overflows(built, x, accumulator, chunk=chunk)
        history.append(sum(c.total for c in counts.values()))
        if history[-1] == 0 and turn > 1:
            break
        factors = _moved(factors, counts, accumulator, margin, fall=turn < 2)
        layers = {name: _at(quantized.layers[name], factors[name]) for name in quantized.layers}
        built = Quantized(quantized.network, layers, quantized.edges)
        if correct is not None:
            built = correct(layers)
        if progress:
            progress((turn + 1) / PASSES)
    return Fitted(built, factors, tuple(history))


def _moved(
    factors: Mapping[str, Tensor],
    counts: Mapping[str, Count],
    accumulator: Accumulator,
    margin: float,
    fall: bool,
) -> dict[str, Tensor]:
    found = dict(factors)
    for name, count in counts.items():
        ratio = count.excess(accumulator) * margin
        moved = factors[name] * (ratio if fall else ratio.clamp(min=1))
        late = (factors[name] * 2**0.0625).maximum(
            moved
        )  # whole integers stand still at small steps
        found[name] = torch.where(count.over > 0, late if not fall else moved, moved).clamp(min=1)
    return found


def _at(stored: QuantizedLayer, factor: Tensor) -> QuantizedLayer:
    """The layer at range factors; grids without a zero get one where the factor is above 1."""
    return widened(with_zero(stored, factor > 1), stored.matrix(), factor)
