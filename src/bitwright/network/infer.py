"""Shapes of every value of a graph, found without computing one, on torch's meta device.

A program read from a file states no shapes that could be wrong: they follow from its input and its
parameters. A graph whose operations do not fit together fails here, before anything runs it, and
operations that could take memory or time without numbers (integers that multiply each other, a
tensor split into a million pieces) are refused.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from bitwright.network.ops import LAYERS, PYTHON, aten
from bitwright.network.run import run

#: pieces one operation may cut a tensor into, and axes that a tensor may have
_PIECES, _AXES = 4096, 16
_LARGEST = 2**63
#: axes of a layer's weight; convolutions have rows of as many
_RANKS = {"linear": 2, "conv1d": 3, "conv2d": 4}
#: operations that want one type, which the meta device does not mind
_ONE_TYPE = {
    *LAYERS,
    aten.batch_norm.default,
    aten.layer_norm.default,
    aten.group_norm.default,
    aten.instance_norm.default,
    aten.rms_norm.default,
    aten.prelu.default,
    aten.matmul.default,
    aten.bmm.default,
}


def infer(module: GraphModule, input_shape: tuple[int, ...]) -> None:
    """Note in each node's `meta` the `row_shape` (batch axis left out) and whether it `is_float`.

    The input's `is_float` is known beforehand; of floats it has the type that the parameters have.

    Raises:
        ValueError: an operation that is refused.
        RuntimeError: torch's word on operations that do not fit, of any exception type.
    """
    tensors = dict(module.named_parameters()) | dict(module.named_buffers())
    floats = [t.dtype for t in tensors.values() if t.is_floating_point()]
    source = next(n for n in module.graph.nodes if n.op == "placeholder")
    dtype = (floats or [torch.float32])[0] if source.meta["is_float"] else torch.int64
    source.meta["row_shape"] = tuple(input_shape)

    def note(node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        _check(node, args, kwargs)
        value = node.target(*args, **kwargs)  # type: ignore[operator]
        if isinstance(value, Tensor):
            node.meta["row_shape"] = tuple(value.shape[1:])
            node.meta["is_float"] = value.is_floating_point()
            if value.ndim > _AXES:
                raise ValueError(f"{node.name} has {value.ndim} axes")
        elif isinstance(value, int | float) and abs(value) >= _LARGEST:
            raise ValueError(f"{node.name} is a number without bounds")
        return value

    x = torch.empty(2, *input_shape, dtype=dtype, device="meta")
    with torch.no_grad():
        run(module, x, note, constants={name: t.to("meta") for name, t in tensors.items()})


def _check(node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    if node.target in _ONE_TYPE and len({a.dtype for a in args if isinstance(a, Tensor)}) > 1:
        raise ValueError(f"{node.name} mixes types of numbers")
    if node.target in LAYERS:
        x, weight = args[:2]
        rank = _RANKS[LAYERS[node.target]]
        if weight.ndim != rank or (rank > 2 and x.ndim != rank):
            raise ValueError(f"{node.name} has {weight.ndim} axes of weights and {x.ndim} of input")
    elif node.target is operator.getitem:
        container, index = args
        if not isinstance(container, tuple | list) or not isinstance(index, int):
            raise ValueError(f"{node.name} takes an item of a {type(container).__name__}")
    elif node.target in PYTHON:
        if not all(isinstance(a, int | float | Tensor) for a in args) or kwargs:
            raise ValueError(f"{node.name} computes with something else than numbers")
    elif node.target in (aten.split.Tensor, aten.unbind.int):
        x, *rest = args
        size, axis = (rest[0], rest[1:]) if node.target is aten.split.Tensor else (1, rest)
        axis = axis[0] if axis else kwargs.get("dim", 0)
        if x.shape[axis] > _PIECES * size:
            raise ValueError(f"{node.name} cuts {x.shape[axis]} numbers into pieces of {size}")
    elif node.target is aten.chunk.default and args[1] > _PIECES:
        raise ValueError(f"{node.name} cuts a tensor into {args[1]} pieces")
