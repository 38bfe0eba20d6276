"""What a finished run prints."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text


def print_compressed(
    console: Console, folder: Path, result: Any, summary: Any, bounds: Sequence[str] = ()
) -> None:
    """The table of methods, the proof, promises of accumulators, files; status 1 if it failed."""
    print_table(console, summary)
    sizes = result.sizes
    check = result.verification
    console.print(
        f"verified: {check.equal} of {check.tensors} integer tensors equal in the runtime on "
        f"{check.rows} rows, same class on {check.same_class:.2%}, {check.qlinear_convolutions} of "
        f"{check.convolutions} convolutions fused" + ("" if check.ok else f"; FAILED: {check.why}")
    )
    print_lines(console, bounds)
    for file in ("model.safetensors", "model.onnx"):
        console.print(f"{folder / file}  {sizes[file]:,} bytes", soft_wrap=True)
    console.print(f"{folder / 'report.html'}", soft_wrap=True)
    if not check.ok:
        raise typer.Exit(1)


def print_lines(console: Console, lines: Sequence[str]) -> None:
    """Each line as it is."""
    for line in lines:
        console.print(line, soft_wrap=True, highlight=False, markup=False)


def print_table(console: Console, summary: Any) -> None:
    """The methods of a summary, a row each."""
    table = Table(title=f"{summary.model}: {summary.target}")
    columns = ("method", "bits", "bytes", "KL to float", summary.metric_name, "agree", "ms")
    for column in columns:
        table.add_column(column, justify="left" if column == "method" else "right")
    for row in summary.methods:
        table.add_row(
            Text(row.name, style="bold" if row.chosen else ""),
            "32" if row.mean_bits is None else f"{row.mean_bits:.2f}",
            f"{row.bytes:,}",
            "–" if row.kl is None else with_error(row.kl, row.kl_stderr),
            "–" if row.metric is None else f"{100 * row.metric:.2f} %",
            "–" if row.agreement is None else f"{100 * row.agreement:.2f} %",
            "–" if row.latency_ms is None else f"{row.latency_ms:.2f}",
        )
    console.print(table)


def with_error(value: float, error: float) -> str:
    """`value ± error`, with four decimals or as many as two figures of the error take."""
    decimals = 4
    while decimals < 9 and 0 < error < 10 ** (1 - decimals):
        decimals += 1
    return f"{value:.{decimals}f} ± {error:.{decimals}f}"
