"""The page of a multi-bit training: how stored bits and the loss fell, epoch by epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from bitwright.files import put
from bitwright.report import svg, words
from bitwright.report.figures import figure
from bitwright.report.page import framed

_PAGE = """
<section aria-labelledby="falling-h">
<h2 id="falling-h">How the bits fell</h2>
{{ drawn }}
</section>
<section aria-labelledby="epochs-h">
<h2 id="epochs-h">Epochs</h2>
{{ table("epochs-c", "What every epoch trained, with the bits a weight after it and its mean loss.",
         ("Epoch", "What", "Loop", "Bits a weight", "Loss"), lines, words_in=(0, 1)) }}
</section>
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
    last = history[-1]
    told = f"after {len(history):,} epochs, from {words.number(history[0]['bits'])}"
    if "loss" in last:
        told += f"; mean loss of the last epoch {words.number(last['loss'])}"
    return framed(
        "multi-bit training",
        f"{words.number(last['bits'])} bits a weight",
        f"{told[0].upper()}{told[1:]}.",
        _PAGE,
        drawn=Markup(falling(history)),
        lines=[
            (
                str(line["epoch"]), str(line["what"]), str(line["loop"]),
                words.number(line["bits"]),
                words.number(line["loss"]) if "loss" in line else words.DASH,
            )
            for line in history
        ],
    )  # fmt: skip


def write(history: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write the page, to a temporary name first."""
    put(path, render(history))
