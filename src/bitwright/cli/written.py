"""Commands on files that a run has written: `inspect`, `overflow`, `convert-to`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from bitwright.cli.options import AccumulatorKind


def inspect(
    file: Annotated[
        Path, typer.Argument(help="model.safetensors, model.onnx, plan.json, sensitivity.…")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> None:
    """Say what is inside a file, with the widths of its weights."""
    from bitwright.console import print_inspection
    from bitwright.report import inspection

    found = inspection.inspect(file)
    if as_json:
        print(json.dumps(inspection.to_data(found), indent=1))
    else:
        print_inspection(Console(highlight=False, markup=False), found)


def overflow(
    file: Annotated[Path, typer.Argument(help="model.safetensors, or the folder of a run.")],
    accumulator: Annotated[int, typer.Option(help="Bits of the accumulator, 12 to 32.")] = 16,
    accumulator_kind: AccumulatorKind = "wrap",
) -> None:
    """Prove that no input can overflow an accumulator, layer by layer; or name the smallest fix."""
    from bitwright import overflow as sums
    from bitwright.pipeline import load

    found = sums.require(load(file).quantized, sums.Accumulator(accumulator, accumulator_kind))
    for line in sums.lines(found):
        print(line)


def convert_to(
    form: Annotated[
        str, typer.Argument(metavar="FORMAT", help="c, compressed-tensors or torchao.")
    ],
    file: Annotated[Path, typer.Argument(help="model.safetensors of a run.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder; default: FORMAT beside the file.")
    ] = None,
) -> None:
    """Write an artefact in the form of another program."""
    from bitwright.deploy import artefact, formats

    written = formats.convert_to(form, artefact.load(file).quantized, out or file.parent / form)
    console = Console(highlight=False, markup=False)
    for note in written.notes:
        console.print(note, soft_wrap=True)
    for path in written.files:
        console.print(f"{path}  {path.stat().st_size:,} bytes", soft_wrap=True)
