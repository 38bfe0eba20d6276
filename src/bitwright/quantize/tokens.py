"""How often an embedding's rows are looked up: what its calibration can have seen of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import Node

from bitwright.network import Network, batches, run
from bitwright.network.network import varying


def token_counts(network: Network, x: Tensor, *, chunk: int = 256) -> dict[str, np.ndarray]:
    """In how many of the rows `x` each token occurs: embedding -> int64 [tokens].

    Only what the lookups' indices are computed from is run.

    Args:
        network: captured network; x: [n, ...] rows, `chunk` at a time.
    """
    tables = {call: la for la in network.layers if la.kind == "embedding" for call in la.calls}
    counts = {la.name: torch.zeros(la.rows, dtype=torch.int64) for la in tables.values()}
    needed: set[Node] = set()
    varies = varying(network.module)
    for node in reversed(network.module.graph.nodes):
        if node.name in tables and isinstance(node.args[1], Node):
            needed.add(node.args[1])
        if node in needed:
            needed.update(node.all_input_nodes)

    def call(node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if node.name in tables:
            _note(met[tables[node.name].name], args[1], node.args[1] in varies)
        return node.target(*args, **kwargs) if node in needed else None  # type: ignore[operator]

    for rows in batches(x, chunk) if tables else []:
        met = {la.name: torch.zeros(len(rows), la.rows, dtype=torch.bool) for la in tables.values()}
        with torch.no_grad():
            run(network.module, rows.to(network.device), call)
        for name, seen in met.items():
            counts[name] += seen.sum(0)
    return {name: count.numpy() for name, count in counts.items()}


def seen_rows(network: Network, x: Tensor) -> dict[str, Tensor]:
    """The tokens that occur in `x`: embedding -> int64, ascending."""
    return {
        name: torch.from_numpy(np.flatnonzero(count))
        for name, count in token_counts(network, x).items()
    }


def _note(met: Tensor, ids: Tensor, varies: bool) -> None:
    """Mark [n, tokens]: ids [n, …] or [n · …] of each row, or what every row looks up."""
    if varies:
        met.scatter_(1, ids.reshape(len(met), -1).cpu(), True)
    else:
        met[:, ids.unique().cpu()] = True
