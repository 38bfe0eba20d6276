"""The page of several runs beside each other: size against loss, settings, bits, commands."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from bitwright.files import put
from bitwright.report import svg, words
from bitwright.report.comparison import ComparedRun, Comparison
from bitwright.report.figures import absent, figure
from bitwright.report.page import framed, sized
from bitwright.report.summary import Lost

_PAGE = """
{% for note in notes %}
<p class="note">{{ note }}</p>
{% endfor %}
<section aria-labelledby="result-h">
<h2 id="result-h">Accuracy and size</h2>
{{ table("runs-c", told, columns, results, words_in=(0, 1), kind="methods runs") }}
{% if sizes %}
<details>
<summary>Exact sizes</summary>
{{ table("sizes-c", "Bytes of each run's file, and of its float model's.", size_columns, sizes) }}
</details>
{% endif %}
</section>
<section aria-labelledby="frontier-h">
<h2 id="frontier-h">Size against loss</h2>
{{ drawn }}
</section>
<section aria-labelledby="settings-h">
<h2 id="settings-h">What differs</h2>
{% if settings %}
{{ table("settings-c", "Options that are not the same in all runs; – where one was not given.",
         options, settings, words_in=every) }}
{% else %}
<p class="absent">{{ same }}</p>
{% endif %}
</section>
<section aria-labelledby="bits-h">
<h2 id="bits-h">Bits of every layer</h2>
{% for caption, heads, rows in bits %}
{{ table("bits-%d-c" % loop.index, caption, heads, rows, words_in=every, kind="bits") }}
{% else %}
<p class="absent">No bits are shown: no two runs have the same layers.</p>
{% endfor %}
</section>
<section aria-labelledby="reproduce-h">
<h2 id="reproduce-h">How to reproduce each</h2>
{% for run in runs %}
<h3>{{ run.number }} · {{ run.name }}</h3>
<p>Folder <code>{{ run.folder }}</code>
{%- if run.seed is not none %}, seed {{ run.seed }}{% endif %}.
{% if run.command is none %}{{ run.state }}{% endif %}</p>
{% if run.command is not none %}
<pre tabindex="0" aria-label="Command of {{ run.name }}"><code>{{ run.command }}</code></pre>
{% endif %}
{% endfor %}
</section>
"""


def render(found: Comparison) -> str:
    """The page; equal comparisons give equal pages."""
    runs = found.runs
    return framed(
        "comparison",
        f"{len(runs)} runs compared",
        headline(runs),
        _PAGE,
        notes=found.notes,
        told=_told(runs),
        columns=_columns(runs),
        results=[_result(i, run, runs) for i, run in enumerate(runs, 1)],
        size_columns=("Run", "Bytes", "Float, bytes"),
        sizes=[
            (f"{i} · {run.name}", *(f"{size:,}" if size else words.DASH for size in both))
            for i, run in enumerate(runs, 1)
            if any(both := (run.size_bytes, run.float_bytes))
        ],
        drawn=Markup(chart(runs)),
        options=["Option", *(f"{i} · {run.name}" for i, run in enumerate(runs, 1))],
        every=range(len(runs) + 1),
        settings=[
            (name, *((run.settings or {}).get(name, words.DASH) for run in runs))
            for name in found.differing
        ],
        same=_same(runs),
        bits=list(_bits(runs)),
        runs=[
            {
                "number": i, "name": run.name, "folder": run.folder, "seed": run.seed,
                "command": run.command, "state": f"{run.state[0].upper()}{run.state[1:]}.",
            }
            for i, run in enumerate(runs, 1)
        ],
    )  # fmt: skip


def write(found: Comparison, path: Path) -> None:
    """Write the page, to a temporary name first.

    Raises:
        OSError: it cannot be written there.
    """
    put(path, render(found))


def headline(runs: Sequence[ComparedRun]) -> str:
    """The smallest file, and the one that lost least, in a sentence."""
    sized = [run for run in runs if run.size_bytes is not None]
    judged = [run for run in runs if run.kl is not None]
    if not sized:
        return "None of them is finished."
    small = min(sized, key=lambda run: run.size_bytes or 0)
    parts = [f"smallest: {small.name}, {words.decimal_bytes(small.size_bytes or 0)}"]
    if len({run.divergence for run in judged}) == 1:
        best = min(judged, key=lambda run: run.kl or 0.0)
        parts.append(f"least divergence from float: {best.name}, {estimate(best)} {_unit(best)}")
    sentence = "; ".join(parts) + "."
    return sentence[0].upper() + sentence[1:]


def estimate(run: ComparedRun) -> str:
    """`0.0042 ± 0.0003`, or that it was not measured."""
    if run.kl is None:
        return words.DASH
    error = "" if run.kl_stderr is None else f" ±{words.NBSP}{words.number(run.kl_stderr, 2)}"
    return f"{words.number(run.kl)}{error}"


def lost(run: ComparedRun) -> str:
    """What the metric lost with its standard error: in points (of 100) where it is a share."""
    if run.lost is None:
        return words.DASH
    found = Lost(run.lost, run.lost_stderr, run.lost_paired)
    return words.difference(found, _is_share(run), 2)


def metric(run: ComparedRun) -> str:
    """`92.9 %`."""
    if run.metric is None:
        return words.DASH
    return words.percent(run.metric) if _is_share(run) else words.number(run.metric, 4)


def _is_share(run: ComparedRun) -> bool:
    return words.is_share(run.metric_name or "", (run.metric, run.float_metric))


def _unit(run: ComparedRun) -> str:
    return "nats" if run.divergence == "kl" else "output units²"


def _columns(runs: Sequence[ComparedRun]) -> tuple[str, ...]:
    names = {run.metric_name for run in runs if run.metric is not None}
    points = any(run.lost is not None and _is_share(run) for run in runs)
    return (
        "Run", "Allocator", "Bits per weight", "File size", "Against float", "KL to float",
        names.pop() or "metric" if len(names) == 1 else "metric",
        "Points lost" if points else "Lost", "Same answers", "Latency, ms",
    )  # fmt: skip


def _networks(runs: Sequence[ComparedRun]) -> list[str]:
    """Of those that are finished; others know theirs by another name."""
    return list(dict.fromkeys(r.network for r in runs if r.finished and r.network is not None))


def _told(runs: Sequence[ComparedRun]) -> str:
    networks = _networks(runs)
    text = f"{networks[0]}: e" if len(networks) == 1 else "E"
    text += "very run's file on its test rows, against its own float model. ± is one standard "
    text += "error. Latency: median of one row, and its share of float's."
    if any(run.lost_stderr is not None and not run.lost_paired for run in runs):
        text += " ± ≤ is an upper bound of it: that run's report does not say how the float model "
        text += "and the file went together row by row."
    return text


def _result(number: int, run: ComparedRun, runs: Sequence[ComparedRun]) -> tuple[str | Markup, ...]:
    def known(value: float | None, shown: str) -> str:
        return words.DASH if value is None else shown

    name = Markup("<b>{}</b> · {}").format(number, words.plain(run.name))
    if run.finished and run.network is not None and len(_networks(runs)) > 1:
        name += Markup(' <span class="soft">{}</span>').format(words.plain(run.network))
    if not run.finished:
        name += Markup(' <span class="soft">({})</span>').format(words.plain(run.state))
    elif run.verified is False:
        name += Markup(' <strong class="badge bad">not verified</strong>')
    size, latency = run.size_bytes, run.latency_ms
    timed = known(latency, words.number(latency or 0.0))
    if latency is not None and run.float_latency_ms:
        timed += f" ({latency / run.float_latency_ms:.2f})"
    return (
        name,
        words.DASH if run.allocator is None else run.allocator,
        known(run.mean_bits, f"{run.mean_bits or 0:.2f}"),
        words.DASH if size is None else sized(size),
        known(run.ratio, words.smaller(run.ratio or 1.0)),
        estimate(run) + ("" if run.divergence == "kl" else " (squared)"),
        metric(run),
        lost(run),
        known(run.agreement, words.percent(run.agreement or 0.0)),
        timed,
    )


def chart(runs: Sequence[ComparedRun]) -> str:
    """Size against divergence: a numbered point a run, with its error, and the best of them."""
    drawn = [
        (i, run, float(run.size_bytes), run.kl)
        for i, run in enumerate(runs, 1)
        if run.size_bytes and run.kl is not None and 0 < run.kl < math.inf
    ]
    if not drawn:
        return absent("No points are shown: no run has both a file and a divergence above zero.")
    kind = drawn[0][1].divergence
    drawn = [point for point in drawn if point[1].divergence == kind]
    sizes = [size for _, _, size, _ in drawn]
    room = 0.06 * ((max(sizes) - min(sizes)) or max(sizes))
    x = svg.linear_axis(max(min(sizes) - room, 0.0), max(sizes) + room, words.bytes_mark, 5)
    ends = [
        end
        for _, run, _, kl in drawn
        for end in (kl, kl + (run.kl_stderr or 0.0), kl - (run.kl_stderr or 0.0))
        if end > kl / 10  # an error as large as the value would stretch the axis without end
    ]
    y = svg.log_axis(ends)
    best = frontier([(size, kl) for _, _, size, kl in drawn])
    body = svg.curves(("layers", svg.line([(x.at(a), y.at(b)) for a, b in best])))
    for number, run, size, kl in drawn:
        at, up = svg.fixed(x.at(size)), svg.fixed(100 - y.at(kl))
        if run.kl_stderr is not None:
            low, high = (svg.fixed(100 - y.at(max(kl + s * run.kl_stderr, y.low))) for s in (-1, 1))
            body += f'<line class="data" x1="{at}%" x2="{at}%" y1="{low}%" y2="{high}%"/>'
        tip = f"{number}, {run.name}: {estimate(run)} at {words.decimal_bytes(int(size))}"
        body += (
            f'<g class="numbered"><title>{svg.text(tip)}</title>'
            f'<circle cx="{at}%" cy="{up}%" r="9"/>'
            f'<text x="{at}%" y="{up}%" dy="4">{number}</text></g>'
        )
    unit = _unit(drawn[0][1])
    listed = "; ".join(
        f"{number}, {run.name}: {estimate(run)} {unit} at {words.decimal_bytes(int(size))}"
        for number, run, size, _ in drawn
    )
    name = "KL divergence" if kind == "kl" else "squared difference"
    return figure(
        svg.plane("sizes", f"{name} of every run against its size", f"{listed}.", x, y, body),
        f"Each run's file: {name} from the float model against size, with its standard error. "
        "Down and to the left is better. "
        + "; ".join(f"{number} is {run.name}" for number, run, _, _ in drawn)
        + ".",
        [("layers", "runs that no other run beats in both")],
        f"across: size of the file; up: {name} in {unit}, logarithmic",
    )


def frontier(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Points than which none is smaller in one and no larger in the other, by rising size."""
    found: list[tuple[float, float]] = []
    for size, loss in sorted(points):
        if not found or loss < found[-1][1]:
            found.append((size, loss))
    return found


def _same(runs: Sequence[ComparedRun]) -> str:
    if sum(run.settings is not None for run in runs) < 2:
        return "The runs do not say what they were asked for."
    return "All options are the same in all runs."


def _bits(
    runs: Sequence[ComparedRun],
) -> list[tuple[str, tuple[str, ...], list[tuple[str | Markup, ...]]]]:
    """A table for each set of runs that have the same layers."""
    groups: dict[tuple[tuple[str, int], ...], list[tuple[int, ComparedRun]]] = {}
    for i, run in enumerate(runs, 1):
        if run.layers:
            same = tuple((layer.name, len(layer.bits)) for layer in run.layers)
            groups.setdefault(same, []).append((i, run))
    found = []
    for layers, members in groups.items():
        if len(members) < 2:
            continue
        rows: list[tuple[str | Markup, ...]] = [
            (
                Markup("<code>{}</code>").format(words.plain(name)),
                *(_cell(run.layers[k].bits) for _, run in members),
            )
            for k, (name, _) in enumerate(layers)
        ]
        caption = "Mean bits of each layer's output channels, and the widths among them."
        found.append((caption, ("Layer", *(f"{i} · {run.name}" for i, run in members)), rows))
    return found


def _cell(bits: tuple[int, ...]) -> Markup:
    """Mean bits on the colour of the nearest width, and the widths used."""
    if not bits:
        return Markup("float")
    mean, low, high = sum(bits) / len(bits), min(bits), max(bits)
    span = f"{low}" if low == high else f"{low} to {high}"
    return Markup('<span class="width b{}">{:.2f}</span> <span class="soft">{}</span>').format(
        round(mean), mean, span
    )
