"""Drawing primitives: SVG whose positions are percentages and whose text keeps its size.

A drawing has no viewBox: it is as wide as its place on the page, horizontal positions are shares
of that, and text and marks have fixed sizes. So one drawing is readable at 360 and at 1600 pixels
without a script, and takes its colours from the page's style sheet, light or dark.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from bitwright.report.words import NBSP, number, plain, power_of_ten, shortened, trimmed

#: at least this share of a decade is drawn, so that equal values get an axis
_LEAST_SPAN = 0.25


@dataclass(frozen=True)
class Axis:
    """A range of values and the marks along it.

    Attributes:
        low, high: at 0 % and 100 %.
        log: whether positions are logarithmic.
        ticks: (value, label).
    """

    low: float
    high: float
    log: bool
    ticks: tuple[tuple[float, str], ...]

    def at(self, value: float) -> float:
        """Position of `value` in percent, clipped to the axis."""
        low, high = self.low, self.high
        if self.log:
            value = math.log10(max(value, low))
            low, high = math.log10(low), math.log10(high)
        return min(max(100 * (value - low) / (high - low), 0.0), 100.0)


@dataclass(frozen=True)
class Row:
    """A row of a drawing: its name, marks (SVG, 16 px high), value and what hovering tells."""

    name: str
    marks: str
    value: str
    tip: str = ""


def text(value: str) -> str:
    """`value` as XML text or attribute."""
    return escape(plain(value), quote=True)


def fixed(value: float, places: int = 2) -> str:
    """A short decimal number."""
    found = trimmed(f"{value:.{places}f}")
    return "0" if found == "-0" else found


def linear_axis(
    low: float, high: float, label: Callable[[float], str] = number, count: int = 4
) -> Axis:
    """An axis from `low` to `high` with about `count` round marks."""
    if not high > low:
        high = low + (abs(low) or 1.0)
    raw = (high - low) / count
    scale = 10.0 ** math.floor(math.log10(raw))
    step = next(m * scale for m in (1, 2, 2.5, 5, 10) if m * scale >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return Axis(
        low, high, False, tuple((i * step, label(i * step)) for i in range(first, last + 1))
    )


def log_axis(values: Sequence[float], count: int = 5) -> Axis:
    """A logarithmic axis around positive values: decades, or 1-2-5 where they span few."""
    low, high = math.log10(min(values)), math.log10(max(values))
    room = max(_LEAST_SPAN - (high - low), 0.08 * (high - low), 0.02) / 2
    low, high = low - room, high + room
    decades = range(math.ceil(low), math.floor(high) + 1)
    if high - low > 2.2:
        step = math.ceil(len(decades) / count)
        ticks = [(10.0**e, power_of_ten(e)) for e in decades if e % step == 0]
    else:
        every = range(math.floor(low), math.ceil(high) + 1)
        steps = (1, 3) if high - low > 1 else (1, 2, 5) if high - low > 0.4 else range(1, 10)
        found = [m * 10.0**e for e in every for m in steps]
        ticks = [(v, _mark(v)) for v in found if low <= math.log10(v) <= high]
    return Axis(10.0**low, 10.0**high, True, tuple(ticks))


def _mark(value: float) -> str:
    """`0.03`, `3 × 10⁻⁵` or `10⁻⁵`."""
    found = number(value, 1)
    return found.removeprefix(f"1{NBSP}×{NBSP}")


def drawing(ident: str, title: str, description: str, body: str, style: str, kind: str) -> str:
    """An SVG element that assistive technology reads as an image with a title and description."""
    return (
        f'<div class="{kind}"><svg role="img" width="100%" style="{style}" '
        f'aria-labelledby="{ident}-title {ident}-desc">'
        f'<title id="{ident}-title">{text(title)}</title>'
        f'<desc id="{ident}-desc">{text(description)}</desc>{body}</svg></div>'
    )


def rows(
    ident: str, title: str, description: str, items: Sequence[Row], axis: Axis | None = None
) -> str:
    """A drawing with a row for each item and an axis below: names left (or above), values right."""
    total = len(items) + (1 if axis and axis.ticks else 0)
    body = []
    for value, label in axis.ticks if axis and axis.ticks else ():
        x, foot = axis.at(value) if axis else 0.0, fixed(100 * len(items) / total)
        anchor = "start" if x < 6 else "end" if x > 94 else "middle"
        body.append(f'<line class="grid" x1="{fixed(x)}%" x2="{fixed(x)}%" y2="{foot}%"/>')
        body.append(
            f'<text class="tick" x="{fixed(x)}%" y="{foot}%" dy="15" '
            f'text-anchor="{anchor}">{text(label)}</text>'
        )
    for i, item in enumerate(items):
        y = fixed(100 * i / total, 3)
        tip = f"<title>{text(item.tip)}</title>" if item.tip else ""
        body.append(
            f'<svg class="row" y="{y}%">{tip}'
            f'<text class="name">{text(shortened(item.name))}</text>'
            f'<text class="value" x="100%">{text(item.value)}</text>'
            f'<g class="marks">{item.marks}</g></svg>'
        )
    return drawing(ident, title, description, "".join(body), f"--rows:{total}", "rows")


def bar(start: float, end: float, kind: str, height: int = 16, top: int = 0) -> str:
    """A bar between two positions in percent."""
    y = f' y="{top}"' if top else ""
    width = fixed(max(end - start, 0.0), 3)
    return f'<rect class="{kind}" x="{fixed(start, 3)}%"{y} width="{width}%" height="{height}"/>'


def plane(ident: str, title: str, description: str, x: Axis, y: Axis, body: str) -> str:
    """A drawing of two axes around `body`, which is drawn in a square of 1,000 × 1,000 units."""
    marks = []
    for value, label in y.ticks:
        at = fixed(100 - y.at(value))
        marks.append(f'<line class="grid" x2="100%" y1="{at}%" y2="{at}%"/>')
        marks.append(f'<text class="tick y" y="{at}%" dx="-8" dy="4">{text(label)}</text>')
    for value, label in x.ticks:
        at = fixed(x.at(value))
        marks.append(f'<line class="grid" x1="{at}%" x2="{at}%" y2="100%"/>')
        marks.append(f'<text class="tick x" x="{at}%" y="100%" dy="18">{text(label)}</text>')
    return drawing(ident, title, description, "".join(marks) + body, "height:300px", "plane")


def curves(*paths: tuple[str, str]) -> str:
    """(class, path data) pairs in a square of 1,000 × 1,000 units that is stretched to fit."""
    drawn = "".join(f'<path class="{kind}" d="{data}"/>' for kind, data in paths if data)
    return (
        '<svg width="100%" height="100%" viewBox="0 0 1000 1000" preserveAspectRatio="none" '
        f'overflow="visible">{drawn}</svg>'
    )


def line(points: Sequence[tuple[float, float]]) -> str:
    """Path data through points in percent (up is more)."""
    return "".join(
        f"{'L' if i else 'M'}{fixed(10 * px, 1)} {fixed(1000 - 10 * py, 1)}"
        for i, (px, py) in enumerate(points)
    )


def dots(points: Sequence[tuple[float, float]]) -> str:
    """Path data that a round line cap turns into dots."""
    return "".join(f"M{fixed(10 * px, 1)} {fixed(1000 - 10 * py, 1)}h0" for px, py in points)
