"""The page of a graph network's training: what it loses and how small it is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bitwright.report.page import filled, put

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{{ policy }}">
<title>Graph network</title><style>{{ css }}</style></head><body><main>
<h1>{{ s.settings.net }} at {{ s.settings.bits }} bits</h1>
<table><thead><tr><th></th><th>validation</th><th>test</th><th>bytes</th></tr></thead><tbody>
{% for name, row in s.rows.items() %}
<tr><th scope="row">{{ names[name] }}</th><td>{{ "{:.1%}".format(row.val) }}</td>
<td>{{ "{:.1%}".format(row.test) }}</td>
<td>{% if name in s.bytes %}{{ "{:,}".format(s.bytes[name]) }}{% endif %}</td></tr>
{% endfor %}</tbody></table>
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
    return filled(_PAGE, s=said, names=_NAMES)


def write(said: Mapping[str, Any], path: Path) -> None:
    """Write the page, to a temporary name first."""
    put(render(said), path)
