"""A captured graph as plain JSON, and back, with nothing in it that could do more than compute.

Only operations of the tables in :mod:`bitwright.network.ops` can be stored or loaded: a program
read from a file can transform tensors, but not read, write, import or run anything else. Names are
checked as well, because torch.fx writes them into Python source that it executes.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node

from bitwright.errors import BitwrightError
from bitwright.network.ops import (
    CLIPS,
    ELEMENTWISE,
    INTEGER,
    LAYERS,
    PYTHON,
    UNSUPPORTED,
    VALUE_PRESERVING,
)

_ATEN = {
    str(op): op for op in [*LAYERS, *UNSUPPORTED, *VALUE_PRESERVING, *CLIPS, *INTEGER, *ELEMENTWISE]
}
_PYTHON = {f"py.{op.__name__}": op for op in PYTHON}
KNOWN: dict[str, Any] = {**_ATEN, **_PYTHON}
_NAMES = {op: name for name, op in KNOWN.items()}
_DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "int64": torch.int64,
    "int32": torch.int32,
    "bool": torch.bool,
}


def unstorable(module: GraphModule) -> list[str]:
    """Operations of the graph that a stored program may not contain."""
    return sorted(
        {
            str(n.target)
            for n in module.graph.nodes
            if n.op == "call_function" and n.target not in _NAMES
        }
    )


def to_json(module: GraphModule) -> list[list[Any]]:
    """One list a node: [name, kind, target, args, kwargs, row shape, is float]."""
    return [
        [
            n.name,
            n.op,
            _NAMES[n.target] if n.op == "call_function" else str(n.target),
            _encode(n.args),
            _encode(n.kwargs),
            list(n.meta.get("row_shape", ())),
            int(bool(n.meta.get("is_float", False))),
        ]
        for n in module.graph.nodes
    ]


def from_json(program: Any, parameters: dict[str, Tensor]) -> GraphModule:
    """The graph module of a stored program over `parameters`.

    Raises:
        BitwrightError: an operation that is not in the tables, a missing parameter or a malformed
            node.
    """
    root = nn.Module()
    graph, nodes = Graph(), dict[str, Node]()
    try:
        for name, value in parameters.items():
            _place(root, name, value)
        for name, op, target, args, kwargs, row_shape, is_float in program:
            made = _decode(args, nodes), _decode(kwargs, nodes)
            _check_names(name, target if op == "placeholder" else "", *made[1])
            if op == "call_function":
                if target not in KNOWN:
                    raise BitwrightError(f"the stored program calls {target!r}, not a known one")
                node = graph.create_node("call_function", KNOWN[target], *made, name=name)
            elif op == "placeholder":
                node = graph.create_node("placeholder", target, name=name)
            elif op == "get_attr":
                if target not in parameters:
                    raise BitwrightError(f"the stored program reads {target!r}, which is missing")
                node = graph.create_node("get_attr", target, name=name)
            elif op == "output":
                node = graph.create_node("output", "output", made[0], name="output")
            else:
                raise BitwrightError(f"the stored program has an unknown kind of node {op!r}")
            node.meta["row_shape"] = tuple(int(d) for d in row_shape)
            node.meta["is_float"] = bool(is_float)
            nodes[name] = node
        graph.lint()
        return GraphModule(root, graph)
    except BitwrightError:
        raise
    except Exception as error:
        raise BitwrightError(f"the stored program is damaged: {error}") from error


def _check_names(*names: Any) -> None:
    """Refuse names that are not plain: torch.fx would make code of them."""
    for name in names:
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_]*", name):
            raise BitwrightError(f"the stored program uses {name!r} as a name")


def _place(root: nn.Module, name: str, value: Tensor) -> None:
    *path, leaf = name.split(".")
    _check_names(*path, leaf)
    owner = root
    for part in path:
        if not hasattr(owner, part):
            owner.add_module(part, nn.Module())
        owner = getattr(owner, part)
    owner.register_parameter(
        leaf, nn.Parameter(value, requires_grad=False)
    ) if value.is_floating_point() else owner.register_buffer(leaf, value)


def _encode(value: Any) -> Any:
    if isinstance(value, Node):
        return {"n": value.name}
    if isinstance(value, torch.dtype):
        return {"d": str(value).removeprefix("torch.")}
    if isinstance(value, torch.device | torch.layout | torch.memory_format):
        return None
    if isinstance(value, slice):
        return {"s": [_encode(value.start), _encode(value.stop), _encode(value.step)]}
    if isinstance(value, dict):
        return {"m": {k: _encode(v) for k, v in value.items()}}
    if isinstance(value, list | tuple):
        return [_encode(v) for v in value]
    if isinstance(value, float) and value in (float("inf"), float("-inf")):
        return {"f": "inf" if value > 0 else "-inf"}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise BitwrightError(f"cannot store an argument of type {type(value).__name__}")


def _decode(value: Any, nodes: dict[str, Node]) -> Any:
    if isinstance(value, list):
        return tuple(_decode(v, nodes) for v in value)
    if isinstance(value, dict):
        ((kind, content),) = value.items()
        if kind == "n":
            return nodes[content]
        if kind == "d":
            return _DTYPES[content]
        if kind == "s":
            return slice(*(_decode(v, nodes) for v in content))
        if kind == "f":
            return float(content)
        if kind == "m":
            return {k: _decode(v, nodes) for k, v in content.items()}
        raise ValueError(f"unknown argument kind {kind!r}")
    return value
