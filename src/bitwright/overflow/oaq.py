"""OAQ: range factors that overflows on data raise and their absence lowers (IJCAI 2020, 868–875).

Layer l has a factor α_l ≥ 1; steps of its input and of its weights are α_l times those of 8 bits,
that is, 8 − log₂ α_l bits are used of them. Every batch counts overflows N_o and moves it:

    N_o > 0:  α ← α + min(η log(N_o / n), η_max)        N_o = 0:  α ← α − η

with n rows in the batch and the rate η. The text of the paper (arXiv 2005.13297) gives the
principle; the rule is that of a public re-implementation, whose step is negative where fewer than
one overflow a row is left. So that nothing is left, a last phase only raises; it is ours, and so
are one α a channel (`by="channel"`: N_o and α of each channel, the input's step by the layer's
largest), the first layer learnt as all others, and inputs whose factor is the largest power of two
below their readers' α (a file's grids have whole bits), weights taking the rest. The paper trains
weights meanwhile; here they are fine-tuned before or afterwards.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bitwright.arith.accumulator import Accumulator
from bitwright.overflow.count import overflows
from bitwright.overflow.guarantee import with_zero
from bitwright.overflow.on_data import Fitted
from bitwright.overflow.operands import read_groups
from bitwright.quantize import EDGE_WIDTHS, EdgeGrid, Quantized, QuantizedLayer
from bitwright.quantize.saturation import widened


@dataclass(frozen=True)
class Rule:
    """How α moves.

    Attributes:
        rate, most: η and η_max.
        batch: rows in a step.
        steps: of the phase that raises and lowers.
        raising: steps at most of the one that only raises, over all rows.
        by: `layer` as in the paper, or `channel`.
        inputs: whether inputs get wider steps too, as in the paper; else weights alone.
    """

    rate: float = 0.1
    most: float = 1.0
    batch: int = 32
    steps: int = 24
    raising: int = 40
    by: str = "layer"
    inputs: bool = True


def learn_ranges(
    quantized: Quantized,
    x: Tensor,
    accumulator: Accumulator,
    rule: Rule | None = None,
    *,
    correct: Callable[[Quantized], Quantized] | None = None,
    progress: Callable[[float], None] | None = None,
) -> Fitted:
    """Factors by the rule, until nothing overflows on `x`.

    Args:
        quantized: of 8 bits; left as it is.
        x: [n, ...] rows, looked at in turns.
        accumulator: that sums are kept in.
        rule: how α moves.
        correct: applied to every network that factors make; None leaves them.
        progress: called with the finished fraction.
    """
    rule = rule or Rule()
    alpha = {n: torch.ones(len(s.codes)).double() for n, s in quantized.layers.items()}
    history: list[int] = []
    built = quantized
    for step in range(rule.steps + rule.raising):
        lowering = step < rule.steps
        first = step * rule.batch % max(len(x) - rule.batch + 1, 1)
        rows = x[first : first + rule.batch] if lowering else x
        counts = overflows(built, rows, accumulator)
        history.append(sum(c.total for c in counts.values()))
        if not lowering and history[-1] == 0:
            break
        for name, count in counts.items():
            over = count.over.double()
            if rule.by == "layer":
                over = over.sum().expand(len(over))
            moved = moves(over, len(rows), rule)
            moved = moved if lowering else torch.where(over > 0, moved.clamp(min=rule.rate), 0.0)
            alpha[name] = (alpha[name] + moved).clamp(min=1)
        built = at_factors(quantized, alpha, inputs=rule.inputs)
        built = built if correct is None else correct(built)
        if progress:
            progress((step + 1) / (rule.steps + rule.raising))
    return Fitted(built, alpha, tuple(history))


def moves(over: Tensor, rows: int, rule: Rule) -> Tensor:
    """What α moves by, for overflows N_o (of a layer, or of each channel) in so many rows."""
    raised = (rule.rate * (over.clamp(min=1) / rows).log()).clamp(max=rule.most)
    return torch.where(over > 0, raised, -rule.rate)


def at_factors(quantized: Quantized, alpha: Mapping[str, Tensor], *, inputs: bool) -> Quantized:
    """The network with steps wider by α.

    Args:
        quantized: at factor 1.
        alpha: layer name -> float64 [rows].
        inputs: whether inputs take their part.
    """
    shifts = _input_shifts(quantized, alpha) if inputs else {}
    edges = {g: narrower(grid, shifts.get(g, 0)) for g, grid in quantized.edges.items()}
    group = read_groups(quantized.network, quantized.edges)
    layers: dict[str, QuantizedLayer] = {}
    for name, stored in quantized.layers.items():
        share = 2.0 ** (shifts.get(group.get(name, -1), 0))
        factor = alpha[name].square() / share if inputs else alpha[name]
        factor = factor.clamp(min=1)
        layers[name] = widened(with_zero(stored, factor > 1), stored.matrix(), factor)
    return replace(quantized, layers=layers, edges=edges)


def _input_shifts(quantized: Quantized, alpha: Mapping[str, Tensor]) -> dict[int, int]:
    """Group of edges -> bits that its readers' largest factor takes from it."""
    found: dict[int, int] = {}
    for name, group in read_groups(quantized.network, quantized.edges).items():
        shift = int(math.log2(float(alpha[name].max())))
        found[group] = max(found.get(group, 0), shift)
    return found


def narrower(grid: EdgeGrid, shift: int) -> EdgeGrid:
    """The grid over the same range with so many bits fewer, 2 at least."""
    shift = min(shift, grid.bits - EDGE_WIDTHS[0])
    if shift <= 0:
        return grid
    bits = grid.bits - shift
    top = 2**bits - 1
    scale = float(torch.tensor(grid.scale * grid.top / top, dtype=torch.float32))
    zero = round(grid.zero * top / grid.top)
    if scale * (top - zero) > grid.scale * (grid.top - grid.zero):  # a fused clip's ceiling stays
        scale = grid.scale * (grid.top - grid.zero) / max(top - zero, 1)
        scale = float(torch.nextafter(torch.tensor(scale), torch.tensor(0.0)))
    return EdgeGrid(scale, zero, bits)
