"""The loss a channel's own rounding error makes, after the affine correction has taken its part.

HAWQ-V2's score (arXiv 1911.03852, eq. 2.11) spreads the rounding error evenly over all directions;
here it stays where it is: `½ δᵀ G_c δ` with the channel's own Gauss-Newton block G_c. What the
correction of the channel's output leaves of δ is

    δ = a · Q_b(w) − w  in the weights,   β = E[z] − a E[z_b]  in the bias,

with the outputs z = ⟨w, x(p)⟩ and z_b = ⟨Q_b(w), x(p)⟩ and the gain `a = cov(z, z_b)/var(z_b)`, as
:mod:`~bitwright.quantize.correct` fits it: the part of z on span{1, z_b} is gone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from bitwright.arith.grid import MAX_BITS, dequantize, quantize
from bitwright.curvature import Estimate
from bitwright.curvature.forms import quadratic_forms
from bitwright.network import Layer, Network, batches, run
from bitwright.quantize.correct import GAINS
from bitwright.quantize.tokens import seen_rows
from bitwright.quantize.weights import WeightTable, channel_axis

#: rows the correction's part is fitted on
FIT_ROWS = 256


def actual_error(
    network: Network,
    tables: Mapping[str, WeightTable],
    x: Tensor,
    *,
    kind: str = "kl",
    class_axis: int = 1,
    corrected: bool = True,
    seed: int = 0,
    progress: Callable[[float], None] | None = None,
) -> dict[str, Estimate]:
    """`δᵀ G_c δ` of every channel at every width, twice the predicted loss.

    Costs a forward pass of :data:`FIT_ROWS` rows with nine times the multiplications, and about
    twice what the traces cost.

    Args:
        network, tables: captured, and fitted to it; x: [n, ...] rows.
        kind, class_axis: of the divergence; seed: of what the passes leave to chance.
        corrected: take out what the correction does; False prices plain rounding.
        progress: called with the finished fraction.

    Returns:
        Layer name -> :class:`Estimate` with arrays [rows, 8].
    """
    seen = seen_rows(network, x)
    changes = errors_left(network, tables, x[:FIT_ROWS] if corrected else None, seen=seen)
    return quadratic_forms(
        network,
        x,
        changes,
        rows=seen,
        kind=kind,
        class_axis=class_axis,
        seed=seed,
        progress=progress,
    )


def rounded(
    network: Network, layer: Layer, table: WeightTable, rows: Tensor | None = None
) -> Tensor:
    """The layer's weights at all eight widths, float32 [8, rows, fan_in]; or some rows of it."""
    some = torch.arange(layer.rows) if rows is None else rows
    matrix = network.matrix(layer)[some]
    widths = (torch.full_like(some, b) for b in range(1, MAX_BITS + 1))
    grids = (table.grid(bits, some) for bits in widths)
    return torch.stack([dequantize(quantize(matrix, grid), grid) for grid in grids])


def table_errors(
    network: Network, layer: Layer, table: WeightTable, rows: Tensor | None = None
) -> Tensor:
    """What plain rounding changes in an embedding's rows, float32 [rows, 8, fan_in + 1]."""
    matrix = network.matrix(layer)
    change = rounded(network, layer, table, rows) - (matrix if rows is None else matrix[rows])
    return torch.nn.functional.pad(change, (0, 1)).transpose(0, 1).contiguous()


def errors_left(
    network: Network,
    tables: Mapping[str, WeightTable],
    x: Tensor | None,
    *,
    seen: Mapping[str, Tensor] | None = None,
    chunk: int = 64,
) -> dict[str, Tensor]:
    """What rounding changes in every channel: layer name -> float32 [rows, 8, fan_in + 1].

    The last place is the bias. A layer used several times is not corrected, nor an embedding.

    Args:
        network, tables: captured, and fitted to it.
        x: rows to fit the correction on; None leaves the error uncorrected.
        seen: of embeddings, the rows wanted, int64; None for all of them.
        chunk: rows in a pass.
    """
    matrices = [la for la in network.layers if la.kind != "embedding"]
    weights = {la.name: rounded(network, la, tables[la.name]) for la in matrices}
    fits = {} if x is None else _affine(network, weights, x, chunk)
    found = {}
    for layer in network.layers:
        if layer.kind == "embedding":
            rows = (seen or {}).get(layer.name)
            found[layer.name] = table_errors(network, layer, tables[layer.name], rows)
            continue
        q, w = weights[layer.name], network.matrix(layer)
        gain, offset = fits.get(layer.name, (torch.ones(q.shape[:2]), torch.zeros(q.shape[:2])))
        change = gain[..., None] * q - w
        found[layer.name] = torch.cat([change, offset[..., None]], 2).transpose(0, 1).contiguous()
    return found


def _affine(
    network: Network, weights: Mapping[str, Tensor], x: Tensor, chunk: int
) -> dict[str, tuple[Tensor, Tensor]]:
    """Gain and offset of every channel at every width, float32 [8, rows] each."""
    layers = {la.calls[0]: la for la in network.layers if len(la.calls) == 1 and la.name in weights}
    sums = {name: torch.zeros(5, MAX_BITS, la.rows, dtype=torch.float64)
            for name, la in layers.items()}  # fmt: skip
    counts = dict.fromkeys(layers, 0)

    def call(node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        layer = layers.get(node.name)
        if layer is not None:
            axis = channel_axis(layer)

            def channels(matrix: Tensor) -> Tensor:
                w = matrix.reshape(layer.shape)
                value = node.target(args[0], w, None, *args[3:], **kwargs)  # type: ignore[operator]
                return value.movedim(axis, 0).flatten(1)

            z = channels(network.matrix(layer))
            counts[node.name] += z.shape[1]
            for i, matrix in enumerate(weights[layer.name]):
                q = channels(matrix)
                parts = (z, q, z.square(), q.square(), z * q)
                sums[node.name][:, i] += torch.stack([p.sum(1).double() for p in parts])
        return node.target(*args, **kwargs)  # type: ignore[operator]

    with torch.no_grad():
        for rows in batches(x, chunk):
            run(network.module, rows, call)
    found = {}
    for name, layer in layers.items():
        z, q, _, qq, zq = sums[name] / counts[name]
        variance = (qq - q.square()).clamp(min=0)
        gain = torch.where(variance > 1e-12, (zq - z * q) / variance.clamp(min=1e-12), 1.0)
        gain = gain.clamp(*GAINS)
        found[layer.name] = gain.float(), (z - gain * q).float()
    return found
