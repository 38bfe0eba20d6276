"""Progress: bars with an ETA on a terminal, plain lines elsewhere, nothing when quiet."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

_EVERY_S = 10.0


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
