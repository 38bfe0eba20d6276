"""Judging: what a file answers on rows nobody calibrated with, beside its rivals."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from bitwright.curvature.divergence import per_sample
from bitwright.deploy import runtime
from bitwright.task import Task, metric_of


@dataclass(frozen=True)
class Judgement:
    """Answers of one model against the float model's.

    Attributes:
        kl, kl_stderr: mean divergence over rows, and its standard error.
        metric, metric_stderr: the task's metric, and (for shares of rows) its standard error.
        agreement: share of rows with the float model's largest output; None for `squared`.
        lost_stderr: standard error of what the metric lost against the float model, the two taken
            as pairs on the same rows; None where `metric_stderr` is.
    """

    kl: float
    kl_stderr: float
    metric: float | None
    metric_stderr: float | None
    agreement: float | None
    lost_stderr: float | None = None


@dataclass(frozen=True)
class Judged:
    """A file beside its rivals.

    Attributes:
        judgement: of its answers.
        bytes: its length.
        mean_bits: a weight.
        latency: seconds for one row.
    """

    judgement: Judgement
    bytes: int
    mean_bits: float
    latency: float


def to_json(rows: Mapping[str, Judged]) -> str:
    """JSON text of files by name."""
    return json.dumps({name: asdict(row) for name, row in rows.items()}, indent=1)


def from_json(text: str) -> dict[str, Judged]:
    """What :func:`to_json` wrote."""
    return {
        name: Judged(**{**row, "judgement": Judgement(**row["judgement"])})
        for name, row in json.loads(text).items()
    }


def judge(task: Task, reference: Tensor, answers: Tensor) -> Judgement:
    """Compare the outputs `answers` with the float model's on the task's test rows."""
    values = per_sample(reference, answers, task.divergence, task.class_axis)
    stderr = float(values.std(unbiased=True) / math.sqrt(len(values))) if len(values) > 1 else 0.0
    metric = metric_of(task)
    score = (
        None
        if metric is None or task.test_labels is None
        else float(metric(answers, task.test_labels))  # also of a tensor, or NumPy's
    )
    error = lost_error = None
    if score is not None and task.metric is None and task.test_labels is not None:
        error = math.sqrt(max(score * (1 - score), 0.0) / len(values))
        lost_error = _paired(reference, answers, task.test_labels, task.class_axis)
    agreement = None
    if task.divergence == "kl":
        axis = task.class_axis
        same = reference.argmax(axis) == answers.argmax(axis)
        agreement = float(same.double().mean())
    return Judgement(float(values.mean()), stderr, score, error, agreement, lost_error)


def _paired(reference: Tensor, answers: Tensor, labels: Tensor, axis: int) -> float:
    """Standard error of the mean over rows of (right by `reference`) − (right by `answers`)."""
    before, after = (
        (outputs.argmax(axis) == labels).double().reshape(len(labels), -1).mean(1)
        for outputs in (reference, answers)
    )
    lost = before - after
    return float(lost.std(unbiased=True) / math.sqrt(len(lost))) if len(lost) > 1 else 0.0


def answers_of(path: Path, x: Tensor) -> Tensor:
    """What an ONNX file answers in the runtime."""
    with torch.no_grad():
        return runtime.outputs(runtime.session(path), x)
