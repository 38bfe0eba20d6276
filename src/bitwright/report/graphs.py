"""The page of a graph network's training: what it loses and how small it is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bitwright.files import put
from bitwright.report import words
from bitwright.report.page import framed

_PAGE = """
<section aria-labelledby="result-h">
<h2 id="result-h">Accuracy and size</h2>
{{ table("rows-c", "Share of nodes, or of graphs, whose class is right.",
         ("Network", "Validation", "Test", "Bytes"), rows, kind="methods") }}
</section>
{% if weights %}
<section aria-labelledby="widths-h">
<h2 id="widths-h">Widths</h2>
<p>Weights by layer; activations by the in-degree of the node that a row belongs to, where rows are
nodes.</p>
{{ table("weights-c", "Bits of each weight.", ("Weight", "Bits"), weights) }}
{{ table("sites-c", "Bits of each activation, by in-degree.", classes, sites) }}
</section>
{% endif %}
<section aria-labelledby="reproduce-h">
<h2 id="reproduce-h">How to reproduce this</h2>
{{ table("settings-c", "What was asked for.", ("Option", "Value"), settings, words_in=(0, 1),
         kind="options") }}
</section>
"""
_NAMES = {
    "float": "float32",
    "quantized": "Degree-Quant, as trained",
    "artefact": "model.safetensors, read back",
}


def render(said: Mapping[str, Any]) -> str:
    """The page of what `graph.json` says."""
    settings, rows, size = said["settings"], said["rows"], said["bytes"]
    widths = said.get("widths", {"weights": {}, "sites": {}, "degrees": ()})
    starts = [0, *(d + 1 for d in widths["degrees"])]
    ends = [*(str(d) for d in widths["degrees"]), ""]
    classes = [
        f"{a}{words.NBSP}–{words.NBSP}{b}" if b else f"{a} and more"
        for a, b in zip(starts, ends, strict=True)
    ]
    before, after = rows["float"]["test"], rows["artefact"]["test"]
    smaller = words.smaller(size["float"] / max(size["artefact"], 1))
    change = f"{words.decimal_bytes(size['float'])} → {words.decimal_bytes(size['artefact'])}"
    return framed(
        "graph network",
        f"{settings['net']} at {settings['bits']:g} bits",
        f"{smaller} ({change}); test accuracy {words.percent(before)} → {words.percent(after)}.",
        _PAGE,
        rows=[
            (
                _NAMES[name], words.percent(row["val"]), words.percent(row["test"]),
                f"{size[name]:,}" if name in size else words.DASH,
            )
            for name, row in rows.items()
        ],
        weights=[(name, str(bits)) for name, bits in widths["weights"].items()],
        classes=["Activation", *classes],
        sites=[
            (name, *map(str, bits if len(bits) > 1 else list(bits) * len(classes)))
            for name, bits in widths["sites"].items()
        ],
        settings=[
            (name, str(value))
            for part in ({k: v for k, v in settings.items() if k != "recipe"}, settings["recipe"])
            for name, value in part.items()
        ],
    )  # fmt: skip


def write(said: Mapping[str, Any], path: Path) -> None:
    """Write the page, to a temporary name first."""
    put(path, render(said))
