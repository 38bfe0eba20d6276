"""`profile` and `bench`: times in the runtime here."""

from __future__ import annotations

from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from bitwright.cli.memory import defaults, remembered, typed
from bitwright.cli.options import (
    DataSpec,
    Model,
    Out,
    Overrides,
    Quiet,
    Repeats,
    Skip,
    TaskSpec,
    Threads,
    Weights,
)
from bitwright.cli.perform import perform
from bitwright.errors import BitwrightError


def profile(
    context: typer.Context,
    model: Model = None,
    weights: Weights = None,
    data: DataSpec = None,
    task: TaskSpec = None,
    skip: Skip = None,
    overrides: Overrides = None,
    out: Out = Path("build/profile"),
    threads: Threads = 1,
    repeats: Repeats = 100,
    quiet: Quiet = False,
) -> None:
    """Time every layer shape in the runtime here; `search --max-latency` reads the table."""
    _check(threads, repeats)
    given = {
        **defaults(), "model": model, "weights": weights, "data": data, "task": task,
        "skip": skip, "overrides": overrides,
    }  # fmt: skip
    if model is None and task is None:
        given = remembered(out, given, typed(context))
    perform(given, out, quiet, partial(_time_shapes, threads, repeats), goal=False)


def _check(threads: int, repeats: int) -> None:
    for name, value, least in (("--threads", threads, 0), ("--repeats", repeats, 1)):
        if value < least:
            raise BitwrightError(f"{name} must be {least} or more, not {value}")


def _time_shapes(threads: int, repeats: int, run: Any, console: Console, name: str) -> None:
    from bitwright.cost import calls

    found = run.profile(threads, repeats)
    count = Counter(shape for _, shape in calls(run.network))
    rows = [row for row in found.rows if row.shape in count]
    widths = [w.bits for w in rows[0].int8]
    table = Table(box=None, padding=(0, 1, 0, 0))
    against = [f"{b}:{widths[-1]}" for b in widths]
    for column in ("layer shape", "calls", "float µs", "int8 µs", "p95", *against):
        table.add_column(column, justify="left" if column == "layer shape" else "right")
    for row in rows:
        *narrow, widest = [w.time for w in row.int8]
        table.add_row(
            str(row.shape),
            str(count[row.shape]),
            f"{1e6 * row.float32.median_s:.1f}",
            f"{1e6 * row.int8_s:.1f}",
            f"{1e6 * widest.p95_s:.1f}",
            *(f"{t.median_s / max(widest.median_s, 1e-9):.2f}" for t in (*narrow, row.control)),
        )
    console.print(f"{name}: {found.machine}, {found.repeats} repeats", soft_wrap=True)
    console.print(table)
    top = widths[-1]
    console.print(
        f"{', '.join(against[:-1])}: time at these bits over time at {top}; {against[-1]}: of a "
        f"second copy at {top}, the noise. All widths are unpacked to 8 bits at load: fewer bits "
        "make the file smaller, not the network faster.",
        soft_wrap=True,
    )
    for form, seconds, total in (
        ("float", found.whole.float_s, found.whole.float_sum_s),
        ("8-bit", found.whole.int8_s, found.whole.int8_sum_s),
    ):
        console.print(
            f"whole network, {form}: {1e3 * seconds:.3f} ms, {seconds / max(total, 1e-9):.2f} of "
            f"the {1e3 * total:.3f} ms of its layers"
        )
    console.print(str(run.store.path("profile.json")), soft_wrap=True)


def bench(
    context: typer.Context,
    out: Out,
    threads: Threads = 1,
    repeats: Repeats = 200,
    quiet: Quiet = False,
) -> None:
    """Time the file of a run beside float and the runtime's own static int8; bytes and memory."""
    _check(threads, repeats)
    given = remembered(out, defaults(), typed(context))
    perform(given, out, quiet, partial(_time_forms, threads, repeats))


def _time_forms(threads: int, repeats: int, run: Any, console: Console, name: str) -> None:
    found = run.benchmark(threads, repeats)
    best = min((f for f in found.forms if f.name.startswith("static")), key=lambda f: f.latency_s)
    table = Table(title=f"{name}: {found.machine}, {repeats} rounds in turns")
    for column in (
        "form",
        "median ms",
        "p95",
        "of float",
        "of int8",
        "load ms",
        "bytes",
        "peak MB",
        "convs int8",
    ):
        table.add_column(column, justify="left" if column == "form" else "right")
    for form in found.forms:
        table.add_row(
            form.name,
            f"{1e3 * form.latency_s:.3f}",
            f"{1e3 * form.p95_s:.3f}",
            f"{form.ratio:.2f}",
            f"{found.ratio(form.name, best.name):.2f}",
            f"{1e3 * form.load_s:.1f}",
            f"{form.size_bytes:,}",
            f"{form.peak_bytes / 1e6:.1f}",
            "{} of {}".format(*form.convolutions),
        )
    console.print(table)
    console.print(
        f"of int8: of the faster static int8 ({best.name}); ratios: medians over the rounds; load: "
        "processor time; peak: of a process that loads the file and runs one row, without the "
        "runtime itself",
        soft_wrap=True,
    )
    console.print(str(run.store.path("bench.json")), soft_wrap=True)
