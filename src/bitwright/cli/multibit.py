"""`train-multibit`."""

from __future__ import annotations

from typing import Annotated

import typer

from bitwright.cli.options import (
    Augment,
    DataSpec,
    Model,
    Out,
    Quiet,
    Seed,
    Skip,
    TaskSpec,
    Temperature,
    Weights,
)
from bitwright.cli.wanted import task_of
from bitwright.console import Bars


def train_multibit(
    out: Out,
    model: Model = None,
    weights: Weights = None,
    data: DataSpec = None,
    task: TaskSpec = None,
    bits: Annotated[float, typer.Option(help="Stored bits a weight, everything counted.")] = 1.0,
    loops: Annotated[int, typer.Option(help="Of pruning, bases and coordinates.")] = 4,
    epochs: Annotated[int, typer.Option(help="Of bases, and of coordinates, in a loop.")] = 1,
    straight: Annotated[int, typer.Option(help="Straight-through epochs at the end.")] = 2,
    from_float: Annotated[
        bool, typer.Option("--from-float", help="Begin those at the float weights, not the bases'.")
    ] = False,
    group: Annotated[
        list[str] | None,
        typer.Option(help="LAYER=kernel, pixel, channel or a number of weights that share bases."),
    ] = None,
    size: Annotated[int, typer.Option(help="About so many weights share bases elsewhere.")] = 64,
    most: Annotated[int, typer.Option(help="Bases that a group begins with, 1 to 8.")] = 6,
    curvature: Annotated[str, typer.Option(help="Of pruning: amsgrad, gauss-newton.")] = "amsgrad",
    activation_bases: Annotated[
        int, typer.Option(help="Binary bases of what each layer reads, 1 to 4; 0: float.")
    ] = 0,
    labels: Annotated[
        bool, typer.Option("--labels", help="Learn from labels, not from the float model.")
    ] = False,
    batch: Annotated[int, typer.Option(help="Rows in a step.")] = 128,
    rate: Annotated[float, typer.Option(help="Of coordinates, relative to their mean.")] = 1e-2,
    straight_rate: Annotated[float, typer.Option(help="Of straight-through epochs.")] = 1e-2,
    final: Annotated[int, typer.Option(help="Epochs of coordinates after all.")] = 1,
    augment: Augment = None,
    temperature: Temperature = 4.0,
    skip: Skip = None,
    seed: Seed = 0,
    quiet: Quiet = False,
) -> None:
    """Train weights as few signed bases (ALQ): down to less than a bit a weight."""
    from bitwright.multibit import Recipe
    from bitwright.pipeline import MultibitSettings
    from bitwright.pipeline import train_multibit as run

    given = locals()
    recipe = Recipe(bits=bits, loops=loops, bases=epochs, coordinates=epochs, straight=straight,
                    final=final, batch=batch, rate=rate, straight_rate=straight_rate,
                    curvature=curvature, seed=seed)  # fmt: skip
    groups = dict(g.partition("=")[::2] for g in group or ())
    settings = MultibitSettings(recipe, groups, size, most, tuple(skip or ()), labels,
                                temperature, augment, activation_bases, from_float)  # fmt: skip
    with Bars(quiet) as bars:
        whole, _ = task_of(given)
        found = run(whole, settings, out, bars.update)
        bars.console.print(f"{found.bits:.3f} bits a weight: signs, coordinates, counts of bases")
        if found.judgement is not None:
            judged = found.judgement
            told = "" if judged.metric is None else f", {whole.metric_name} {judged.metric:.4f}"
            bars.console.print(f"KL to the original {judged.kl:.4f} ± {judged.kl_stderr:.4f}{told}")
        for name, spent in found.sizes.items():
            bars.console.print(f"{out / name}: {spent:,} bytes", soft_wrap=True)
        bars.console.print(str(out / "multibit.html"), soft_wrap=True)
