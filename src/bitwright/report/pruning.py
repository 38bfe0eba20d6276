"""The page of a pruning: sizes, what it lost, and what of each group is left."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from bitwright.files import put
from bitwright.report import svg, words
from bitwright.report.figures import absent, figure
from bitwright.report.page import framed

_PAGE = """
<section aria-labelledby="size-h">
<h2 id="size-h">Size</h2>
{{ table("size-c", "Before and after, and the share that is left.",
         ("", "Before", "After", "Left"), sizes, kind="methods") }}
</section>
<section aria-labelledby="groups-h">
<h2 id="groups-h">What is left of each group</h2>
<p>Channels that must go together, because layers add, multiply or join them, are a group of coupled
channels: what is removed of one member is removed of all.</p>
{{ drawn }}
<details>
<summary>All groups ({{ groups | length }})</summary>
{{ table("groups-c", "Groups of coupled channels, and the layers in each.",
         ("Group", "Of", "Units", "Removed", "Implants", "Layers"), groups, words_in=(0, 1, 5),
         kind="dense") }}
</details>
</section>
<section aria-labelledby="whole-h">
<h2 id="whole-h">Left whole</h2>
{% if whole %}
<ul class="notes">
{% for name, why in whole.items() %}
<li><code>{{ name }}</code>: {{ why }}</li>
{% endfor %}
</ul>
{% else %}
<p class="absent">Nothing was left whole by rule.</p>
{% endif %}
</section>
<section aria-labelledby="reproduce-h">
<h2 id="reproduce-h">How to reproduce this</h2>
{{ table("settings-c", "What was asked for.", ("Option", "Value"), settings, words_in=(0, 1),
         kind="options") }}
</section>
"""
_NAMES = {"parameters": "parameters", "macs": "multiply-accumulates", "bytes": "bytes, float32"}


def left_of(groups: list[Mapping[str, Any]]) -> str:
    """Units of each group that are kept, replaced by implants, and removed."""
    if not groups:
        return absent("No groups are shown: nothing could be pruned.")
    rows = []
    for group in groups:
        units, implants = max(int(group["units"]), 1), len(group["implanted"])
        kept = units - len(group["removed"]) - implants
        ends = (100 * kept / units, 100 * (kept + implants) / units)
        marks = svg.bar(0, ends[0], "after") + svg.bar(ends[0], ends[1], "probe")
        told = f"{group['name']}: {kept} of {units} units kept"
        told += f", {implants} implants" if implants else ""
        rows.append(
            svg.Row(group["name"], marks + svg.bar(0, 100, "frame"), f"{kept} of {units}", told)
        )
    legend = [("after", "kept")]
    if any(group["implanted"] for group in groups):
        legend.append(("probe", "replaced by an implant"))
    total = sum(int(group["units"]) for group in groups)
    removed = sum(len(group["removed"]) for group in groups)
    return figure(
        svg.rows(
            "groups",
            "Units left in every group",
            f"{removed:,} of {total:,} units removed, in {len(groups):,} groups.",
            rows,
        ),
        "Share of each group's units that is kept; on the right, kept of all.",
        legend,
    )


def render(said: Mapping[str, Any], metric: str) -> str:
    """The page of what `prune.json` says; `metric` is the name of its metric."""
    before, after = said["size"]["before"], said["size"]["after"]
    shares = {unit: after[unit] / max(before[unit], 1) for unit in _NAMES}
    error = f"{words.NBSP}±{words.NBSP}{words.number(said['kl'][1], 2)}"
    lead = (
        f"{words.percent(shares['parameters'])} of the parameters and "
        f"{words.percent(shares['macs'])} of the multiply-accumulates are left; divergence from "
        f"the original on the test rows {words.number(said['kl'][0])}{error}"
    )
    value, stderr = said["metric"]
    if value is not None:
        lead += f"; {words.plain(metric)} {words.number(value, 4)}"
        lead += "" if stderr is None else f"{words.NBSP}±{words.NBSP}{words.number(stderr, 2)}"
    groups = said["groups"]
    return framed(
        "pruning",
        f"Pruned to {words.percent(shares['parameters'])} of the parameters",
        f"{lead}.",
        _PAGE,
        sizes=[
            (name, f"{before[unit]:,.0f}", f"{after[unit]:,.0f}", words.percent(shares[unit]))
            for unit, name in _NAMES.items()
        ],
        drawn=Markup(left_of(groups)),
        groups=[
            (
                g["name"], g["kind"], f"{g['units']:,}", f"{len(g['removed']):,}",
                f"{len(g['implanted']):,}", ", ".join(dict.fromkeys(m[0] for m in g["members"])),
            )
            for g in groups
        ],
        whole=said["whole"],
        settings=[(name, str(value)) for name, value in said.get("settings", {}).items()],
    )  # fmt: skip


def write(said: Mapping[str, Any], metric: str, path: Path) -> None:
    """Write the page, to a temporary name first."""
    put(path, render(said, metric))
