"""Collects the nodes and shared constants of an ONNX graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir


class Builder:
    """Collects nodes and shared constants of a graph under short names."""

    def __init__(self) -> None:
        self.nodes: list[ir.Node] = []
        self.constants: dict[tuple[str, tuple[int, ...], bytes], ir.Value] = {}

    def constant(self, array: np.ndarray) -> ir.Value:
        """An initializer; equal arrays are stored once."""
        array = np.array(array, order="C")  # ascontiguousarray would give scalars an axis
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self.constants:
            self.constants[key] = ir.Value(
                name=f"c{len(self.constants)}",
                const_value=ir.tensor(array),
                shape=ir.Shape(array.shape),
                type=ir.TensorType(ir.DataType.from_numpy(array.dtype)),
            )
        return self.constants[key]

    def op(self, kind: str, *inputs: Any, **attributes: Any) -> ir.Value:
        """A node with one output; arrays among the inputs become constants."""
        return self.split(kind, 1, *inputs, **attributes)[0]

    def split(self, kind: str, count: int, *inputs: Any, **attributes: Any) -> Sequence[ir.Value]:
        """A node with `count` outputs."""
        values = [self.constant(v) if isinstance(v, np.ndarray) else v for v in inputs]
        node = ir.node(kind, values, attributes or None, num_outputs=count)
        self.nodes.append(node)
        return node.outputs

    def pieces(self, value: ir.Value, sizes: Sequence[int]) -> list[ir.Value]:
        """`value` cut along axis 0 into pieces of the given sizes (one piece: itself)."""
        if len(sizes) == 1:
            return [value]
        return list(self.split("Split", len(sizes), value, ints(*sizes), axis=0))

    def join(self, values: Sequence[ir.Value]) -> ir.Value:
        """The values one after another along axis 0."""
        return values[0] if len(values) == 1 else self.op("Concat", *values, axis=0)


def ints(*values: int) -> np.ndarray:
    """An int64 vector."""
    return np.array(values, dtype=np.int64)


def u8(value: int) -> np.ndarray:
    """A uint8 scalar."""
    return np.array(value, dtype=np.uint8)
