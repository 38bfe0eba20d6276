"""The page: one HTML file that needs nothing else, neither a network nor a script."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup, escape

from bitwright.files import put
from bitwright.report import curves, figures, frontiers, words
from bitwright.report.summary import Summary

#: nothing may be loaded and no script may run, whatever a name in the summary contains
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'"
#: a table of so few columns fits every screen
_FIT = 5
#: layers that are shown of those that change most
_WORST = 8
#: roles are said again because cards, which are no longer displayed as a table, would lose them
_TABLE = """
<div class="scroll" role="region" aria-labelledby="{{ ident }}" tabindex="0">
<table class="{{ kind }}" role="table">
<caption id="{{ ident }}">{{ caption }}</caption>
<thead role="rowgroup">
<tr role="row">
{% for name in columns %}
<th scope="col" role="columnheader"{{ "" if loop.index0 in words_in else " class=n" }}>
{{- name }}</th>
{% endfor %}
</tr>
</thead>
<tbody role="rowgroup">
{% for row in rows %}
<tr role="row">
<th scope="row" role="rowheader">{{ row[0] }}</th>
{% for value in row[1:] %}
<td role="cell"{{ "" if loop.index in words_in else " class=n" }}
 data-label="{{ columns[loop.index] }}">{{ value }}</td>
{% endfor %}
</tr>
{% endfor %}
</tbody>
</table>
</div>
"""
_ABSENT = Markup(
    f'<span class="none" title="not measured">{words.DASH}'
    '<span class="unseen"> not measured</span></span>'
)


def render(summary: Summary) -> str:
    """The whole page; equal summaries give equal pages."""
    return _template().render(
        s=summary,
        css=Markup(stylesheet()),
        policy=POLICY,
        headline=words.headline(summary),
        comparison=words.comparison(summary),
        why=words.why(summary),
        keys=key_figures(summary),
        unit=words.divergence_unit(summary),
        divergence=words.divergence_name(summary),
        figures={
            "bits": Markup(figures.bits_picture(summary)),
            "sensitivity": Markup(figures.sensitivity(summary)),
            "layer_bytes": Markup(figures.layer_bytes(summary)),
            "waterfall": Markup(curves.waterfall(summary)),
            "frontier": Markup(curves.frontier(summary)),
            "frontiers": Markup(frontiers.frontiers(summary)),
            "learning": Markup(curves.learning(summary)),
        },
        mismatch=size_mismatch(summary),
        sizes=exact_sizes(summary),
        changed=changed_most(summary),
        with_metric=any(m.metric is not None for m in summary.methods),
        with_latency=any(m.latency_ms is not None for m in summary.methods),
    )


def write(summary: Summary, path: Path) -> None:
    """Write the page, to a temporary name first."""
    put(path, render(summary))


def framed(kind: str, title: str, lead: str, template: str, **values: Any) -> str:
    """A whole page around a template of sections, in the report's style.

    Args:
        kind: what page this is, in a few words.
        title: of the page, its only first heading.
        lead: what was gained and lost, in a sentence.
        template: Jinja, of sections with second headings; `table` is :func:`table` in it.
        **values: in the template.
    """
    body = _environment().from_string(template).render(table=table, **values)
    frame = _environment().from_string(_resource("frame.html.j2"))
    return frame.render(
        kind=kind, title=title, lead=lead, body=Markup(body), css=Markup(stylesheet()),
        policy=POLICY,
    )  # fmt: skip


def table(
    ident: str,
    caption: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[str | Markup]],
    *,
    words_in: Collection[int] = (0,),
    kind: str = "",
) -> Markup:
    """A table that scrolls in its own box where it is too wide; few columns shrink instead.

    Args:
        ident: of its caption.
        caption: what it shows.
        columns: their headings.
        rows: cells, the first of which heads its row.
        words_in: columns of words; the others hold numbers, flush right.
        kind: a class of the style sheet; of `methods`, each row is a card on a narrow screen.
    """
    if len(columns) <= _FIT:
        kind = f"{kind} fit".strip()
    return Markup(_environment().from_string(_TABLE).render(
        ident=ident, caption=caption, columns=columns, rows=rows, words_in=words_in, kind=kind
    ))  # fmt: skip


def key_figures(summary: Summary) -> list[tuple[str, str, str]]:
    """(label, figure, explanation) of what matters most."""
    chosen, original = summary.chosen, summary.original
    if chosen is None:
        return []
    found = []
    ratio = words.size_ratio(summary)
    if ratio is not None and original is not None:
        number, _, what = words.smaller(ratio).partition(" ")
        change = f"{words.decimal_bytes(original.bytes)} → {words.decimal_bytes(chosen.bytes)}"
        found.append((what, number, change) if ratio != 1 else ("size", "1×", change))
    if chosen.mean_bits is not None:
        found.append(("bits per weight", f"{chosen.mean_bits:.2f}", "mean; the original has 32"))
    lost = words.lost_words(summary)
    if lost is not None and original is not None:
        metrics = (original.metric or 0.0, chosen.metric or 0.0)
        was = " → ".join(words.metric_value(summary, value) for value in metrics)
        found.append((lost[1], lost[0], f"{words.plain(summary.metric_name)} {was}"))
    elif chosen.metric is not None:
        was = "test inputs"
        if chosen.metric_stderr is not None:
            error = words.metric_error(summary, chosen.metric_stderr)
            was += f"; ±{words.NBSP}{error} {'points' if words.in_percent(summary) else ''}"
        value = words.metric_value(summary, chosen.metric)
        found.append((words.plain(summary.metric_name), value, was.strip()))
    elif chosen.kl is not None:
        value = words.number(chosen.kl)
        found.append((words.divergence_name(summary), value, words.divergence_unit(summary)))
    if chosen.agreement is not None:
        found.append(("same answers", words.percent(chosen.agreement), "as the original model"))
    if summary.verification is not None:
        v = summary.verification
        outcome = f"{v.equal:,} of {v.tensors:,} integer tensors equal"
        if not v.tensors:
            outcome = f"{words.percent(v.same_class)} same class"
        found.append(("verification", "passed" if v.ok else "FAILED", outcome))
    return found


def exact_sizes(summary: Summary) -> Markup | None:
    """A table of every file and every part of the chosen one to the byte; None without any."""
    files = [(words.method_name(m), m.bytes) for m in summary.methods]
    parts = [(f"in the chosen file: {label}", size) for label, size in summary.bytes_breakdown[1:]]
    if not files:
        return None
    return table(
        "sizes-c",
        "Bytes of each method's file, and of the parts of the chosen one; those of the layers are "
        "in the table of all layers.",
        ("File or part", "Bytes"),
        [(words.plain(name), f"{size:,}") for name, size in files + parts],
    )


def changed_most(summary: Summary) -> Markup | None:
    """A table of the layers whose outputs differ most from float; None if that is not known."""
    known = [(row.output_error, row) for row in summary.layers if row.output_error is not None]
    if not known:
        return None
    worst = sorted(known, key=lambda pair: -pair[0])[:_WORST]
    rest = len(known) - len(worst)
    return table(
        "changed-c",
        "Difference of a layer's output from the float network's, as a share of it (root mean "
        f"square, on {summary.error_rows:,} calibration inputs), with everything that was rounded "
        "before it. It is what fewer bits cost, not a fault of the file."
        + (f" The other {rest:,} differ less; summary.json has all." if rest else ""),
        ("Layer", "Mean bits", "Output differs by"),
        [
            (
                Markup("<code>{}</code>").format(words.plain(row.name)),
                "32" if row.mean_bits is None else f"{row.mean_bits:.2f}",
                words.percent(error),
            )
            for error, row in worst
        ],
    )


def size_mismatch(summary: Summary) -> str | None:
    """A sentence where the parts of the file do not add up to its size; None if they do."""
    chosen = summary.chosen
    if chosen is None or len(summary.bytes_breakdown) < 2:
        return None
    total = sum(size for _, size in summary.bytes_breakdown[1:])
    if total == chosen.bytes:
        return None
    return (
        f"The parts add up to {words.exact_bytes(total)}, the chosen method's file has "
        f"{words.exact_bytes(chosen.bytes)}."
    )


def _or_absent(function: Any) -> Any:
    """A filter that turns None into a dash."""

    def shown(value: Any, *rest: Any) -> Any:
        return _ABSENT if value is None else function(value, *rest)

    return shown


def sized(count: int) -> Markup:
    """Bytes rounded, with the exact number at hand."""
    exact, short = words.exact_bytes(count), words.decimal_bytes(count)
    return Markup('<data value="{}" title="{}">{}</data>').format(count, exact, short)


def _with_error(value: str, error: float | None, shown: Any) -> Markup:
    """`value ± error`."""
    if error is None:
        return escape(value)
    return Markup('{}<span class="error"> ±\u00a0{}</span>').format(value, shown(error))


def stylesheet() -> str:
    """The page's style sheet."""
    return _resource("page.css")


def _resource(name: str) -> str:
    return resources.files("bitwright.report").joinpath(name).read_text(encoding="utf-8")


def _environment() -> Environment:
    """Jinja that escapes, that fails on a name it does not know, and keeps XML's rules."""
    return Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: words.plain(value) if type(value) is str else value,
    )


@cache
def _template() -> Template:
    environment = _environment()
    environment.filters.update(
        size=_or_absent(sized),
        num=_or_absent(words.number),
        share=_or_absent(words.percent),
        two=_or_absent(lambda value: f"{value:.2f}"),
        fine=lambda value: f"{words.significant(100 * value, 2)}\u00a0%",
        shape=lambda value: " × ".join(str(d) for d in value) or "scalar",
        seconds=lambda value: f"{value:.1f}\u00a0s",
        metric=_or_absent(
            lambda value, error, s: _with_error(
                words.metric_value(s, value), error, lambda e: words.metric_error(s, e)
            )
        ),
        estimate=_or_absent(
            lambda value, error: _with_error(
                words.number(value), error, lambda e: words.number(e, 2)
            )
        ),
    )
    environment.globals.update(
        method_name=words.method_name,
        widths_used=words.widths_used,
        verification_words=words.verification_words,
        runtime_name=words.runtime_name,
        smaller=words.smaller,
    )
    return environment.from_string(_resource("page.html.j2"))
