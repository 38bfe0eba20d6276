"""Rounding by error feedback: later weights make up for what rounding the earlier ones did.

Layers are rounded in order, each for the inputs x that the rounded ones before it give, and towards
the float network's output there (x₀ its inputs, W its weights):

    min_Q E‖W x₀ − Q x‖²  =  min_Q tr (Q − W*) H (Q − W*)ᵀ + const ,
    W* = W + W C (H + λI)⁻¹ ,   H = cov(x, x) ,   C = cov(x₀ − x, x) ,

so that what earlier layers got wrong is made up for before anything is rounded (Qronos, Zhang et
al., arXiv 2505.11695, in closed form). H of few rows is uncertain: λ is the one whose rounding for
every second piece of the rows leaves the least error on the other pieces. W* is rounded column by
column and improved by descent (:mod:`bitwright.arith.feedback`). Moments are centred and errors
judged with the best gain, as :mod:`~bitwright.quantize.correct` follows. Each row takes the scale,
of a few around its table's, that leaves the least error. docs/decisions/0011-error-feedback.md has
what each of these is worth, and what is worth nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import Node

from bitwright.arith.feedback import Levels, damped, descend, round_columns
from bitwright.arith.grid import MAX_BITS, Grid, round_scale
from bitwright.network import Layer, Network
from bitwright.network.ops import is_lookup
from bitwright.quantize.activations import EdgeGrid, fake_quantize
from bitwright.quantize.actual_error import table_errors
from bitwright.quantize.correct import GAINS, along, fit_affine
from bitwright.quantize.lockstep import Both, operate, run_both
from bitwright.quantize.moments import Moments, Sums, float_moments
from bitwright.quantize.weights import (
    QuantizedLayer,
    WeightTable,
    channel_axis,
    round_to_nearest,
)

#: λ as a share of H's mean diagonal: tried on halves of the rows, and where there are no halves
DAMPINGS, DAMPING = (0.03, 0.1, 0.3, 1.0, 3.0), 0.1
#: scales tried, as multiples of the table's; the first one wins ties
SCALES = (1.0, 0.6, 0.7, 0.8, 0.9, 1.1, 1.2, 1.35, 1.5)
#: rows the moments are taken from
FEEDBACK_ROWS = 512
#: width that λ is chosen at, where all widths are looked at
_TYPICAL = 4


def round_with_feedback(
    network: Network,
    tables: Mapping[str, WeightTable],
    bits: Mapping[str, np.ndarray],
    x: Tensor,
    edges: Mapping[int, EdgeGrid] | None = None,
    *,
    progress: Callable[[float], None] | None = None,
) -> dict[str, QuantizedLayer]:
    """Every layer rounded by error feedback on grids of the plan's widths, and corrected.

    Rows of an embedding are not summed, so that nothing can make up for a row's error: they are
    rounded to nearest. A layer used several times is rounded for the float network's inputs of all
    its uses. Costs a pass of the float and of the quantized network, side by side, and
    fan-in³ + positions · fan-in² of each layer; memory is bounded
    (:mod:`bitwright.quantize.lockstep`).

    Args:
        network: captured float network.
        tables: from :func:`~bitwright.quantize.weight_tables`.
        bits: layer name -> int64 [rows], 1 to 8.
        x: [n, ...] rows; :data:`FEEDBACK_ROWS` are plenty.
        edges: grids of the activations; none for float ones.
        progress: called with the finished fraction.
    """
    by_call = {name: layer for layer in network.layers for name in layer.calls}
    group, grids = {e.name: e.group for e in network.edges}, edges or {}
    several = {la.name: la for la in network.layers if len(la.calls) > 1 and la.kind != "embedding"}
    shared = float_moments(network, x, several) if several else {}
    found: dict[str, QuantizedLayer] = {}
    chunks = 0

    def enter(node: Node, value: Both) -> Any:
        nonlocal chunks
        chunks = len(value.floats)
        return edge(node, value)

    def edge(node: Node, value: Any) -> Any:
        grid = grids.get(group.get(node.name, -1))
        return value if grid is None else value.map(lambda v: fake_quantize(v, grid))

    def call(node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        layer = by_call.get(node.name)
        if layer is None:
            return edge(node, operate(node, args, kwargs))
        seen = args[1] if is_lookup(node) else args[0]
        if not isinstance(seen, Both):  # made of parameters alone
            seen = Both([seen] * chunks, [seen] * chunks)
        if is_lookup(node):
            if layer.name not in found:
                found[layer.name] = _unfitted(network, tables, bits, shared, layer)
            table = found[layer.name].matrix()
            pairs = zip(seen.floats, seen.rounded, strict=True)
            both = [(node.target(args[0], f), node.target(table, r)) for f, r in pairs]  # type: ignore[operator]
            return edge(node, Both(*map(list, zip(*both, strict=True))))
        rest = args[3:]

        def rounded(stored: QuantizedLayer, bias: Tensor | None) -> list[Tensor]:
            weight = stored.matrix().reshape(layer.shape)
            return [node.target(r, weight, bias, *rest, **kwargs) for r in seen.rounded]  # type: ignore[operator]

        target = [node.target(f, *args[1:], **kwargs) for f in seen.floats]  # type: ignore[operator]
        if layer.name in found:
            return edge(node, Both(target, rounded(found[layer.name], found[layer.name].bias)))
        moments = shared.get(layer.name) or _moments(layer, node, seen)
        stored = round_layer(network, layer, tables[layer.name], bits[layer.name], moments)
        value, axis = rounded(stored, None), channel_axis(layer)
        if len(layer.calls) == 1:
            stored, gain = fit_affine(layer, stored, value, target)
            value = [v.mul_(along(gain, v, axis)) for v in value]
        found[layer.name] = stored
        if progress:
            progress(len(found) / len(network.layers))
        return edge(node, Both(target, [v.add_(along(stored.bias, v, axis)) for v in value]))

    with torch.no_grad():
        run_both(network, x, call, enter)
    return found


def round_by_moments(
    network: Network,
    tables: Mapping[str, WeightTable],
    bits: Mapping[str, np.ndarray],
    moments: Mapping[str, Moments],
) -> dict[str, QuantizedLayer]:
    """The same for given moments, of the float network's inputs say: no pass at all.

    Args:
        network, tables, bits: as for :func:`round_with_feedback`.
        moments: from :func:`~bitwright.quantize.moments.float_moments`, for any number of plans.
    """
    return {la.name: _unfitted(network, tables, bits, moments, la) for la in network.layers}


def _unfitted(
    network: Network,
    tables: Mapping[str, WeightTable],
    bits: Mapping[str, np.ndarray],
    moments: Mapping[str, Moments],
    layer: Layer,
) -> QuantizedLayer:
    """A layer rounded for given moments; an embedding to nearest."""
    table, widths = tables[layer.name], bits[layer.name]
    if layer.kind == "embedding":
        return round_to_nearest(network, layer, table, widths)
    return round_layer(network, layer, table, widths, moments[layer.name])


def errors_left(
    network: Network,
    tables: Mapping[str, WeightTable],
    moments: Mapping[str, Moments],
    seen: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """What rounding changes in every channel at every width: layer name -> [rows, 8, fan_in + 1].

    Float32, the last place the bias: as :func:`bitwright.quantize.actual_error.errors_left`, for
    rounding by error feedback. Arguments as for :func:`round_by_moments`; `seen` as there.
    """
    found = {}
    for la in network.layers:
        if la.kind == "embedding":
            found[la.name] = table_errors(network, la, tables[la.name], (seen or {}).get(la.name))
            continue
        changes = []
        table, known = tables[la.name], moments[la.name]
        damping = best_damping(network, la, table, np.full(la.rows, _TYPICAL), known)
        for width in range(1, MAX_BITS + 1):
            stored = round_layer(network, la, table, np.full(la.rows, width), known, damping)
            weights = stored.matrix() - network.matrix(la)
            offset = stored.bias - network.tensor(la.bias)
            changes.append(torch.cat([weights, offset[:, None]], 1))
        found[la.name] = torch.stack(changes, 1)
    return found


def round_layer(
    network: Network,
    layer: Layer,
    table: WeightTable,
    bits: np.ndarray,
    moments: Moments,
    damping: float | None = None,
) -> QuantizedLayer:
    """One layer rounded, and corrected, for its inputs' moments.

    Args:
        network: captured float network; layer: of it; table: its grids.
        bits: int64 [rows].
        moments: of its inputs.
        damping: λ as a share of H's mean diagonal; None for the best of :data:`DAMPINGS`.
    """
    if damping is None:
        damping = best_damping(network, layer, table, bits, moments)
    grid = table.grid(torch.as_tensor(bits, dtype=torch.int64))
    weight, scales, zero, top, own = _grouped(network, layer, grid)
    target = _toward_float(weight, moments, damping)
    codes, scales = fed_back(target, moments.gram, scales, zero, top, damping, own)
    rounded = scales[..., None] * Levels(scales, zero / 2, top, own).steps(codes)
    before, after = (
        w @ m[..., None] for w, m in ((weight, moments.floats), (rounded, moments.mean))
    )
    return QuantizedLayer(
        codes.to(torch.uint8).reshape(layer.rows, layer.fan_in),
        replace(grid, scale=scales.reshape(-1)),
        network.tensor(layer.bias) + (before - after).reshape(-1).float(),
    )


def best_damping(
    network: Network, layer: Layer, table: WeightTable, bits: np.ndarray, moments: Moments
) -> float:
    """Of :data:`DAMPINGS` the one that rounds best for rows it has not seen; arguments as above.

    Codes for the first half of the rows (on the table's scales, without descent) are judged on the
    second: `E‖W x₀ − a Q x‖²` with each row's best gain a, summed over rows.
    """
    if moments.halves is None:
        return DAMPING
    seen, unseen = moments.halves
    grid = table.grid(torch.as_tensor(bits, dtype=torch.int64))
    weight, scales, zero, top, own = _grouped(network, layer, grid)
    wanted = weight @ (unseen.gram + unseen.drift)
    kept = []
    for damping in DAMPINGS:
        target = _toward_float(weight, seen, damping)
        codes = round_columns(target, seen.gram, scales, zero, top, damping, own)
        level = Levels(scales, zero / 2, top, own).steps(codes)
        size = ((level @ unseen.gram) * level).sum(2).clamp(min=1e-300)
        common = (wanted * level).sum(2).clamp(min=0)
        kept.append(float((common.square() / size).sum()))
    return DAMPINGS[int(np.argmax(kept))]


def _grouped(
    network: Network, layer: Layer, grid: Grid
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """Weights float64 [G, r, K]; scales, zero points, largest codes [G, r]; coordinates."""
    weight = network.matrix(layer).double().reshape(layer.groups, -1, layer.fan_in)
    scale, zero, top = (
        t.reshape(layer.groups, -1) for t in (grid.scale, grid.zero, 2**grid.bits - 1)
    )
    own = grid.coordinates
    return weight, scale, zero, top, own if own is None else own.unflatten(0, scale.shape)


def fed_back(
    weight: Tensor,
    gram: Tensor,
    scale: Tensor,
    zero: Tensor,
    top: Tensor,
    damping: float,
    coordinates: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Codes [G, r, K] and scales float32 [G, r] with the least error of all :data:`SCALES`.

    Rounding to nearest is one more candidate: greedy feedback now and then does worse. Errors are
    compared, and the scale is left, at the best gain: `wᵀHw − (qᵀHw)² / qᵀHq`.

    Args:
        weight: float64 [G, r, K]; gram: float64 [G, K, K].
        scale, zero, top, coordinates: of every row, as for
            :func:`~bitwright.arith.feedback.round_columns`.
        damping: λ as a share of H's mean diagonal.
    """
    rows, tried = weight.shape[1], len(SCALES) + 1
    scales = torch.cat([round_scale(scale * f) for f in (*SCALES, 1.0)], 1)
    repeated, zeros, tops = (t.repeat(1, tried, *[1] * (t.ndim - 2)) for t in (weight, zero, top))
    owns = None if coordinates is None else coordinates.repeat(1, tried, 1)
    some = slice(0, -rows)
    codes = round_columns(
        repeated[:, some], gram, scales[:, some], zeros[:, some], tops[:, some], damping,
        None if owns is None else owns[:, some],
    )  # fmt: skip
    plain = Levels(scale.double(), zero.double() / 2, top.double(), coordinates)
    codes = torch.cat([codes, plain.nearest(weight)], 1)
    levels = Levels(scales, zeros / 2, tops, owns).steps(codes)
    kept, best_scale = _best_gain(levels, scales, repeated, gram)
    best = kept.unflatten(1, (tried, rows)).argmax(1, keepdim=True)

    def chosen(values: Tensor) -> Tensor:
        values = values.unflatten(1, (tried, rows))
        at = best.reshape(*best.shape, *[1] * (values.ndim - 3))
        return values.gather(1, at.expand(-1, 1, *values.shape[2:]))[:, 0]

    codes, scale, kept = chosen(codes), chosen(best_scale), chosen(kept)
    better = descend(
        codes, weight, damped(gram, damping), scale, zero, top, coordinates=coordinates
    )
    now, refitted = _best_gain(plain.steps(better), scale, weight, gram)
    gains = now > kept
    return torch.where(gains[..., None], better, codes), torch.where(gains, refitted, scale)


def _best_gain(level: Tensor, scale: Tensor, weight: Tensor, gram: Tensor) -> tuple[Tensor, Tensor]:
    """What the best gain leaves out of `wᵀHw`, and the scale with it, of every row: [G, r].

    Args:
        level: in steps of the scale, [G, r, K].
        scale, weight, gram: as for :func:`fed_back`.
    """
    felt = level @ gram
    common, size = ((felt * other).sum(2) for other in (weight, level))
    size = size.clamp(min=1e-300)
    gain = (common / size / scale).clamp(*GAINS)
    fitted = round_scale(scale * torch.where(common > 0, gain, 1.0).float())
    return common.clamp(min=0).square() / size, fitted


def _moments(layer: Layer, node: Node, x: Both) -> Moments:
    sums = Sums(layer)
    for floats, inputs in zip(x.floats, x.rounded, strict=True):
        sums.add(node, inputs, floats)
    return sums.moments()


def _toward_float(weight: Tensor, moments: Moments, damping: float) -> Tensor:
    """W* of the module's equation, [G, r, K]."""
    if not moments.drift.any():
        return weight
    change = weight @ moments.drift
    return weight + torch.linalg.solve(damped(moments.gram, damping), change.mT).mT
