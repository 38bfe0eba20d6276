"""Execution of a captured graph, one operation at a time, with every operation replaceable.

Measuring, calibrating, correcting, fake quantization and the integer reference are all this loop
with another `call`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from bitwright.network.capture import attribute
from bitwright.network.modes import join

Call = Callable[[Node, tuple[Any, ...], dict[str, Any]], Any]


def default_call(node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run the node's own operation."""
    return node.target(*args, **kwargs)  # type: ignore[operator]


def run(
    module: GraphModule,
    x: Tensor,
    call: Call = default_call,
    *,
    enter: Callable[[Node, Tensor], Tensor] | None = None,
    constants: dict[str, Tensor] | None = None,
) -> Any:
    """The graph's output for the rows `x`: a tensor, or a tuple of the model's output leaves.

    Args:
        module: a captured graph.
        x: [n, ...] rows.
        call: replaces every `call_function`; receives the node and its evaluated arguments.
        enter: applied to the input tensor (fake quantization of the input edge, say).
        constants: tensors to use in place of the module's parameters of that name.
    """
    last_reader: dict[Node, Node] = {}
    for node in module.graph.nodes:
        for source in node.all_input_nodes:
            last_reader[source] = node
    dying: dict[Node, list[Node]] = {}
    for source, reader in last_reader.items():
        dying.setdefault(reader, []).append(source)
    values: dict[Node, Any] = {}
    for node in module.graph.nodes:
        if node.op == "placeholder":
            values[node] = x if enter is None else enter(node, x)
        elif node.op == "get_attr":
            found = None if constants is None else constants.get(node.target)
            values[node] = attribute(module, node.target) if found is None else found
        elif node.op == "output":
            result = torch.fx.map_arg(node.args[0], lambda n: values[n])
            return result[0] if isinstance(result, tuple) and len(result) == 1 else result
        else:
            args = torch.fx.map_arg(node.args, lambda n: values[n])
            kwargs = torch.fx.map_arg(node.kwargs, lambda n: values[n])
            values[node] = call(node, args, kwargs)
        for source in dying.get(node, ()):  # free what nobody reads again
            del values[source]
    raise RuntimeError("the graph has no output node")


def batches(x: Tensor, size: int) -> list[Tensor]:
    """`x` in pieces of at most `size` rows."""
    return list(x.split(size)) if len(x) else []


def outputs(
    module: GraphModule,
    x: Tensor,
    call: Call = default_call,
    *,
    chunk: int = 128,
    enter: Callable[[Node, Tensor], Tensor] | None = None,
    constants: dict[str, Tensor] | None = None,
) -> Tensor:
    """The graph's outputs for all rows, in chunks, without gradient: [n, ...].

    A tuple or dict of tensors is flattened and joined on axis 1, each one as [n, -1]. Rows travel
    to the module's device and outputs back to theirs. Arguments as for :func:`run`.
    """
    place = next((p.device for p in module.parameters()), x.device)
    with torch.no_grad():
        found = [
            join(run(module, b.to(place), call, enter=enter, constants=constants))
            for b in batches(x, chunk)
        ]
        return torch.cat([values.to(x.device) for values in found])
