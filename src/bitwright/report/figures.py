"""The figures of the report, each a `<figure>`, or a sentence where there is nothing to draw.

Everything is drawn from the summary alone: the same summary gives the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate, pairwise

from bitwright.report import svg
from bitwright.report.summary import LayerRow, Summary
from bitwright.report.words import (
    NBSP,
    decimal_bytes,
    divergence_name,
    divergence_unit,
    exact_bytes,
    method_name,
    number,
    percent,
    widths_used,
)

#: layers with more channels are drawn without gaps between them
_MOST_CELLS = 96
#: a run narrower than this share of the row, in percent, gets no number
_LEAST_LABEL = 5.0
#: a search whose values span more than this factor gets a logarithmic axis
_WIDE = 8.0


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
    marks = []
    for (bits, _), (begin, end) in zip(found, pairwise(edges), strict=True):
        start, stop = 100 * begin / n, 100 * end / n
        marks.append(svg.bar(start, stop, f"b{bits}"))
        if stop - start >= _LEAST_LABEL:
            middle = svg.fixed((start + stop) / 2)
            marks.append(f'<text class="on b{bits}" x="{middle}%" y="12">{bits}</text>')
    if 1 < n <= _MOST_CELLS:
        # one dashed line draws all gaps between the cells
        marks.append(
            f'<svg width="100%" height="16" viewBox="0 0 {n} 1" preserveAspectRatio="none">'
            f'<path class="gaps" d="M.96 .5H{n - 0.5}"/></svg>'
        )
    mean = sum(row.bits) / n
    value = f"{mean:.2f} · {n:,}{NBSP}ch"
    return svg.Row(row.name, "".join(marks), value, f"{row.name}: {widths_used(row)}")


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
        "Sensitivity: how much the outputs change when a weight of the layer does. Layers further "
        "right deserve more bits.",
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
    axis = svg.linear_axis(0, most, lambda v: decimal_bytes(round(v)))
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


def waterfall(summary: Summary) -> str:
    """From the float file to the chosen one, and what that is made of."""
    if len(summary.bytes_breakdown) < 2 or summary.bytes_breakdown[0][1] <= 0:
        return absent("No breakdown of the file size is shown: it was not recorded.")
    (first, whole), *parts = summary.bytes_breakdown
    total = sum(size for _, size in parts)
    axis = svg.linear_axis(0, max(whole, total, 1), lambda v: decimal_bytes(round(v)))
    saved = whole - total
    change = "saved" if saved >= 0 else "added"
    overview = [
        svg.Row(first, svg.bar(0, axis.at(whole), "before"), decimal_bytes(whole)),
        svg.Row(
            change,
            svg.bar(*sorted((axis.at(total), axis.at(whole))), "saved"),
            f"{'−' if saved >= 0 else '+'}{decimal_bytes(abs(saved))}",
        ),
        svg.Row("compressed file", svg.bar(0, axis.at(total), "after"), decimal_bytes(total)),
    ]
    zoom = svg.linear_axis(0, max(total, 1), lambda v: decimal_bytes(round(v)))
    ends = [0, *accumulate(size for _, size in parts)]
    detail = [
        svg.Row(
            label,
            svg.bar(zoom.at(begin), zoom.at(end), "after"),
            f"{decimal_bytes(size)} · {percent(size / total if total else 0)}",
            f"{label}: {exact_bytes(size)}",
        )
        for (label, size), (begin, end) in zip(parts, pairwise(ends), strict=True)
    ]
    listed = "; ".join(f"{label}: {exact_bytes(size)}" for label, size in parts)
    return figure(
        svg.rows(
            "saved",
            "From the float file to the compressed file",
            f"{first}: {exact_bytes(whole)}; compressed file: {exact_bytes(total)}.",
            overview,
            axis,
        ),
        f"From {decimal_bytes(whole)} to {decimal_bytes(total)}.",
    ) + figure(
        svg.rows("parts", "What the compressed file is made of", f"{listed}.", detail, zoom),
        "What the compressed file is made of, enlarged: each part begins where the one above it "
        "ends.",
    )


def frontier(summary: Summary) -> str:
    """Predicted loss of the optimal plan at every size, and the chosen plan."""
    points = [(float(b), v) for _, b, v in summary.frontier if v > 0 and math.isfinite(v)]
    if len(points) < 2:
        return absent("No frontier is shown: predicted losses at other sizes were not computed.")
    points.sort()
    chosen = summary.chosen
    losses = [row.loss for row in summary.layers]
    loss = math.fsum(v for v in losses if v is not None)
    own = None
    if chosen is not None and loss > 0 and math.isfinite(loss) and None not in losses:
        own = (float(chosen.bytes), loss)
    drawn = [*points, own] if own else points
    x = svg.linear_axis(
        min(p[0] for p in drawn), max(p[0] for p in drawn), lambda v: decimal_bytes(round(v))
    )
    y = svg.log_axis([p[1] for p in drawn])
    path = [(x.at(size), y.at(value)) for size, value in points]
    body = svg.curves(("curve", svg.line(path)))
    legend, unit = [("curve", "best predicted loss at each size")], divergence_unit(summary)
    described = f"It falls from {number(points[0][1])} {unit} at {decimal_bytes(int(points[0][0]))}"
    described += f" to {number(points[-1][1])} {unit} at {decimal_bytes(int(points[-1][0]))}."
    if own is not None and chosen is not None:
        at, up = svg.fixed(x.at(own[0])), svg.fixed(100 - y.at(own[1]))
        body += f'<circle class="chosen" cx="{at}%" cy="{up}%" r="6"/>'
        words = f"chosen: {number(own[1])} {unit} at {decimal_bytes(chosen.bytes)}"
        described += f" {method_name(chosen)}, {words}."
        legend.append(("chosen", words))
    return figure(
        svg.plane("frontier", "Predicted loss against file size", described, x, y, body),
        f"What another size would cost: predicted increase of the {divergence_name(summary)} "
        "against the size of the file.",
        legend,
        f"across: size of the file; up: predicted loss in {unit}, logarithmic",
    )


def learning(summary: Summary) -> str:
    """Divergence of every plan a search evaluated, and the best so far."""
    points = [p for p in summary.learning if math.isfinite(p[1]) and math.isfinite(p[2])]
    if not points:
        return absent("No learning curve is shown: the chosen method does not search.")
    values = [v for _, *pair in points for v in pair]
    log = min(values) > 0 and max(values) > _WIDE * min(values)
    x = svg.linear_axis(points[0][0], points[-1][0], lambda v: f"{v:,.0f}", 6)
    y = svg.log_axis(values) if log else svg.linear_axis(0, 1.05 * max(values))
    every = [(x.at(i), y.at(value)) for i, value, _ in points]
    best = [(x.at(i), y.at(value)) for i, _, value in points]
    stairs = [best[0]]
    for before, after in pairwise(best):
        stairs += [(after[0], before[1]), after] if after[1] != before[1] else []
    stairs.append((best[-1][0], best[-1][1]))
    unit, first, last = divergence_unit(summary), points[0][2], points[-1][2]
    skipped = len(summary.learning) - len(points)
    return figure(
        svg.plane(
            "learning",
            "Learning curve",
            f"{len(points):,} plans were evaluated; the best divergence went from {number(first)} "
            f"to {number(last)} {unit}.",
            x,
            y,
            svg.curves(("evaluated", svg.dots(every)), ("curve", svg.line(stairs))),
        ),
        f"The search: {len(points):,} plans evaluated, the best went from {number(first)} to "
        f"{number(last)} {unit}."
        + (f" {skipped:,} without a finite value are left out." if skipped else ""),
        [("evaluated", "an evaluated plan"), ("curve", "best so far")],
        f"across: evaluation; up: {divergence_name(summary)} in {unit}"
        + (", logarithmic" if log else ""),
    )
