"""What each step buys: one network and size, one step more in every row. A part of `quality.py`.

`python benchmarks/quality_ablation.py` prints the table of docs/ablation.md from the kept results.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import harness
import numpy as np
from peers import cases

from bitwright import quantize
from bitwright.pipeline import Run, Settings
from bitwright.pipeline.budget import parse_budget
from bitwright.quantize import Quantized
from bitwright.task import Task

#: mean bits of weights; activations have 8
BITS = (4, 3, 2)
#: step -> what it sets, each on top of those above it
LADDER: dict[str, Mapping[str, Any]] = {
    "scales and biases fitted to the float network": {"method": "uniform"},
    "bits by layer (actual error)": {"method": "layers"},
    "bits by channel, by the trace": {"method": "channels", "score": "trace"},
    "bits by channel, by the actual error": {"score": "actual-error"},
    "error feedback, plan chosen for it": {"rounding": "feedback"},
    "classifier refitted": {"refit_head": True},
}
#: what is tried instead of the step above it, and is not on by itself
ASIDE: dict[str, Mapping[str, Any]] = {
    "ranges equalized by half": {"equalize": 0.5},
    "ranges of activations by curvature": {"ranges": "curvature"},
    "learned rounding in place of error feedback": {"rounding": "learned"},
}


def plain(run: Run, bits: int) -> Quantized:
    """One width, nearest levels with least-squares steps, nothing fitted afterwards."""
    network = run.network
    widths = {la.name: np.full(la.rows, bits) for la in network.layers}
    layers = quantize.round_weights(network, quantize.weight_tables(network), widths)
    return Quantized(network, layers, quantize.calibrate(network, run.calibration))


def measure(rows: harness.Rows, work: Task, judged: Any, quick: bool) -> None:
    """Add a row a step.

    Args:
        rows: to add to.
        work: network and rows.
        judged: (task, run, quantized) -> KL and points with their errors.
        quick: two steps of one width only.
    """
    for bits in BITS[1:2] if quick else BITS:
        with tempfile.TemporaryDirectory() as folder:
            settings = Settings(budget=parse_budget(f"{bits}bit"), method="uniform")
            run = Run(work, settings, Path(folder))
            before = _add(rows, bits, "nearest level", judged(work, run, plain(run, bits)), None)
            for step, change in LADDER.items():
                settings = replace(settings, **change)
                run = Run(work, settings, Path(folder))
                before = _add(rows, bits, step, judged(work, run, run.quantized), before)
                if quick:
                    return
            for step, change in ASIDE.items():
                run = Run(work, replace(settings, **change), Path(folder))
                _add(rows, bits, step, judged(work, run, run.quantized), before)


def _add(
    rows: harness.Rows, bits: int, step: str, found: dict[str, Any], before: float | None
) -> float:
    """A row with the KL and its ratio to the step before; the KL."""
    kl = float(found.pop("kl"))
    ratio = {} if before is None else {"of_before": round(kl / before, 4)}
    rows.add(f"{step}, ResNet-20, W {bits} / A8", kl, **found, **ratio)
    return kl


def table() -> str:
    """The kept rows as a table in Markdown: steps down, widths across."""
    path = harness.HERE / "results" / "quality.json"
    kept = json.loads(path.read_text())["ablation"]
    cells: dict[str, dict[str, str]] = {}
    for row in kept["rows"]:
        step, case = row["name"].split(f", {cases.TITLES[cases.R20]}, ")
        text = f"{row['value']:.4f} ± {row['kl_stderr']:.4f}"
        cells.setdefault(step, {})[case] = text
    heads = list(dict.fromkeys(case for step in cells.values() for case in step))
    lines = [f"| step | {' | '.join(heads)} |", "|---" * (1 + len(heads)) + "|"]
    lines += [
        f"| {step} | {' | '.join(found.get(h, '') for h in heads)} |"
        for step, found in cells.items()
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
