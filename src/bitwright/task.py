"""A task: a model, the rows it is measured and judged on, and what its outputs mean."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bitwright.checkpoint import load_object
from bitwright.data import Data, check_labels, checked
from bitwright.errors import BitwrightError


@dataclass(frozen=True)
class Task:
    """What to compress and how to judge it.

    Attributes:
        model: in evaluation mode, float32, on the CPU.
        calibration, calibration_labels: training rows; the labels are used by fine-tuning and the
            papers' Hessian alone.
        test, test_labels: judged on, never used otherwise.
        divergence: `kl` for logits along `class_axis`, `squared` for anything else.
        class_axis: axis of the classes.
        loss: mean loss of a batch from outputs and labels; default: cross-entropy for integer
            labels, mean squared error for floats.
        metric: from outputs and labels of all test rows to a number, higher better; default: top-1
            accuracy for integer labels and [n, classes] outputs.
        metric_name: its name.
        notes: what the user should be told.
        preprocessing: stored in the artefact.
    """

    model: nn.Module
    calibration: Tensor
    calibration_labels: Tensor | None = None
    test: Tensor | None = None
    test_labels: Tensor | None = None
    divergence: str = "kl"
    class_axis: int = 1
    loss: Callable[[Any, Tensor], Tensor] | None = None
    metric: Callable[[Any, Tensor], float] | None = None
    metric_name: str = "top-1"
    notes: tuple[str, ...] = ()
    preprocessing: str = "as given"


def assemble(model: nn.Module, data: Data, *, source: str = "data", **options: Any) -> Task:
    """A task from a model and rows, after checking that they fit each other.

    Raises:
        BitwrightError: the model does not take such rows, returns NaN, or labels are out of range.
    """
    task = Task(
        model=model,
        calibration=data.x,
        calibration_labels=data.y,
        test=data.test_x,
        test_labels=data.test_y,
        notes=data.notes,
        preprocessing=data.preprocessing,
        **options,
    )
    return check_task(task, source)


def check_task(task: Task, source: str) -> Task:
    """`task`, once two rows have gone through the model and the labels fit its outputs."""
    checked(
        Data(task.calibration, task.calibration_labels, task.test, task.test_labels), source
    )
    outputs = check_model_takes(task.model, task.calibration[:2])
    if task.divergence == "kl":
        if outputs.ndim <= task.class_axis:
            raise BitwrightError(
                f"the model returns {tuple(outputs.shape)} for two rows, which has no class axis "
                f"{task.class_axis}; use a Task with divergence='squared' or another class_axis"
            )
        classes = outputs.shape[task.class_axis]
        check_labels(task.calibration_labels, classes, f"{source}: calibration labels")
        check_labels(task.test_labels, classes, f"{source}: test labels")
    return task


def check_model_takes(model: nn.Module, x: Tensor) -> Tensor:
    """The model's (joined) output for a few rows.

    Raises:
        BitwrightError: it fails on them or returns NaN; the shape and the first line are given.
    """
    from bitwright.network import join

    was = {m: m.training for m in model.modules()}
    try:
        with torch.no_grad():
            outputs = join(model.eval()(x))
    except Exception as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BitwrightError(
            f"{type(model).__name__} does not take rows of shape {tuple(x.shape[1:])}: {first[:300]}"
        ) from error
    finally:
        for module, flag in was.items():
            module.training = flag
    if not bool(torch.isfinite(outputs).all()):
        raise BitwrightError(f"{type(model).__name__} returns NaN or infinite outputs")
    return outputs


def load_task(spec: str) -> Task:
    """The task that `FILE.py:task` is, returns, or describes as a mapping of its fields.

    Raises:
        BitwrightError: it is none of these.
    """
    found = load_object(spec)
    if callable(found) and not isinstance(found, Task):
        try:
            found = found()
        except Exception as error:
            first = (str(error).splitlines() or [""])[0]
            raise BitwrightError(f"{spec}() failed: {type(error).__name__}: {first}") from error
    if isinstance(found, Mapping):
        try:
            found = Task(**found)
        except TypeError as error:
            raise BitwrightError(f"{spec}: {error}; see the fields of bitwright.Task") from error
    if not isinstance(found, Task):
        raise BitwrightError(f"{spec} gave a {type(found).__name__}, not a bitwright.Task")
    return check_task(found, spec)


def metric_of(task: Task) -> Callable[[Any, Tensor], float] | None:
    """The task's metric, or top-1 accuracy where that makes sense, or None."""
    if task.metric is not None or task.test_labels is None:
        return task.metric
    if task.test_labels.is_floating_point() or task.divergence != "kl":
        return None
    axis = task.class_axis

    def top1(outputs: Tensor, labels: Tensor) -> float:
        return float((outputs.argmax(axis) == labels).double().mean())

    return top1


def loss_of(task: Task) -> Callable[[Any, Tensor], Tensor]:
    """The task's loss, or cross-entropy for integer labels, or mean squared error."""
    if task.loss is not None:
        return task.loss
    labels = task.calibration_labels
    if labels is not None and labels.is_floating_point():
        return nn.functional.mse_loss
    return nn.functional.cross_entropy


def fingerprint(task: Task) -> str:
    """SHA-256 over names and bytes of all parameters and buffers, and the calibration rows."""
    digest = hashlib.sha256()
    tensors = {**dict(task.model.named_parameters()), **dict(task.model.named_buffers())}
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}|{value.dtype}|{tuple(value.shape)}|".encode())
        digest.update(value.numpy().tobytes())
    rows = task.calibration.contiguous()
    digest.update(f"{rows.dtype}|{tuple(rows.shape)}|".encode())
    digest.update(rows.numpy().tobytes())
    return digest.hexdigest()
