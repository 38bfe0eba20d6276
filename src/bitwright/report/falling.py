"""The page of a multi-bit training: how stored bits and the loss fell, epoch by epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from bitwright.files import put
from bitwright.report import svg, words
from bitwright.report.figures import figure
from bitwright.report.page import filled

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{{ policy }}">
<title>Multi-bit</title><style>{{ css }}</style></head><body><main>
<h1>{{ num(lines[-1].bits) }} bits a weight</h1>
{{ drawn }}
<table><thead><tr><th>epoch</th><th>what</th><th>loop</th><th>bits a weight</th><th>loss</th>
</tr></thead><tbody>
{% for line in lines %}
<tr><th scope="row">{{ line.epoch }}</th><td>{{ line.what }}</td><td>{{ line.loop }}</td>
<td>{{ num(line.bits) }}</td><td>{{ num(line.loss) if "loss" in line else "" }}</td></tr>
{% endfor %}</tbody></table>
</main></body></html>
"""


def falling(history: Sequence[Mapping[str, Any]]) -> str:
    """Stored bits a weight after every epoch, logarithmic."""
    bits = [max(float(line["bits"]), 1e-6) for line in history]
    x = svg.linear_axis(0, max(1, len(bits) - 1), lambda v: f"{v:,.0f}", 6)
    y = svg.log_axis(bits)
    path = [(x.at(i), y.at(value)) for i, value in enumerate(bits)]
    told = f"From {words.number(bits[0])} to {words.number(bits[-1])} bits a weight."
    drawn = svg.curves(("curve", svg.line(path)), ("evaluated", svg.dots(path)))
    return figure(
        svg.plane("falling", "Stored bits a weight", told, x, y, drawn),
        told,
        [("curve", "signs, coordinates and counts of bases")],
        "across: epoch; up: bits a weight, logarithmic",
    )


def render(history: Sequence[Mapping[str, Any]]) -> str:
    """The page of the lines of a training."""
    return filled(_PAGE, lines=history, drawn=Markup(falling(history)), num=words.number)


def write(history: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write the page, to a temporary name first."""
    put(path, render(history))
