"""A captured graph as plain JSON, and back, with nothing in it that could do more than compute.

Only operations of the tables in :mod:`bitwright.network.ops` can be stored or loaded: a program
read from a file can transform tensors, but not read, write, import or run anything else. Names are
checked as well, because torch.fx writes them into Python source that it executes.
"""

from __future__ import annotations

import builtins
import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node

from bitwright.errors import BitwrightError
from bitwright.network.infer import infer
from bitwright.network.ops import (
    CLIPS,
    ELEMENTWISE,
    INTEGER,
    LAYERS,
    PYTHON,
    TABLES,
    UNSUPPORTED,
    VALUE_PRESERVING,
)

_ATEN = {
    str(op): op
    for group in (LAYERS, TABLES, UNSUPPORTED, VALUE_PRESERVING, CLIPS, INTEGER, ELEMENTWISE)
    for op in group
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
    """One list a node: `[name, operation, args]`, with keyword arguments behind if there are any.

    The input is `[name, "input", is float]`. Arguments name a value by how many nodes ago it was
    computed, `{"n": -1}`, and a parameter by its name, `{"p": "a.weight"}`; the same block at
    another depth is the same text. A name is 0 where it is the operation's with a running number,
    `conv2d_3`, as the exporter's are. Shapes are not part of it: they follow.
    """
    listed = [n for n in module.graph.nodes if n.op != "get_attr"]
    place = {node: i for i, node in enumerate(listed)}
    usual = _usual_names()
    found: list[list[Any]] = []
    for i, node in enumerate(listed):
        if node.op == "placeholder":
            found.append([node.name, "input", int(bool(node.meta["is_float"]))])
            continue
        operation = _NAMES[node.target] if node.op == "call_function" else "output"
        back = {source: place[source] - i for source in node.all_input_nodes if source in place}
        parts = [_encode(value, back) for value in (node.args, node.kwargs)]
        name = 0 if usual(operation) == node.name else node.name
        found.append([name, operation, *(parts if node.kwargs else parts[:1])])
    return found


def _usual_names() -> Callable[[str], str]:
    """What the next node of an operation is usually called: `relu`, `relu_1`; but `sum_1` first."""
    count: Counter[str] = Counter()

    def name(operation: str) -> str:
        stem = operation.split(".")[1] if "." in operation else operation
        number = count[stem] + hasattr(builtins, stem)  # torch.fx leaves Python its own names
        count[stem] += 1
        return f"{stem}_{number}" if number else stem

    return name


def from_json(
    program: Any, parameters: dict[str, Tensor], input_shape: tuple[int, ...]
) -> GraphModule:
    """The graph module of a stored program over `parameters`, the shapes of its values inferred.

    Raises:
        BitwrightError: an operation that is not in the tables, a missing parameter, a malformed
            node, or operations that do not fit together or the parameters.
    """
    root = nn.Module()
    try:
        for name, value in parameters.items():
            _place(root, name, value)
        graph = _graph(program, parameters)
        module = GraphModule(root, graph)
        infer(module, input_shape)
        return module
    except BitwrightError:
        raise
    except Exception as error:
        raise BitwrightError(f"the stored program is damaged: {_short(error)}") from error


def _short(error: Exception) -> str:
    """The first line of an exception, without torch's stack."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__} {lines[0][:200] if lines else ''}".strip()


def _graph(program: Any, parameters: dict[str, Tensor]) -> Graph:
    graph, nodes, attributes = Graph(), list[Node](), dict[str, Node]()
    usual = _usual_names()
    names = []
    for name, operation, *_ in program:
        default = name if operation == "input" else usual(operation)
        names.append(default if name == 0 else name)
    taken = set(names)

    def attribute(name: Any) -> Node:
        if name not in parameters:
            raise BitwrightError(f"the stored program reads {name!r:.80}, which is missing")
        if name not in attributes:
            label = name.replace(".", "_")
            while label in taken:  # a node that is listed keeps its name
                label += "_"
            attributes[name] = graph.create_node("get_attr", name, name=label)
        return attributes[name]

    for name, (_, operation, *rest) in zip(names, program, strict=True):
        _check_names(name)
        if operation == "input":
            node = graph.create_node("placeholder", name, name=name)
            node.meta["is_float"] = bool(rest[0])
        else:
            args, kwargs = (_decode(value, nodes, attribute) for value in (*rest, {"m": {}})[:2])
            _check_names(*kwargs)
            if operation == "output":
                node = graph.create_node("output", "output", args, name=name)
            elif operation in KNOWN:
                node = graph.create_node("call_function", KNOWN[operation], args, kwargs, name)
            else:
                raise BitwrightError(f"the stored program calls {operation!r:.80}, not a known one")
        if node.name != name:
            raise BitwrightError(f"the stored program uses {name!r:.80} as a name")
        nodes.append(node)
    graph.lint()
    return graph


def _check_names(*names: Any) -> None:
    """Refuse names that are not plain: torch.fx would make code of them."""
    for name in names:
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_]*", name):
            raise BitwrightError(f"the stored program uses {name!r:.80} as a name")


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


def _encode(value: Any, back: Mapping[Node, int]) -> Any:
    if isinstance(value, Node):
        return {"n": back[value]} if value in back else {"p": value.target}
    if isinstance(value, torch.dtype):
        return {"d": str(value).removeprefix("torch.")}
    if isinstance(value, torch.device | torch.layout | torch.memory_format):
        return None
    if isinstance(value, slice):
        return {"s": [_encode(v, back) for v in (value.start, value.stop, value.step)]}
    if isinstance(value, dict):
        return {"m": {k: _encode(v, back) for k, v in value.items()}}
    if isinstance(value, list | tuple):
        return [_encode(v, back) for v in value]
    if isinstance(value, float) and value in (float("inf"), float("-inf")):
        return {"f": "inf" if value > 0 else "-inf"}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise BitwrightError(f"cannot store an argument of type {type(value).__name__}")


def _decode(value: Any, nodes: list[Node], attribute: Callable[[Any], Node]) -> Any:
    if isinstance(value, list):
        return tuple(_decode(v, nodes, attribute) for v in value)
    if isinstance(value, dict):
        ((kind, content),) = value.items()
        if kind == "n":
            if not -len(nodes) <= content < 0:
                raise ValueError(f"a value computed {-content} nodes ago, of {len(nodes)}")
            return nodes[content]
        if kind == "p":
            return attribute(content)
        if kind == "d":
            return _DTYPES[content]
        if kind == "s":
            return slice(*(_decode(v, nodes, attribute) for v in content))
        if kind == "f":
            return float(content)
        if kind == "m":
            return {k: _decode(v, nodes, attribute) for k, v in content.items()}
        raise ValueError(f"unknown argument kind {kind!r}")
    return value
