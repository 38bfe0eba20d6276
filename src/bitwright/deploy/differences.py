"""Where two runs of a network differ: counted tensor by tensor, told with layer and reason."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch.fx import Node

from bitwright.network.network import fused_activation
from bitwright.network.ops import LAYERS, TABLES, VALUE_PRESERVING, aten
from bitwright.quantize import Quantized


@dataclass(frozen=True)
class Difference:
    """A tensor that is not equal everywhere.

    Attributes:
        name: of the edge.
        layer: the layer that computes it, or the operation where that is no layer.
        fraction: of elements that differ.
        max_step: the largest difference in quantization steps; of an output, in its numbers.
        where: index of the first element that differs, the row first.
        expected, found: the integers there (of an output, its numbers), of the reference and of
            the runtime.
        reason: why one step may happen there; empty where none is known.
    """

    name: str
    layer: str
    fraction: float
    max_step: float
    where: tuple[int, ...]
    expected: float
    found: float
    reason: str

    def __str__(self) -> str:
        """One line for people."""
        place = ", ".join(map(str, self.where))
        return (
            f"{self.name} (of {self.layer}): {self.fraction:.3%} of elements differ, by "
            f"{self.max_step} at most; first at [{place}]: {self.expected} expected, {self.found} "
            f"found" + (f"; {self.reason}" if self.reason else "")
        )


@dataclass
class Tally:
    """One tensor's differences so far."""

    count: int = 0
    size: int = 0
    step: int = 0
    where: tuple[int, ...] | None = None
    values: tuple[int, int] = (0, 0)

    def add(self, expected: np.ndarray, found: np.ndarray, first_row: int) -> None:
        """Count another chunk, of equal shapes [rows, …]."""
        gap = np.abs(found.astype(np.int32) - expected.astype(np.int32))
        self.size += gap.size
        self.step = max(self.step, int(gap.max(initial=0)))
        wrong = np.count_nonzero(gap)
        if wrong and self.where is None:
            place = tuple(int(i) for i in np.unravel_index(int((gap > 0).argmax()), gap.shape))
            self.values = int(expected[place]), int(found[place])
            self.where = (place[0] + first_row, *place[1:])
        self.count += int(wrong)


def differences(quantized: Quantized, tallies: Mapping[str, Tally]) -> tuple[Difference, ...]:
    """What differs, in the order of the graph, with layers and reasons.

    Args:
        quantized: the network that was compared.
        tallies: edge name -> what was counted.
    """
    nodes = {n.name: n for n in quantized.network.module.graph.nodes}
    owner = {name: la.name for la in quantized.network.layers for name in la.calls}
    found: list[Difference] = []
    for name, tally in tallies.items():
        if not tally.count:
            continue
        assert tally.where is not None
        node = nodes[name.removesuffix(".rows")]
        producer = _computed_by(node, owner)
        found.append(
            Difference(
                name=name,
                layer=owner.get(producer.name, _operation(producer)),
                fraction=tally.count / max(tally.size, 1),
                max_step=tally.step,
                where=tally.where,
                expected=tally.values[0],
                found=tally.values[1],
                reason=_reason(node, producer),
            )
        )
    return tuple(found)


def _computed_by(node: Node, owner: dict[str, str]) -> Node:
    """The operation whose result an edge is, looking through clips that the runtime folds."""
    source = node.args[0] if node.args else None
    if not isinstance(source, Node) or fused_activation(source) is not node:
        return node
    return source if source.name in owner or source.target is aten.add.Tensor else node


def _operation(node: Node) -> str:
    name = getattr(node.target, "_opname", None) or getattr(node.target, "__name__", node.op)
    return str(name)


#: why a float32 result may come out one step off: target -> reason
_REASONS: dict[Any, str] = {
    aten.add.Tensor: "the runtime's sum of two scaled integers is rounded once more or less",
    aten.cat.default: "values are rescaled in float32",
    aten.mul.Tensor: "the product of the scales is rounded in another order",
    aten.avg_pool1d.default: "float32 sums in another order",
    aten.avg_pool2d.default: "float32 sums in another order",
    aten.adaptive_avg_pool2d.default: "float32 sums in another order",
    aten.mean.dim: "float32 sums in another order",
}


def _reason(node: Node, producer: Node) -> str:
    """Why an element may differ by a step though what it is computed from does not."""
    if node.op == "placeholder" or producer.target in {*LAYERS, *TABLES}:
        return ""  # exact integers and one rounding: nothing may differ
    if producer.target in VALUE_PRESERVING:
        return ""
    return _REASONS.get(producer.target, f"{_operation(producer)} is computed in float32")
