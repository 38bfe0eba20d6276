"""The figure of HAWQ-V2's frontiers (arXiv 1911.03852), the channels', and the chosen plan."""

from __future__ import annotations

import math
from bisect import bisect_right
from itertools import chain

from bitwright.report import svg
from bitwright.report.figures import absent, figure
from bitwright.report.summary import FrontierRow, Summary
from bitwright.report.words import (
    divergence_name,
    divergence_unit,
    method_name,
    number,
    plain,
    times,
    trimmed,
)

#: a frontier's name -> class of its line, and what the legend calls it; as they are drawn
_KINDS = {
    "layers, monotone": ("monotone", "by layer, never wider for a smaller mean trace (HAWQ-V2)"),
    "layers": ("layers", "by layer, all assignments"),
    "channels": ("curve", "by channel"),
}


def frontiers(summary: Summary) -> str:
    """Predicted loss against bits per weight: by channel, by layer, and along the order of traces.

    Lines go through every point of the summary's frontiers.
    """
    known = [row for row in summary.frontiers if row.name in _KINDS]
    found = {row.name: _drawable(row) for row in known}
    found = {name: found[name] for name in _KINDS if len(found.get(name, ())) > 1}
    if not found:
        return absent("No frontiers are shown: plans of other sizes were not computed.")
    own = _own(summary)
    drawn = [*chain(*found.values()), *([own] if own else [])]
    low, high = min(b for b, _ in drawn), max(b for b, _ in drawn)
    x = svg.linear_axis(low, high, lambda v: trimmed(f"{v:.2f}"), 7)
    y = svg.log_axis([v for _, v in drawn])
    paths = [
        (_KINDS[name][0], svg.line([(x.at(b), y.at(v)) for b, v in points]))
        for name, points in found.items()
    ]
    body, unit = svg.curves(*paths), divergence_unit(summary)
    legend, words = [_KINDS[name] for name in reversed(found)], []
    if own is not None and summary.chosen is not None:
        at, up = svg.fixed(x.at(own[0])), svg.fixed(100 - y.at(own[1]))
        body += f'<circle class="chosen" cx="{at}%" cy="{up}%" r="6"/>'
        bits = trimmed(f"{own[0]:.2f}")
        words = [f"{method_name(summary.chosen)}: {number(own[1])} {unit} at {bits} bits"]
        legend.append(("chosen", f"chosen: {number(own[1])} {unit} at {bits} bits"))
    counts = [
        f"{_KINDS[row.name][1]}: {row.count:,} plans{'' if row.exact else ', not proven the best'}"
        for row in known
        if row.name in found
    ]
    return figure(
        svg.plane(
            "frontiers",
            "Predicted loss against bits per weight, by channel and by layer",
            "; ".join([*words, *counts]) + ".",
            x,
            y,
            body,
        ),
        f"One width per channel or per layer: predicted increase of the {divergence_name(summary)} "
        f"by the best plan of each kind at every size.{_gain(found, own)} All plans are in "
        "frontier.json.",
        legend,
        f"across: bits per weight; up: predicted loss in {unit}, logarithmic",
    )


def _drawable(row: FrontierRow) -> list[tuple[float, float]]:
    """Points that a logarithmic axis can show."""
    return [(b, v) for b, v in row.points if v > 0 and math.isfinite(v) and math.isfinite(b)]


def _own(summary: Summary) -> tuple[float, float] | None:
    """Bits per weight and predicted loss of the chosen plan."""
    chosen, loss = summary.chosen, summary.chosen_loss
    if chosen is None or chosen.mean_bits is None or not loss or not 0 < loss < math.inf:
        return None
    return chosen.mean_bits, loss


def _gain(found: dict[str, list[tuple[float, float]]], own: tuple[float, float] | None) -> str:
    """A sentence on the kinds at the chosen plan's bits."""
    if own is None or not {"channels", "layers"} <= set(found):
        return ""
    best = {}
    for name, points in found.items():
        place = bisect_right(points, (own[0] + 1e-9, math.inf)) - 1
        if place < 0:
            return ""
        best[name] = points[place][1]
    bits = plain(trimmed(f"{own[0]:.2f}"))
    said = f" At {bits} bits, layers lose {times(best['layers'] / best['channels'])} what channels"
    said += " do"
    if "layers, monotone" in best:
        said += f", monotone ones {times(best['layers, monotone'] / best['channels'])}"
    return said + "."
