"""The command line: parse, call the library, print, exit."""

from __future__ import annotations

import sys
from collections.abc import Callable

import typer

from bitwright.cli.compare import compare
from bitwright.cli.graphs import train_graph
from bitwright.cli.multibit import train_multibit
from bitwright.cli.pruning import prune
from bitwright.cli.stages import STAGES, demo, stage
from bitwright.cli.timing import bench, profile
from bitwright.cli.written import convert_to, inspect, overflow
from bitwright.console import root_options
from bitwright.errors import BitwrightError
from bitwright.interrupts import interruptible

#: in the order of `bitwright --help`
COMMANDS: dict[str, Callable[..., None]] = {
    **{name: stage(*what) for name, what in STAGES.items()},
    "demo": demo,
    "prune": prune,
    "train-multibit": train_multibit,
    "profile": profile,
    "inspect": inspect,
    "compare": compare,
    "overflow": overflow,
    "bench": bench,
    "convert-to": convert_to,
    "train-graph": train_graph,
}

app = typer.Typer(
    name="bitwright",
    help="Make trained PyTorch networks small: every channel gets the bits it deserves.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.callback()(root_options)
for _name, _command in COMMANDS.items():
    app.command(_name)(interruptible()(_command))


def main() -> None:
    """Entry point: a :class:`BitwrightError` becomes one line and exit status 2."""
    try:
        app()
    except (BitwrightError, OSError) as error:  # of the system: a full disk, a folder not ours
        print(f"bitwright: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(2) from None


__all__ = ["COMMANDS", "app", "main"]
