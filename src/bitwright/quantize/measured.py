"""The loss that is there: the divergence with one channel rounded and everything else in float.

One pass over the rows, from the channel's layer on, for every channel and width: the score that
the others predict, and far too slow for the default path.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import Node

from bitwright.arith.grid import MAX_BITS
from bitwright.curvature.divergence import per_sample
from bitwright.network import Layer, Network, batches, join, run
from bitwright.quantize.actual_error import FIT_ROWS, errors_left
from bitwright.quantize.weights import WeightTable

#: rows looked at: a few, as each of them is passed once for every channel and width
MEASURED_ROWS = 64


def measured(
    network: Network,
    tables: Mapping[str, WeightTable],
    x: Tensor,
    *,
    kind: str = "kl",
    class_axis: int = 1,
    corrected: bool = True,
    progress: Callable[[float], None] | None = None,
) -> dict[str, np.ndarray]:
    """Mean divergence with each channel rounded to each width: layer name -> float64 [rows, 8].

    Costs 8 passes a channel from its layer on, over :data:`MEASURED_ROWS` rows.

    Args:
        network, tables: captured, and fitted to it.
        x: [n, ...] rows; the correction is fitted on the first `FIT_ROWS` of them.
        kind, class_axis: of the divergence.
        corrected: also correct the channel's own output; False measures plain rounding.
        progress: called with the finished fraction.
    """
    changes = errors_left(network, tables, x[:FIT_ROWS] if corrected else None)
    variants = [
        (la, partial(changed_rows, network, la, [c], changes[la.name][[c], i]))
        for la in network.layers
        for c in range(la.rows)
        for i in range(MAX_BITS)
    ]
    found = divergences(
        network, x[:MEASURED_ROWS], variants, kind=kind, class_axis=class_axis, progress=progress
    )
    parts = found.mean(1).split([la.rows * MAX_BITS for la in network.layers])
    return {
        la.name: part.reshape(-1, MAX_BITS).numpy()
        for la, part in zip(network.layers, parts, strict=True)
    }


def changed_rows(
    network: Network, layer: Layer, rows: Sequence[int], change: Tensor
) -> dict[str, Tensor]:
    """The layer's weight and bias under their names, rows changed by [len(rows), fan_in + 1]."""
    weight = network.matrix(layer).clone()
    weight[rows] += change[:, :-1]
    found = {layer.weight: weight.reshape(layer.shape)}
    if layer.bias:
        bias = network.tensor(layer.bias).clone()
        bias[rows] += change[:, -1]
        found[layer.bias] = bias
    return found


def divergences(
    network: Network,
    x: Tensor,
    variants: Sequence[tuple[Layer, Callable[[], dict[str, Tensor]]]],
    *,
    kind: str = "kl",
    class_axis: int = 1,
    chunk: int = 128,
    progress: Callable[[float], None] | None = None,
) -> Tensor:
    """Divergence from the float network of every variant and row, float64 [variants, n].

    What lies before the changed layer is computed once for all variants.

    Args:
        network: captured float network; x: [n, ...] rows.
        variants: a layer, and its tensors in place of the network's, made when they are needed.
        kind, class_axis: of the divergence.
        chunk: rows in a pass, all activations of which are kept.
        progress: called with the finished fraction.
    """
    position = {node.name: i for i, node in enumerate(network.module.graph.nodes)}
    found = torch.zeros(len(variants), len(x), dtype=torch.float64)
    done = 0
    with torch.no_grad():
        for rows, result in zip(batches(x, chunk), found.split(chunk, 1), strict=True):
            known: dict[str, Any] = {}
            reference = join(run(network.module, rows, partial(_record, known)))
            for i, (layer, tensors) in enumerate(variants):
                first = min(position[name] for name in layer.calls)
                before = {n: v for n, v in known.items() if position[n] < first}
                output = join(
                    run(network.module, rows, partial(_resume, before), constants=tensors())
                )
                result[i] = per_sample(reference, output, kind, class_axis)
                done += len(rows)
                if progress:
                    progress(done / (len(variants) * len(x)))
    return found


def _record(
    known: dict[str, Any], node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    known[node.name] = value = node.target(*args, **kwargs)  # type: ignore[operator]
    return value


def _resume(
    known: Mapping[str, Any], node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    if node.name in known:
        return known[node.name]
    return node.target(*args, **kwargs)  # type: ignore[operator]
