"""The float and the rounded network side by side, with as many rows as memory holds.

Values of all rows are kept at once, those that are still to be read. Early layers of a network have
large images: few rows fit, and each of them has many positions. Later ones have room for more; the
further rows are then computed up to there, chunk by chunk.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_aggregate

from bitwright.network import Network, run

#: rows computed at once
CHUNK = 16
#: of all values kept, in both networks
LIMIT_BYTES = 1.5e9
#: fewest rows a layer is rounded for
_LEAST = 16


@dataclass(frozen=True)
class Both:
    """A value in the float and in the rounded network, of each chunk of rows."""

    floats: list[Any]
    rounded: list[Any]

    def map(self, act: Callable[[Any], Any]) -> Both:
        """`act` on the rounded network's values."""
        return Both(self.floats, [act(value) for value in self.rounded])


def operate(node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The node's own operation on every chunk, in both networks."""
    found: list[Both] = []
    map_aggregate((args, kwargs), lambda v: found.append(v) if isinstance(v, Both) else None)
    if not found:  # of parameters alone
        return node.target(*args, **kwargs)  # type: ignore[operator]

    def one(values: Callable[[Both], list[Any]], i: int) -> Any:
        some, named = map_aggregate(
            (args, kwargs), lambda v: values(v)[i] if isinstance(v, Both) else v
        )
        return node.target(*some, **named)  # type: ignore[operator]

    count = range(len(found[0].floats))
    return Both(
        [one(lambda v: v.floats, i) for i in count], [one(lambda v: v.rounded, i) for i in count]
    )


def run_both(
    network: Network,
    x: Tensor,
    call: Callable[[Node, tuple[Any, ...], dict[str, Any]], Any],
    enter: Callable[[Node, Both], Both],
    limit_bytes: float = LIMIT_BYTES,
) -> None:
    """`call` on every node once with all rows that fit, layers in order, and on parts for more.

    Args:
        network: captured float network.
        x: [n, ...] rows.
        call: receives a node and its arguments, :class:`Both` where they depend on the rows; it
            must do on later chunks what it did on the first ones.
        enter: applied to the input.
        limit_bytes: of all values kept, in both networks.
    """
    inputs = [rows for rows in x.split(CHUNK) if len(rows)]
    known: dict[str, Any] = {}
    start, have = 0, 0
    for stop, rows in stages(network, len(x), limit_bytes):
        count = len(inputs) if rows == len(x) else max(1, rows // CHUNK)
        for i in range(have, count if start else have):
            piece = Both(inputs[i : i + 1], inputs[i : i + 1])
            more = _advance(network, piece, call, enter, {}, 0, start)
            known = {name: _joined(known[name], v) if i else v for name, v in more.items()}
        known = {name: _first(value, count) for name, value in known.items()}
        have = count
        some = Both(inputs[:count], inputs[:count])
        known = _advance(network, some, call, enter, known, start, stop)
        start = stop


def stages(network: Network, rows: int, limit_bytes: float) -> list[tuple[int, int]]:
    """Where each stage ends among the graph's nodes, and its rows: at most `rows`.

    A stage begins at a layer with room for fewer rows, or for half as many again.
    """
    nodes = list(network.module.graph.nodes)
    calls = {name for layer in network.layers for name in layer.calls}
    fit = _fitting(network, rows, limit_bytes)
    at = [i for i, node in enumerate(nodes) if node.name in calls]
    room = [min(fit[i:j]) for i, j in zip([0, *at[1:]], [*at[1:], len(nodes)], strict=True)]
    found, current = [], room[0]
    for i, each in zip(at[1:], room[1:], strict=True):
        if each < current or each >= 1.5 * current:
            found.append((i, current))
            current = each
    return [*found, (len(nodes), current)]


def _fitting(network: Network, rows: int, limit_bytes: float) -> list[int]:
    """For each node, the rows whose values fit while it runs."""
    nodes = list(network.module.graph.nodes)
    last = {source: i for i, node in enumerate(nodes) for source in node.all_input_nodes}
    live: dict[Node, int] = {}
    found = []
    for i, node in enumerate(nodes):
        if node.op in ("placeholder", "call_function"):
            live[node] = math.prod(node.meta.get("row_shape", (0,)))
        per_row = 8 * max(1, sum(live.values()))  # float32, twice
        found.append(max(min(_LEAST, rows), min(rows, int(limit_bytes // per_row))))
        live = {n: size for n, size in live.items() if last.get(n, -1) > i}
    return found


def _advance(
    network: Network,
    x: Both,
    call: Callable[[Node, tuple[Any, ...], dict[str, Any]], Any],
    enter: Callable[[Node, Both], Both],
    known: dict[str, Any],
    start: int,
    stop: int,
) -> dict[str, Any]:
    """Run the nodes from `start` to before `stop`; what later ones read of them and of `known`."""
    nodes = list(network.module.graph.nodes)
    position = {node.name: i for i, node in enumerate(nodes)}
    later = {source.name for node in nodes[stop:] for source in node.all_input_nodes}
    kept: dict[str, Any] = {}

    def some(node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        at = position[node.name]
        if at >= stop:
            return None
        value = known.pop(node.name, None) if at < start else call(node, args, kwargs)
        if node.name in later:
            kept[node.name] = value
        return value

    entered: Any = x
    run(network.module, entered, some, enter=enter)  # type: ignore[arg-type]
    return kept


def _joined(a: Any, b: Any) -> Any:
    if isinstance(a, Both):
        return Both(a.floats + b.floats, a.rounded + b.rounded)
    return a


def _first(value: Any, count: int) -> Any:
    if isinstance(value, Both):
        return Both(value.floats[:count], value.rounded[:count])
    return value
