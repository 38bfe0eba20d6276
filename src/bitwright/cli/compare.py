"""`compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


def compare(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR DIR …", help="Folders of runs.")],
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("compare.html"),
    as_json: Annotated[
        bool, typer.Option("--json", help="For machines; the page as well.")
    ] = False,
) -> None:
    """Put several runs beside each other, in one page and a table."""
    from bitwright.console import print_comparison
    from bitwright.report.compare import compare as run

    found = run(*folders, out=out)
    if as_json:
        print(found.to_json())
        return
    console = Console(highlight=False, markup=False)
    print_comparison(console, found)
    console.print(str(out), soft_wrap=True)
