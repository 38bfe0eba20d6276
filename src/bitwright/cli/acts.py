"""What each stage of a run does, and prints."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from bitwright.cli.tables import print_compressed, print_lines, print_table
from bitwright.cli.wanted import command_line

#: on a run, with what prints and the model's name
Act = Callable[[Any, Console, str], None]


def compress(run: Any, console: Console, name: str) -> None:
    """All stages, the report, and its table."""
    from bitwright.pipeline import finish

    result, summary = finish(run, name, command_line())
    print_compressed(console, run.folder, result, summary, run.accumulators)


def preflight(run: Any, console: Console, name: str) -> None:
    """What the model has, and what measuring it will take."""
    found = run.preflight
    console.print(
        f"{name}: {found.weights:,} weights in {found.layers} layers, {found.edges} 8-bit edges; "
        f"float ONNX file {found.float_bytes:,} bytes, within {found.error:.2g} of the model"
    )
    if found.skipped:
        console.print(f"left in float: {', '.join(found.skipped)}")
    console.print(
        f"measuring will take about {found.time_s:.0f} s and {found.memory_bytes / 1e6:,.0f} MB"
    )


def measure(run: Any, console: Console, name: str) -> None:
    """The trace of every layer with its errors."""
    from bitwright.curvature import processes

    sensitivity = run.sensitivity
    if processes.group().rank:
        return
    table = Table(title=f"{name}: Hessian trace of the KL to float")
    for column in ("layer", "trace", "± probes", "± data", "per weight"):
        table.add_column(column, justify="left" if column == "layer" else "right")
    for layer in run.network.layers:
        found = sensitivity.layers[layer.name]
        total = float(found.value.sum())
        table.add_row(
            layer.name,
            f"{total:.4g}",
            f"{(found.stderr_probe**2).sum() ** 0.5:.2g}",
            f"{found.stderr_data.sum():.2g}",
            f"{total / layer.weights:.3g}",
        )
    console.print(table)
    console.print(str(run.store.path("sensitivity.safetensors")), soft_wrap=True)


def search(run: Any, console: Console, name: str) -> None:
    """What the plan costs and is predicted to lose."""
    from bitwright.pipeline.summarize import limit_lines

    plan = run.plan
    console.print(
        f"{plan.method}: {plan.cost:,} bits, {plan.cost / run.network.weights:.4f} a weight, "
        f"predicted loss {plan.loss:.4g}"
    )
    if run.within_error is not None:
        console.print(
            f"{run.within_error:.0%} of the weights would get another width if the predicted "
            "losses came out one standard error off (more calibration rows make them surer)"
        )
    for line in limit_lines(run):
        console.print(line)
    console.print(str(run.store.path("plan.json")), soft_wrap=True)


def quantize(run: Any, console: Console, name: str) -> None:
    """Where the rounded weights are."""
    _ = run.corrected
    console.print(str(run.store.path("quantized.safetensors")), soft_wrap=True)


def finetune(run: Any, console: Console, name: str) -> None:
    """Where the trained weights are."""
    _ = run.quantized
    console.print(str(run.store.path("model.safetensors")), soft_wrap=True)


def refit_head(run: Any, console: Console, name: str) -> None:
    """What refitting the classifier gave, and both files."""
    from bitwright.pipeline.summarize import refit_line

    console.print(refit_line(run))
    _ = run.onnx
    for file in ("model.safetensors", "model.onnx"):
        console.print(str(run.store.path(file)), soft_wrap=True)


def export(run: Any, console: Console, name: str) -> None:
    """The ONNX file and its bytes."""
    path = run.onnx
    console.print(f"{path}  {path.stat().st_size:,} bytes", soft_wrap=True)


def verify(run: Any, console: Console, name: str) -> None:
    """How the proof came out; status 1 where the file differs."""
    check = run.verification
    console.print(
        f"{'equal' if check.ok else 'DIFFERENT'}: {check.equal} of {check.tensors} integer tensors "
        f"equal on {check.rows} rows; same class on {check.same_class:.2%}; "
        f"{check.qlinear_convolutions} of {check.convolutions} convolutions fused"
    )
    for d in check.differences:
        console.print(f"  {d}", soft_wrap=True, highlight=False, markup=False)
    print_lines(console, run.accumulators)
    if not check.ok:
        print_lines(console, [f"it differs: {check.why}"])
        raise typer.Exit(1)


def evaluate(run: Any, console: Console, name: str) -> None:
    """The table of methods."""
    from bitwright.pipeline.summarize import summarize

    print_table(console, summarize(run, name, command_line()))
