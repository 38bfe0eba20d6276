"""Figures with a row for each layer, each a `<figure>`, or a sentence where there is no data.

Everything is drawn from the summary alone: the same summary gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

from bitwright.report import svg
from bitwright.report.summary import LayerRow, Summary
from bitwright.report.words import (
    NBSP,
    bytes_mark,
    decimal_bytes,
    divergence_unit,
    exact_bytes,
    number,
    widths_used,
)

#: layers with more channels are drawn without gaps between them
_MOST_CELLS = 96
#: a run narrower than this share of the row, in percent, gets no number
_LEAST_LABEL = 5.0


def figure(drawn: str, caption: str, legend: Sequence[tuple[str, str]] = (), axis: str = "") -> str:
    """A figure with a heading line, a legend of (class, words), and the name of its axis."""
    items = "".join(
        f'<li><span class="swatch {kind}"></span>{svg.text(words)}</li>' for kind, words in legend
    )
    keys = f'<ul class="legend">{items}</ul>' if items else ""
    foot = f'<p class="axis">{svg.text(axis)}</p>' if axis else ""
    return f"<figure><figcaption>{svg.text(caption)}</figcaption>{keys}{drawn}{foot}</figure>"


def absent(sentence: str) -> str:
    """What stands in the place of a figure without data."""
    return f'<p class="absent">{svg.text(sentence)}</p>'


def bits_picture(summary: Summary) -> str:
    """Layers × channels, coloured by width; a layer's channels are sorted, widest first."""
    layers = summary.layers
    if not any(row.bits for row in layers):
        return absent("No bits per channel are shown: no layer was quantized.")
    channels = sum(len(row.bits) for row in layers)
    used = sorted({b for row in layers for b in row.bits})
    return figure(
        svg.rows(
            "bits",
            "Bits of every channel, layer by layer",
            f"{channels:,} output channels in {len(layers):,} layers, in the order of the network. "
            "Each row is a layer; its channels are sorted from many bits to few. "
            + "; ".join(f"{row.name}: {widths_used(row)}" for row in layers[:8])
            + (f"; and {len(layers) - 8:,} more layers." if len(layers) > 8 else "."),
            [_bits_row(row) for row in layers],
        ),
        "Bits of every channel. Each row is a layer, each cell an output channel, sorted from many "
        "bits to few; on the right, the mean and the number of channels.",
        [(f"b{b}", f"{b} bit{'' if b == 1 else 's'}") for b in used],
    )


def _bits_row(row: LayerRow) -> svg.Row:
    n = len(row.bits)
    if not n:
        return svg.Row(row.name, svg.bar(0, 100, "kept"), "float", f"{row.name}: kept in float")
    found = [(b, row.bits.count(b)) for b in sorted(set(row.bits), reverse=True)]
    edges = [0, *accumulate(count for _, count in found)]
    cells, labels = [], []
    for (bits, _), (begin, end) in zip(found, pairwise(edges), strict=True):
        start, stop = 100 * begin / n, 100 * end / n
        cells.append(svg.bar(start, stop, f"b{bits}"))
        if stop - start >= _LEAST_LABEL:
            middle = svg.fixed((start + stop) / 2)
            labels.append(f'<text class="on b{bits}" x="{middle}%" y="12">{bits}</text>')
    if 1 < n <= _MOST_CELLS:
        # one dashed line draws all gaps between the cells
        cells.append(
            f'<svg width="100%" height="16" viewBox="0 0 {n} 1" preserveAspectRatio="none">'
            f'<path class="gaps" d="M.96 .5H{n - 0.5}"/></svg>'
        )
    # the palest width would be lost on the page without an outline
    cells.append(svg.bar(0, 100, "frame"))
    mean = sum(row.bits) / n
    value = f"{mean:.2f} · {n:,}{NBSP}ch"
    return svg.Row(row.name, "".join(cells + labels), value, f"{row.name}: {widths_used(row)}")


def sensitivity(summary: Summary) -> str:
    """Mean Hessian trace of each layer on a logarithmic axis, with both errors."""
    drawable = [row.trace for row in summary.layers if row.trace is not None and row.trace > 0]
    if not drawable:
        return absent("No sensitivity is shown: it was not measured, or is zero everywhere.")
    ends = [
        end
        for row in summary.layers
        if row.trace is not None and row.trace > 0
        for e in (row.stderr_probe or 0.0, row.stderr_data or 0.0)
        for end in (row.trace + e, row.trace - e)
        # an error as large as the value itself would stretch the axis without end
        if end > row.trace / 10
    ]
    axis = svg.log_axis(ends)
    unit = f"{divergence_unit(summary)} per squared weight unit"
    least, most = min(drawable), max(drawable)
    return figure(
        svg.rows(
            "sensitivity",
            "Sensitivity of every layer",
            "Mean Hessian trace per weight of each layer, on a logarithmic axis, with the errors "
            f"of the estimate. It reaches from {number(least)} to {number(most)} {unit}.",
            [_sensitivity_row(row, axis) for row in summary.layers],
            axis,
        ),
        "Sensitivity: how much the outputs change when a weight of the layer does. The further to "
        "the right, the more an error of the same size costs.",
        [
            ("point", "mean Hessian trace per weight"),
            ("probe", "± standard error of the estimator"),
            ("data", "± standard error of the sample"),
        ],
        f"{unit}, logarithmic",
    )


def _sensitivity_row(row: LayerRow, axis: svg.Axis) -> svg.Row:
    if row.trace is None:
        return svg.Row(row.name, "", "– not measured")
    if not row.trace > 0:
        tip = f"{row.name}: {number(row.trace)}, which a logarithmic axis cannot show"
        return svg.Row(row.name, "", number(row.trace), tip)
    x, marks, tip = axis.at(row.trace), [], f"{row.name}: {number(row.trace)}"
    if row.stderr_probe is not None:
        low, high = (axis.at(row.trace + s * row.stderr_probe) for s in (-1, 1))
        marks.append(svg.bar(low, high, "probe", height=8, top=4))
        tip += f" ± {number(row.stderr_probe, 2)} (estimator)"
    if row.stderr_data is not None:
        low, high = (axis.at(row.trace + s * row.stderr_data) for s in (-1, 1))
        at, to = svg.fixed(low), svg.fixed(high)
        marks.append(f'<line class="data" x1="{at}%" x2="{to}%" y1="8" y2="8"/>')
        marks += [f'<line class="data" x1="{p}%" x2="{p}%" y1="4" y2="12"/>' for p in (at, to)]
        tip += f" ± {number(row.stderr_data, 2)} (sample)"
    marks.append(f'<circle class="point" cx="{svg.fixed(x)}%" cy="8" r="4"/>')
    return svg.Row(row.name, "".join(marks), number(row.trace), tip)


def layer_bytes(summary: Summary) -> str:
    """Bytes of each layer before and after."""
    layers = summary.layers
    most = max((max(row.float_bytes, row.bytes) for row in layers), default=0)
    if most == 0:
        return absent("No bytes per layer are shown: there are no layers with weights.")
    axis = svg.linear_axis(0, most, bytes_mark)
    before, after = sum(r.float_bytes for r in layers), sum(r.bytes for r in layers)
    items = [
        svg.Row(
            row.name,
            svg.bar(0, axis.at(row.float_bytes), "before")
            + svg.bar(0, axis.at(row.bytes), "after", height=8, top=4),
            f"{decimal_bytes(row.float_bytes)} → {decimal_bytes(row.bytes)}",
            f"{row.name}: {exact_bytes(row.float_bytes)} before, {exact_bytes(row.bytes)} after",
        )
        for row in layers
    ]
    return figure(
        svg.rows(
            "layer-bytes",
            "Bytes of every layer, before and after",
            f"Weights and biases of all layers together: {exact_bytes(before)} before, "
            f"{exact_bytes(after)} after.",
            items,
            axis,
        ),
        f"Bytes of every layer, before and after: together {decimal_bytes(before)} → "
        f"{decimal_bytes(after)}.",
        [("before", "before (float32)"), ("after", "after")],
    )
