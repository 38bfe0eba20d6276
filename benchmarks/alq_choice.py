"""Multi-bit as a choice of the allocator: the same command with `--levels multi-bit` and without.

ResNet-20 and the embedded network at 2 and 3 mean bits (coordinates counted), activations of 8
bits, rounded to nearest and by error feedback. KL to the float network on test images, and that of
answers divided by 8, times 64, which every image tells something of. Differences are of the same
images, with their standard error. `$BITWRIGHT_ALQ_ROWS` (1024): calibration rows.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import torch
from alq_networks import Case, embedded, resnet20
from harness import Rows
from torch import Tensor

from bitwright import Settings, Task, quantize
from bitwright.curvature.divergence import per_sample
from bitwright.pipeline import Run
from bitwright.pipeline.budget import parse_budget

ROWS = int(os.environ.get("BITWRIGHT_ALQ_ROWS", "1024"))
#: logits are divided by it, and the KL multiplied by its square
SOFT = 8.0


def measured(case: Case, levels: str, rounding: str, bits: int, folder: Path) -> dict[str, Any]:
    """What one command gives, judged on the test images."""
    work = Task(case.model, case.arrays["train_x"], test=case.arrays["test_x"])
    settings = Settings(
        budget=parse_budget(f"{bits}bit"), rounding=rounding, levels=levels, calibration_rows=ROWS
    )
    run = Run(work, settings, folder)
    built, plan = run.quantized, run.plan
    wanted, found = (
        case.answers(case.arrays["test_x"]),
        quantize.simulate(built, case.arrays["test_x"]),
    )
    weights = 0
    for name, own in quantize.plan_rows(run.network, plan.bases).items():
        weights += int(own.sum()) * built.layers[name].codes.shape[1]
    return {
        "kl": per_sample(wanted, found, "kl"),
        "soft": SOFT**2 * per_sample(wanted / SOFT, found / SOFT, "kl"),
        "bits": plan.cost / run.network.weights,
        "share": weights / run.network.weights,
        "bytes": run.store.path("model.safetensors").stat().st_size,
        "onnx": run.onnx.stat().st_size,
    }


def mean(values: Tensor) -> float:
    return float(values.mean())


def stderr(values: Tensor) -> float:
    return float(values.std()) / math.sqrt(len(values))


def choice(rows: Rows, quick: bool, cache: Path) -> None:
    """Both networks; `quick`: the embedded one at 2 bits, to nearest."""
    for make in (embedded,) if quick else (embedded, resnet20):
        case = make(cache, quick)
        folder = cache / f"alq-choice-{make.__name__}-{ROWS}{'-quick' if quick else ''}"
        for rounding in ("nearest",) if quick else ("nearest", "feedback"):
            for bits in (2,) if quick else (2, 3):
                with torch.random.fork_rng():
                    plain, ours = (
                        measured(case, levels, rounding, bits, folder) for levels in quantize.LEVELS
                    )
                gain, soft = (ours[k] - plain[k] for k in ("kl", "soft"))
                rows.add(
                    f"KL to float, {case.name}, {bits} bits, {rounding}, bases where they pay",
                    mean(ours["kl"]), "", None, "uniform", mean(plain["kl"]),
                    difference=round(mean(gain), 5), stderr=round(stderr(gain), 5),
                    soft=round(mean(ours["soft"]), 4), peer_soft=round(mean(plain["soft"]), 4),
                    soft_difference=round(mean(soft), 4), soft_stderr=round(stderr(soft), 4),
                    share_of_weights=round(ours["share"], 3), images=len(gain),
                    bits=round(ours["bits"], 4), peer_bits=round(plain["bits"], 4),
                    bytes=ours["bytes"], peer_bytes=plain["bytes"],
                    onnx=ours["onnx"], peer_onnx=plain["onnx"],
                )  # fmt: skip
