"""Figures of the whole network: what the file is made of, other sizes, and the search."""

from __future__ import annotations

import math
from itertools import accumulate, pairwise

from bitwright.report import svg
from bitwright.report.figures import absent, figure
from bitwright.report.summary import Summary
from bitwright.report.words import (
    bytes_mark,
    decimal_bytes,
    divergence_name,
    divergence_unit,
    exact_bytes,
    method_name,
    number,
    percent,
    plain,
)

#: a search whose values span more than this factor gets a logarithmic axis
_WIDE = 3


def waterfall(summary: Summary) -> str:
    """From the float file to the chosen one, and what that is made of."""
    if len(summary.bytes_breakdown) < 2 or summary.bytes_breakdown[0][1] <= 0:
        return absent("No breakdown of the file size is shown: it was not recorded.")
    (first, whole), *parts = summary.bytes_breakdown
    total = sum(size for _, size in parts)
    axis = svg.linear_axis(0, max(whole, total, 1), bytes_mark)
    saved = whole - total
    change = "saved" if saved >= 0 else "added"
    overview = [
        svg.Row(first, svg.bar(0, axis.at(whole), "before"), decimal_bytes(whole)),
        svg.Row(
            change,
            svg.bar(axis.at(min(total, whole)), axis.at(max(total, whole)), "saved"),
            f"{'−' if saved >= 0 else '+'}{decimal_bytes(abs(saved))}",
        ),
        svg.Row("compressed file", svg.bar(0, axis.at(total), "after"), decimal_bytes(total)),
    ]
    zoom = svg.linear_axis(0, max(total, 1), bytes_mark)
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
    loss = summary.chosen_loss or 0.0
    own = None
    if chosen is not None and loss > 0 and math.isfinite(loss):
        own = (float(chosen.bytes), loss)
    drawn = [*points, own] if own else points
    x = svg.linear_axis(min(p[0] for p in drawn), max(p[0] for p in drawn), bytes_mark, 5)
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
    """What a search minimized, of every plan it evaluated, and the best so far."""
    points = [p for p in summary.learning if math.isfinite(p[1]) and math.isfinite(p[2])]
    if not points:
        return absent("No learning curve is shown: no search was run.")
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
    reward = plain(summary.reward) or "the search's own measure of loss"
    skipped = len(summary.learning) - len(points)
    went = f"{number(first)} to {number(last)} {unit}"
    return figure(
        svg.plane(
            "learning",
            f"Learning curve: {reward}",
            f"{len(points):,} plans were evaluated; the best went from {went}.",
            x,
            y,
            svg.curves(("evaluated", svg.dots(every)), ("curve", svg.line(stairs))),
        ),
        f"The search: {len(points):,} plans evaluated, the best went from {went}. It minimizes "
        f"{reward}; these values are not comparable with the table's."
        + (f" Without a finite value and left out: {skipped:,}." if skipped else ""),
        [("evaluated", "an evaluated plan"), ("curve", "best so far")],
        f"across: evaluation; up: {reward}, in {unit}" + (", logarithmic" if log else ""),
    )
