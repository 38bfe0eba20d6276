"""`prune`."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.console import Console

from bitwright.cli.options import (
    Augment,
    DataSpec,
    Device,
    Epochs,
    Model,
    Out,
    Quiet,
    Rows,
    Seed,
    TaskSpec,
    Temperature,
    Weights,
)
from bitwright.cli.tables import print_compressed
from bitwright.cli.wanted import command_line, task_of
from bitwright.console import Bars


def prune(
    out: Out,
    model: Model = None,
    weights: Weights = None,
    data: DataSpec = None,
    task: TaskSpec = None,
    keep: Annotated[
        str, typer.Option(help="40% of --of; 180KB; 3ms here; auto: as --budget makes best.")
    ] = "50%",
    of: Annotated[
        str, typer.Option(help="parameters, macs, bytes (float32) or latency (measured here).")
    ] = "parameters",
    score: Annotated[str, typer.Option(help="removal (use this) or trace (HAP's).")] = "removal",
    floor: Annotated[float, typer.Option(help="Share of each layer's channels that stay.")] = 0.05,
    multiple: Annotated[
        int, typer.Option(help="Of what stays of larger layers; 16 for a faster file.")
    ] = 1,
    implant: Annotated[
        float, typer.Option(help="Largest share of the channels taken that get implants.")
    ] = 0.0,
    rank: Annotated[int, typer.Option(help="Of implants; 0: a 1×1 convolution.")] = 0,
    compensate: Annotated[
        bool, typer.Option(help="Refit layers to the inputs that they still have.")
    ] = True,
    skip: Annotated[list[str] | None, typer.Option(help="Layer to leave whole.")] = None,
    epochs: Epochs = 0,
    augment: Augment = None,
    temperature: Temperature = 4.0,
    rate: Annotated[float, typer.Option(help="Of fine-tuning, relative to weights.")] = 1e-3,
    seed: Seed = 0,
    calibration_rows: Rows = 1024,
    device: Device = "cpu",
    budget: Annotated[
        str | None, typer.Option(help="Quantize what is left as well: 3bit, 12.5%, 180KB.")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Remove the channels, heads and widths whose removal loses least, then quantize if asked."""
    from bitwright.pipeline import PruneSettings, prune_and_compress, run_prune
    from bitwright.pipeline.keep import check_prune_settings

    given = locals()
    names = ("keep", "of", "score", "floor", "multiple", "implant", "rank", "compensate",
             "epochs", "augment", "temperature", "rate", "seed", "calibration_rows",
             "device")  # fmt: skip
    settings = check_prune_settings(
        PruneSettings(**{k: given[k] for k in names}, skip=tuple(skip or ()))
    )
    with Bars(quiet) as bars:
        whole, name = task_of(given)
        found = run_prune(whole, settings, out, bars.update, budget)
        _print_pruned(bars.console, found, whole.metric_name)
        if budget is not None:
            result, summary = prune_and_compress(
                whole, found, budget, out, name, command_line(), bars.update
            )
            print_compressed(bars.console, out, result, summary)


def _print_pruned(console: Console, found: Any, metric: str) -> None:
    before, after = found.before, found.after
    for unit in ("parameters", "macs", "bytes"):
        share = after[unit] / max(before[unit], 1)
        console.print(f"{unit}: {before[unit]:,.0f} -> {after[unit]:,.0f} ({share:.1%})")
    judged = found.judgement
    told = "" if judged.metric is None else f", {metric} {judged.metric:.4f}"
    console.print(f"KL to the original {judged.kl:.4f} ± {judged.kl_stderr:.4f}{told}")
    for file in ("pruned.safetensors", "pruned.onnx", "prune.json", "pruning.html"):
        console.print(str(found.folder / file), soft_wrap=True)
