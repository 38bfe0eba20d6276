"""What the command line shows: progress, and what is inside a file.

Progress is bars with an ETA on a terminal, plain lines elsewhere, nothing when quiet.
"""

from __future__ import annotations

import time
from types import TracebackType
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from bitwright.report import compared
from bitwright.report.comparison import Comparison
from bitwright.report.inspection import Inspection
from bitwright.version import installed

_EVERY_S = 10.0
#: characters of a histogram's longest bar
_BAR = 40


class Bars:
    """One bar for each stage, created when the stage first reports.

    On anything but a terminal, a line when a stage begins, one every ten seconds with an estimate
    of what is left, and one when it ends; stages that are over at once stay silent.
    """

    def __init__(self, quiet: bool = False) -> None:
        self.console = Console(highlight=False, markup=False)  # names may hold brackets
        self.quiet = quiet
        self.live = self.console.is_terminal and not quiet
        self.progress = Progress(
            TextColumn("{task.description:>22}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=self.console,
        )
        self.tasks: dict[str, TaskID] = {}
        self.begun: dict[str, float] = {}
        self.told: dict[str, float] = {}

    def __enter__(self) -> Bars:
        if self.live:
            self.progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.live:
            self.progress.stop()

    def print(self, text: str) -> None:
        """A line above the bars."""
        if not self.quiet:
            self.console.print(text)

    def update(self, stage: str, fraction: float) -> None:
        """Report that `fraction` of a stage is done."""
        if self.quiet:
            return
        if self.live:
            if stage not in self.tasks:
                self.tasks[stage] = self.progress.add_task(stage, total=1.0)
            self.progress.update(self.tasks[stage], completed=fraction)
            return
        now = time.monotonic()
        if stage not in self.begun:
            self.begun[stage] = self.told[stage] = now
        spent = now - self.begun[stage]
        if fraction >= 1.0:
            if spent >= 2.0 and self.told[stage] >= 0:
                self.console.print(f"{stage}: done in {spent:.0f} s")
            self.told[stage] = -1.0
        elif self.told[stage] >= 0 and now - self.told[stage] >= _EVERY_S:
            left = spent * (1 - fraction) / max(fraction, 1e-9)
            self.console.print(f"{stage}: {fraction:.0%}, about {left:.0f} s left")
            self.told[stage] = now


def print_inspection(console: Console, found: Inspection) -> None:
    """Facts, the table and the histogram, in the width that there is."""
    facts = Table(box=None, show_header=False, padding=(0, 1, 0, 0))
    for name, value in found.facts.items():
        facts.add_row(Text(_plain(name), style="bold"), Text(_plain(_number(value))))
    console.print(facts)
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold")
    for i, name in enumerate(found.columns):
        words = all(isinstance(row[i], str) for row in found.rows)
        table.add_column(name, justify="left" if words else "right", overflow="fold")
    for row in found.rows:
        table.add_row(*(Text(_plain(_number(value))) for value in row))
    console.print()
    console.print(table)
    if not found.histogram:
        return
    console.print()
    total, most = sum(found.histogram.values()), max(found.histogram.values())
    bars = Table(box=None, padding=(0, 1, 0, 0), header_style="bold")
    for name in ("bits", found.unit, "share"):
        bars.add_column(name, justify="right")
    bars.add_column("")
    for bits, count in found.histogram.items():
        bar = "█" * max(1, round(_BAR * count / most))
        bars.add_row(str(bits), f"{count:,}", f"{count / total:.1%}", bar)
    console.print(bars)


def print_comparison(console: Console, found: Comparison) -> None:
    """A row for each run, the options that differ, and what has to be known."""
    table = Table(title=f"{len(found.runs)} runs")
    names = {run.metric_name for run in found.runs if run.lost is not None}
    lost = f"{names.pop()} lost" if len(names) == 1 else "lost"
    for column in ("run", "allocator", "bits", "bytes", "ratio", "KL to float", lost, "ms"):
        left = column in ("run", "allocator")
        table.add_column(Text(_plain(column)), justify="left" if left else "right", overflow="fold")
    for run in found.runs:
        table.add_row(
            *(
                Text(_plain(text))
                for text in (
                    run.name,
                    run.allocator or "–",
                    "–" if run.mean_bits is None else f"{run.mean_bits:.2f}",
                    "–" if run.size_bytes is None else f"{run.size_bytes:,}",
                    "–" if run.ratio is None else f"{run.ratio:.1f}×",
                    compared.estimate(run).replace("\u00a0", " "),
                    compared.lost(run).replace("\u00a0", " "),
                    "–" if run.latency_ms is None else f"{run.latency_ms:.2f}",
                )
            )
        )
    console.print(table)
    if found.differing:
        options = Table(title="what differs")
        for column in ("option", *(run.name for run in found.runs)):
            options.add_column(Text(_plain(column)), overflow="fold")
        for name in found.differing:
            values = [(run.settings or {}).get(name, "–") for run in found.runs]
            options.add_row(*(Text(_plain(value)) for value in (name, *values)))
        console.print(options)
    for note in found.notes:
        console.print(_plain(note), soft_wrap=True)


def _number(value: str | int | float) -> str:
    """Text as it is, whole numbers by thousands, others to six digits."""
    if isinstance(value, bool | str):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.6g}"


def _plain(text: str) -> str:
    """Without what could move a terminal's cursor."""
    return "".join(c if c.isprintable() else "�" for c in text)


def _told(asked: bool) -> None:
    if asked:
        print(f"bitwright {installed()}")
        raise typer.Exit


def root_options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_told, is_eager=True, help="Print it and exit."),
    ] = False,
) -> None:
    """Make trained PyTorch networks small: every channel gets the bits it deserves."""
