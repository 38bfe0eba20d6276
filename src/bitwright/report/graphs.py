"""The page of a graph network's training: what it loses and how small it is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bitwright.files import put
from bitwright.report.page import filled

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{{ policy }}">
<title>Graph network</title><style>{{ css }}</style></head><body><main>
<h1>{{ s.settings.net }} at {{ "%g" | format(s.settings.bits) }} bits</h1>
<table><thead><tr><th></th><th>validation</th><th>test</th><th>bytes</th></tr></thead><tbody>
{% for name, row in s.rows.items() %}
<tr><th scope="row">{{ names[name] }}</th><td>{{ "{:.1%}".format(row.val) }}</td>
<td>{{ "{:.1%}".format(row.test) }}</td>
<td>{% if name in s.bytes %}{{ "{:,}".format(s.bytes[name]) }}{% endif %}</td></tr>
{% endfor %}</tbody></table>
{% if 'widths' in s %}
<h2>Widths</h2>
<p>Weights by layer; activations by the in-degree of the node that a row belongs to, where rows are
nodes.</p>
<table><thead><tr><th>weight</th><th>bits</th></tr></thead><tbody>
{% for name, bits in s.widths.weights.items() %}
<tr><th scope="row">{{ name }}</th><td>{{ bits }}</td></tr>
{% endfor %}</tbody></table>
<table><thead><tr><th>activation</th>{% for name in classes %}<th>{{ name }}</th>{% endfor %}</tr>
</thead><tbody>
{% for name, bits in s.widths.sites.items() %}
<tr><th scope="row">{{ name }}</th>
{% if bits | length == 1 %}<td colspan="{{ classes | length }}">{{ bits[0] }}</td>
{% else %}{% for b in bits %}<td>{{ b }}</td>{% endfor %}{% endif %}</tr>
{% endfor %}</tbody></table>
{% endif %}
<h2>Settings</h2>
<table><tbody>
{% for name, value in s.settings.items() if name != "recipe" %}
<tr><th scope="row">{{ name }}</th><td>{{ value }}</td></tr>
{% endfor %}
{% for name, value in s.settings.recipe.items() %}
<tr><th scope="row">{{ name }}</th><td>{{ value }}</td></tr>
{% endfor %}</tbody></table>
</main></body></html>
"""
_NAMES = {
    "float": "float32",
    "quantized": "Degree-Quant, as trained",
    "artefact": "model.safetensors, read back",
}


def render(said: Mapping[str, Any]) -> str:
    """The page of what `graph.json` says."""
    degrees = said["widths"]["degrees"] if "widths" in said else ()
    starts = [0, *(d + 1 for d in degrees)]
    ends = [*(str(d) for d in degrees), ""]
    classes = [f"{a} – {b}" if b else f"{a} and more" for a, b in zip(starts, ends, strict=True)]
    return filled(_PAGE, s=said, names=_NAMES, classes=classes)


def write(said: Mapping[str, Any], path: Path) -> None:
    """Write the page, to a temporary name first."""
    put(path, render(said))
