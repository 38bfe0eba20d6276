"""The options that commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[
    str | None, typer.Option(help="FILE.py:factory or package.module:factory; or demo.")
]
Weights = Annotated[
    Path | None, typer.Option(help="Weights for the model: .safetensors, .pt, .th.")
]
DataSpec = Annotated[
    str | None, typer.Option("--data", help="npz:PATH, folder:PATH, FILE.py:factory, or demo.")
]
TaskSpec = Annotated[
    str | None, typer.Option("--task", help="FILE.py:task instead of --model and --data.")
]
Out = Annotated[Path, typer.Option(help="Folder of the run; finished stages in it are reused.")]
BudgetText = Annotated[
    str | None,
    typer.Option("--budget", help="3bit (mean), 12.5% of the float file, or 180KB. Default 3bit."),
]
Method = Annotated[
    str,
    typer.Option(
        help="From predicted losses: channels (use this), layers, uniform, hawq (V1), pareto "
        "(HAWQ-V2), ilp (HAWQ-V3). By evaluating plans, in minutes: local-moves (the best of these "
        "on larger networks), cw-hawq and cross-entropy (no better than channels), random-ratios, "
        "haq (far worse)."
    ),
]
Score = Annotated[
    str,
    typer.Option(
        help="Predicted loss of a channel: actual-error, trace, eigenvalue, fisher or measured."
    ),
]
MaxDrop = Annotated[
    float | None, typer.Option(help="Smallest file that loses at most so many points.")
]
MaxKl = Annotated[float | None, typer.Option(help="Smallest file within so much KL (nats).")]
MaxBops = Annotated[
    str | None,
    typer.Option(help="Bound on Σ MACs × weight bits × activation bits: 300M, 1.2G, 3T."),
]
MaxLatency = Annotated[
    str | None,
    typer.Option(help="Bound on the sum of the layers' times: 800us, 3ms. Measured here, or:"),
]
ProfileFile = Annotated[
    str | None,
    typer.Option("--profile", help="profile.json of `bitwright profile`, with those times."),
]
Overrides = Annotated[Path | None, typer.Option(help="YAML: bounds of layers, float, ties.")]
Activations = Annotated[str, typer.Option(help="Mean bits, 2 to 8; auto (with --max-bops); float.")]
Rounding = Annotated[
    str,
    typer.Option(help="nearest; feedback: weights make up for each other's errors; or learned."),
]
Levels = Annotated[
    str,
    typer.Option(help="Of a channel: uniform; or multi-bit: sums of 2 to 4 bases where they pay."),
]
Epochs = Annotated[int, typer.Option(help="Of fine-tuning; 0 skips it.")]
Order = Annotated[
    str,
    typer.Option(help="Of fine-tuning: all layers at once, or hawq's (measured no better)."),
]
Granularity = Annotated[
    str,
    typer.Option(
        help="Of activations' widths below 8 bits: edge, or channel (loses less, runs slower)."
    ),
]
Ranges = Annotated[
    str | None,
    typer.Option(help="Of activations: curvature (below 8 bits), squared (else) or percentile."),
]
Equalize = Annotated[
    float,
    typer.Option(help="0 to 1: how far ranges of activations' channels are made equal."),
]
Augment = Annotated[
    str | None, typer.Option(help="Images while fine-tuning: flip, crop4, mixup, or flip,crop4.")
]
Temperature = Annotated[float, typer.Option(help="Of the answers that fine-tuning compares.")]
Rate = Annotated[float, typer.Option(help="Of fine-tuning, relative to each layer's mean step.")]
RefitHead = Annotated[
    bool,
    typer.Option(help="Refit the classifier at last, kept only where held-out rows gain."),
]
AccumulatorBits = Annotated[
    int | None,
    typer.Option("--accumulator", help="Bits that every sum of products must fit, 12 to 32."),
]
AccumulatorKind = Annotated[
    str,
    typer.Option(help="What a sum that does not fit does: wrap, pairs (vpmaddubsw), saturate."),
]
AccumulatorMode = Annotated[
    str,
    typer.Option(help="guaranteed: no input overflows, a theorem; data: no calibration row does."),
]
Seed = Annotated[int, typer.Option(help="Of every random choice.")]
Skip = Annotated[
    list[str] | None,
    typer.Option(help="Layer to leave in float (a name, or a prefix ending in .)."),
]
Evaluations = Annotated[int, typer.Option(help="Plans that a search evaluates.")]
Batch = Annotated[int, typer.Option(help="Plans that a search proposes at a time.")]
Processes = Annotated[
    int, typer.Option(help="That evaluate a batch; 0: as many as there are cores.")
]
Rows = Annotated[int, typer.Option("--calibration-rows", help="Used at most.")]
Device = Annotated[str, typer.Option(help="cpu or cuda: where measuring and fine-tuning run.")]
Threads = Annotated[int, typer.Option(help="Of the runtime; 0: as it chooses.")]
Repeats = Annotated[int, typer.Option(help="Runs behind each median.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]
