"""The page of a pruning: sizes, what it lost, and what of each group is left."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bitwright.files import put
from bitwright.report import words
from bitwright.report.page import filled

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{{ policy }}">
<title>Pruned</title><style>{{ css }}</style></head><body><main>
<h1>Pruned to {{ share("parameters") }} of the parameters</h1>
<table><thead><tr><th></th><th>before</th><th>after</th><th>left</th></tr></thead><tbody>
{% for unit in ("parameters", "macs", "bytes") %}
<tr><th scope="row">{{ names[unit] }}</th><td>{{ "{:,.0f}".format(s.size.before[unit]) }}</td>
<td>{{ "{:,.0f}".format(s.size.after[unit]) }}</td><td>{{ share(unit) }}</td></tr>
{% endfor %}</tbody></table>
<p>Divergence from the original on the test rows: {{ num(s.kl[0]) }} ± {{ num(s.kl[1]) }}.
{% if s.metric[0] is not none %}{{ metric }}: {{ num(s.metric[0]) }}.{% endif %}</p>
<h2>Groups of coupled channels</h2>
<table><thead><tr><th>group</th><th>of</th><th>units</th><th>removed</th><th>implants</th>
<th>members</th></tr></thead><tbody>
{% for g in s.groups %}
<tr><th scope="row">{{ g.name }}</th><td>{{ g.kind }}</td><td>{{ g.units }}</td>
<td>{{ g.removed | length }}</td><td>{{ g.implanted | length }}</td>
<td>{{ g.members | map("first") | unique | join(", ") }}</td></tr>
{% endfor %}</tbody></table>
<h2>Left whole</h2>
<ul>{% for name, why in s.whole.items() %}<li>{{ name }}: {{ why }}</li>{% endfor %}</ul>
</main></body></html>
"""
_NAMES = {"parameters": "parameters", "macs": "multiply-accumulates", "bytes": "bytes, float32"}


def render(said: Mapping[str, Any], metric: str) -> str:
    """The page of what `prune.json` says; `metric` is the name of its metric."""

    def share(unit: str) -> str:
        return f"{said['size']['after'][unit] / max(said['size']['before'][unit], 1):.1%}"

    return filled(_PAGE, s=said, names=_NAMES, metric=metric, share=share, num=words.number)


def write(said: Mapping[str, Any], metric: str, path: Path) -> None:
    """Write the page, to a temporary name first."""
    put(path, render(said, metric))
