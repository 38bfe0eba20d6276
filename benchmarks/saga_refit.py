"""What refitting the head gives back: ResNet-20 at 2 bits, judged through its ONNX files."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

import networks
import torch
from harness import Rows
from torch import Tensor

from bitwright import Settings, quantize
from bitwright.curvature.divergence import per_sample
from bitwright.data import Data
from bitwright.network import outputs
from bitwright.pipeline import Run
from bitwright.pipeline.budget import parse_budget
from bitwright.pipeline.built import HEAD_ROWS
from bitwright.pipeline.judge import answers_of
from bitwright.task import assemble
from bitwright.train import refit_head

#: how the rest of the network was made: method and rounding
NETWORKS = {
    "uniform": ("uniform", "nearest"),
    "channels": ("channels", "nearest"),
    "channels, error feedback": ("channels", "feedback"),
}


def refit(out: Rows, quick: bool) -> None:
    """KL(float ‖ file) on the unseen test images before and after, paired by image.

    Beside it what each choice by itself gives, and what is left with fewer calibration rows.
    """
    arrays = {k: torch.from_numpy(v) for k, v in networks.cifar10().items()}
    data = Data(arrays["train_x"], arrays["train_y"], arrays["test_x"], arrays["test_y"])
    task = assemble(networks.resnet20(), data)
    with tempfile.TemporaryDirectory() as folder:
        for name, (method, rounding) in NETWORKS.items():
            if quick and name != "uniform":
                continue
            settings = {"budget": parse_budget("2bit"), "method": method, "rounding": rounding}
            score = {"score": "trace"} if quick else {}
            before = Run(task, Settings(**settings, **score), Path(folder) / name)
            reference = outputs(before.network.module, task.test)
            old = per_sample(reference, answers_of(before.onnx, task.test), "kl")
            after = Run(task, Settings(**settings, **score, refit_head=True), before.folder)
            new = per_sample(reference, answers_of(after.onnx, task.test), "kl")
            what = after.refit
            assert what is not None
            _add(out, f"ResNet-20 at 2 bits, {name}: KL with a refitted head", old, new,
                 choice=what.choice, share=what.share, rows=what.fitted,
                 equal_to_reference=after.verification.ok)  # fmt: skip
            if quick:
                continue
            drawn = task.calibration[before._drawn[:HEAD_ROWS]]
            old = per_sample(reference, quantize.simulate(before.quantized, task.test), "kl")
            for label, count, choices in (
                ("scales and biases only", HEAD_ROWS, ["scales"]),
                ("new codes only", HEAD_ROWS, ["codes"]),
                ("1,024 rows", 1024, ["scales", "codes"]),
            ):
                found, _ = refit_head(before.quantized, drawn[:count], choices=choices)
                new = per_sample(reference, quantize.simulate(found, task.test), "kl")
                _add(out, f"ResNet-20 at 2 bits, {name}, {label}", old, new, bar=False)


def _add(out: Rows, name: str, old: Tensor, new: Tensor, bar: bool = True, **more: object) -> None:
    change = new - old
    stderr = float(change.std() / math.sqrt(len(change)))
    out.add(
        name, float(new.mean()), "below without" if bar else "",
        bool(change.mean() < 0) if bar else None, "without", float(old.mean()),
        change=round(float(change.mean()), 5), paired_stderr=round(stderr, 5), **more,
    )  # fmt: skip
