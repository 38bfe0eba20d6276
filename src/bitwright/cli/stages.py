"""The commands that are stages of a run, and the demo."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import typer

from bitwright.cli import acts
from bitwright.cli.memory import REMEMBERED, defaults, remembered, typed
from bitwright.cli.options import (
    AccumulatorBits,
    AccumulatorKind,
    AccumulatorMode,
    Activations,
    Augment,
    Batch,
    BudgetText,
    DataSpec,
    Device,
    Epochs,
    Equalize,
    Evaluations,
    Granularity,
    Levels,
    MaxBops,
    MaxDrop,
    MaxKl,
    MaxLatency,
    Method,
    Model,
    Order,
    Out,
    Overrides,
    Processes,
    ProfileFile,
    Quiet,
    Ranges,
    Rate,
    RefitHead,
    Rounding,
    Rows,
    Score,
    Seed,
    Skip,
    TaskSpec,
    Temperature,
    Weights,
)
from bitwright.cli.perform import perform


def stage(help_text: str, act: acts.Act) -> Callable[..., None]:
    """A command with the options of a run that does `act` on it."""

    fixed = {"refit_head": True} if act is acts.refit_head else {}

    def command(
        context: typer.Context,
        out: Out,
        model: Model = None,
        weights: Weights = None,
        data: DataSpec = None,
        task: TaskSpec = None,
        budget: BudgetText = None,
        method: Method = "channels",
        score: Score = "actual-error",
        max_drop: MaxDrop = None,
        max_kl: MaxKl = None,
        overrides: Overrides = None,
        activations: Activations = "8",
        epochs: Epochs = 0,
        order: Order = "all",
        seed: Seed = 0,
        skip: Skip = None,
        evaluations: Evaluations = 150,
        batch: Batch = 1,
        processes: Processes = 0,
        calibration_rows: Rows = 1024,
        device: Device = "cpu",
        max_bops: MaxBops = None,
        max_latency: MaxLatency = None,
        profile: ProfileFile = None,
        rounding: Rounding = "nearest",
        levels: Levels = "uniform",
        ranges: Ranges = None,
        granularity: Granularity = "edge",
        equalize: Equalize = 0.0,
        augment: Augment = None,
        temperature: Temperature = 4.0,
        rate: Rate = 1e-3,
        refit_head: RefitHead = False,
        accumulator: AccumulatorBits = None,
        accumulator_kind: AccumulatorKind = "wrap",
        accumulator_mode: AccumulatorMode = "guaranteed",
        quiet: Quiet = False,
    ) -> None:
        given = {k: v for k, v in locals().items() if k in REMEMBERED}
        if model is None and task is None:
            given = remembered(out, given, typed(context))
        perform(given | fixed, out, quiet, act)

    command.__doc__ = help_text
    return command


#: command -> its help, and what it does on the run
STAGES: dict[str, tuple[str, acts.Act]] = {
    "compress": ("All stages: from a trained network to a small file that runs.", acts.compress),
    "preflight": (
        "Export the float model, run it, compare; estimate time and memory.",
        acts.preflight,
    ),
    "measure": ("Hessian traces of every channel and activation.", acts.measure),
    "search": ("Choose the widths.", acts.search),
    "quantize": ("Round the weights and correct every layer's outputs.", acts.quantize),
    "finetune": ("Train the quantized network towards the float model's answers.", acts.finetune),
    "refit-head": (
        "Refit the classifier to the float model's answers, write both files.",
        acts.refit_head,
    ),
    "export": ("Write the packed artefact and the ONNX file.", acts.export),
    "verify": (
        "Prove the ONNX file equal to the integer reference, tensor by tensor.",
        acts.verify,
    ),
    "evaluate": ("Judge the file beside float, uniform and layers.", acts.evaluate),
    "report": ("Write the report.", acts.compress),
}


def demo(
    out: Out = Path("build/demo"),
    budget: BudgetText = None,
    method: Method = "channels",
    epochs: Epochs = 0,
    seed: Seed = 0,
    quiet: Quiet = False,
) -> None:
    """Compress the embedded default: a small residual network on Fashion-MNIST."""
    given = {
        **defaults(), "model": "demo", "data": "demo", "budget": budget, "method": method,
        "epochs": epochs, "seed": seed,
    }  # fmt: skip
    perform(given, out, quiet, acts.compress)
