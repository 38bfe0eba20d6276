"""A command on a run: from its options to the stage, in one process or several."""

from __future__ import annotations

import contextlib
import io
import logging
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from bitwright.cli.acts import Act, finetune, measure, preflight
from bitwright.cli.memory import remember
from bitwright.cli.wanted import assemble
from bitwright.console import Bars
from bitwright.errors import BitwrightError


def perform(
    given: dict[str, Any],
    out: Path,
    quiet: bool,
    act: Act,
    goal: bool = True,
) -> None:
    """Do `act` on the run in `out` with the options `given`.

    With `goal`, what no plan can meet is refused first.
    """
    from bitwright.curvature import processes
    from bitwright.pipeline import Run

    given = {k: str(v) if isinstance(v, Path) else v for k, v in given.items()}
    with (
        processes.started() as group,
        tempfile.TemporaryDirectory() as scratch,
        Bars(quiet or group.rank > 0) as bars,
    ):
        if group.size > 1:
            out = _shared(out, act, group, Path(scratch) / "run")
        task, settings, name = assemble(given)
        run = Run(task, settings, out, bars.update)
        for note in run.task.notes:
            bars.print(note)
        with _without_logs():
            _ = run.network  # nothing is written for a model that cannot be traced
        if goal and act not in (preflight, measure):
            run.check_goal()
        _ = run.preflight
        remember(run.store.path("run.json"), given)
        act(run, Console(quiet=True) if group.rank else bars.console, name)


def _shared(out: Path, act: Act, group: Any, scratch: Path) -> Path:
    """The folder of one of several processes: the first one's is the run's, others have copies."""
    if act not in (measure, finetune):
        raise BitwrightError(
            f"{group.size} processes (torchrun) can only `measure` and `finetune`; run the other "
            "stages in one"
        )
    if act is finetune and not (out / "quantized.safetensors").is_file():
        raise BitwrightError(
            f"{out} holds no quantized network that {group.size} processes could fine-tune: run "
            "`bitwright quantize` with these options first, in one process"
        )
    if group.rank and out.is_dir():
        shutil.copytree(out, scratch)
    group.together()  # nobody writes before all have copied
    return scratch if group.rank else out


@contextmanager
def _without_logs() -> Iterator[None]:
    """What torch.export logs about a model that it cannot trace; the error says it in a line."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)
