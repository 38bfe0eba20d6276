"""`train-graph`."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Annotated

import typer

from bitwright.cli.options import Quiet, Seed
from bitwright.console import Bars
from bitwright.errors import BitwrightError


def train_graph(
    dataset: Annotated[
        Path, typer.Option(help="Graph of labelled nodes (.npz), or labelled graphs (.txt, .gz).")
    ],
    out: Annotated[Path, typer.Option(help="Folder; the same command goes on in it.")] = Path(
        "build/graph"
    ),
    net: Annotated[str, typer.Option(help="gcn, gat, gin or sage.")] = "gcn",
    bits: Annotated[float, typer.Option(help="Of weights and activations, 2 to 8.")] = 8,
    widths: Annotated[
        str, typer.Option(help="As 2,4,8: mixed, by layer and in-degree; --bits is their mean.")
    ] = "",
    classes: Annotated[int, typer.Option(help="Of in-degree, for --widths.")] = 4,
    protect: Annotated[
        str,
        typer.Option(help="LOW:HIGH, chances that a node stays in float, by in-degree; 0:0 none."),
    ] = "0:0.1",
    percentile: Annotated[
        float | None, typer.Option(help="Left out of ranges; 0.001, or 0.01 from 4 bits down.")
    ] = None,
    hidden: Annotated[int, typer.Option(help="Channels between layers.")] = 16,
    layers: Annotated[int, typer.Option(help="Of message passing.")] = 2,
    dropout: Annotated[float, typer.Option(help="Behind each layer but the last.")] = 0.5,
    input_dropout: Annotated[
        float | None, typer.Option(help="Of the features of nodes; 0.9 for gin, else 0.")
    ] = None,
    epochs: Annotated[int, typer.Option(help="Of training.")] = 200,
    rate: Annotated[float, typer.Option(help="Adam's.")] = 0.01,
    cosine: Annotated[
        bool, typer.Option("--cosine", help="The rate falls along a cosine, epoch by epoch.")
    ] = False,
    decay: Annotated[float, typer.Option(help="Of weights.")] = 5e-4,
    fold: Annotated[int, typer.Option(help="That is tested, of 10, where graphs have labels.")] = 0,
    seed: Seed = 0,
    quiet: Quiet = False,
) -> None:
    """Train a graph network in float and with Degree-Quant; needs the extra `graph`."""
    try:
        from bitwright.graph import Recipe
        from bitwright.graph.run import Settings, run
    except ModuleNotFoundError as error:
        raise BitwrightError(
            f"{error.name} is not installed; pip install 'bitwright[graph]'"
        ) from error

    try:
        low, high = (float(part) for part in protect.split(":"))
    except ValueError:
        raise BitwrightError(f"--protect is {protect!r}; use LOW:HIGH, as 0:0.1") from None
    if widths and not re.fullmatch(r"[2-8](,[2-8])*", widths):
        raise BitwrightError(f"--widths is {widths!r}; use numbers from 2 to 8, as 2,4,8")
    if not widths and math.isfinite(bits) and bits != int(bits):
        raise BitwrightError(f"--bits is {bits}; a mean between whole numbers needs --widths")
    left_out = (0.001 if bits > 4 else 0.01) if percentile is None else percentile
    settings = Settings(
        str(dataset), net, bits, tuple(int(b) for b in widths.split(",") if b), classes,
        (low, high), left_out, hidden, layers, dropout, input_dropout, fold,
        Recipe(epochs, rate, decay, seed=seed, cosine=cosine),
    )  # fmt: skip
    with Bars(quiet) as bars:
        said = run(settings, out, bars.update)
        for name, row in said["rows"].items():
            bars.console.print(f"{name}: {row['val']:.1%} validation, {row['test']:.1%} test")
        size = said["bytes"]
        bars.console.print(f"bytes: {size['float']:,} -> {size['artefact']:,}")
        for file in ("model.safetensors", "graph.json", "graph.html"):
            bars.console.print(str(out / file), soft_wrap=True)
