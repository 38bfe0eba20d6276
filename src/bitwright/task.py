"""A task: a model, the rows it is measured and judged on, and what its outputs mean."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, TypedDict, Unpack

import numpy as np
import torch
from torch import Tensor, nn

from bitwright.checkpoint import call, check_numbers, load_object, said, seeded
from bitwright.errors import BitwrightError, advice

#: as in `bitwright.curvature.divergence`, which stands to the right of this module
_DIVERGENCES = ("kl", "squared")
#: numbers that are looked at together: 64 MB of float32
_PART = 2**24


@dataclass(frozen=True)
class Task:
    """What to compress and how to judge it.

    Attributes:
        model: in evaluation mode, float32, on the CPU.
        calibration: [n, ...] training rows as the model takes them.
        calibration_labels: [n, ...], used by fine-tuning and the papers' Hessian alone.
        test: [m, ...] rows to judge on, never used otherwise.
        test_labels: [m, ...].
        divergence: `kl` for logits along `class_axis`; `squared` for anything else: half the
            squared distance to the float outputs.
        class_axis: axis of the classes, counted with the axis of rows.
        loss: mean loss of a batch from outputs and labels; default: see `loss_of`.
        metric: from outputs and labels of all test rows to a number, higher better; default: see
            `metric_of`.
        metric_name: its name.
        notes: what the user should be told, such as how the rows were split.
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


@dataclass(frozen=True)
class Data:
    """Rows as the model takes them.

    Attributes:
        x: [n, ...] calibration rows, float32 or int64 tokens.
        y: [n, ...] labels, int64 classes or float32 targets, or None.
        test_x: [m, ...] rows to judge on, or None.
        test_y: [m, ...] their labels, or None.
        notes: what the user should be told (a split that was made).
        preprocessing: how images became rows, where we did it.
    """

    x: Tensor
    y: Tensor | None = None
    test_x: Tensor | None = None
    test_y: Tensor | None = None
    notes: tuple[str, ...] = ()
    preprocessing: str = "as given"


def load_task(spec: str) -> Task:
    """The task that `FILE.py:task` is, returns, or describes as a mapping of its fields.

    Raises:
        BitwrightError: it is none of these, or `check_task` refuses it.
    """
    found = load_object(spec)
    if not isinstance(found, Task | Mapping):
        with seeded(0):
            found = call(found, spec)
    if isinstance(found, Mapping):
        found = _from_fields(found, spec)
    if not isinstance(found, Task):
        raise BitwrightError(
            f"{spec} gave a {type(found).__name__}; return a bitwright.Task or a dict of its fields"
        )
    return check_task(found, spec)


def _from_fields(found: Mapping[Any, Any], spec: str) -> Task:
    known = [field.name for field in fields(Task)]
    for name in found:
        if name not in known:
            hint = advice(str(name), known)
            raise BitwrightError(f"{spec}: a task has no field {name!r}; {hint}")
    for name in ("model", "calibration"):
        if name not in found:
            raise BitwrightError(f"{spec}: the task's field {name!r} is missing; add it")
    return Task(**found)


class TaskOptions(TypedDict, total=False):
    """Fields of a :class:`Task` that are neither its model nor its rows."""

    divergence: str
    class_axis: int
    loss: Callable[[Any, Tensor], Tensor] | None
    metric: Callable[[Any, Tensor], float] | None
    metric_name: str
    notes: tuple[str, ...]
    preprocessing: str


def assemble(
    model: nn.Module, data: Data, *, source: str = "data", **options: Unpack[TaskOptions]
) -> Task:
    """A task from a model and rows, after checking that they fit each other.

    Args:
        model: left as it is.
        data: its rows, labels, notes and preprocessing.
        source: what to call the data in messages.
        **options: other fields of the task (:class:`TaskOptions`).

    Raises:
        BitwrightError: as `check_task`.
    """
    own: TaskOptions = {"notes": data.notes, "preprocessing": data.preprocessing}
    own.update(options)
    return check_task(
        Task(
            model=model,
            calibration=data.x,
            calibration_labels=data.y,
            test=data.test_x,
            test_labels=data.test_y,
            **own,
        ),
        source,
    )


def check_task(task: Task, source: str) -> Task:
    """`task`, ready to use, once two rows have gone through its model and the labels fit.

    Tensors come out as `checked` makes them. A model that trains, or is elsewhere than on the CPU,
    is copied to the CPU in evaluation mode.

    Raises:
        BitwrightError: the model is none or has NaN weights; rows and labels that `checked` or
            `check_model_takes` refuses; an unknown divergence; no class axis; labels that are out
            of range or of a shape that the default loss or metric cannot take.
    """
    if not isinstance(task.model, nn.Module):
        raise BitwrightError(
            f"{source}: the model is a {type(task.model).__name__}; give a torch.nn.Module"
        )
    if task.divergence not in _DIVERGENCES:
        raise BitwrightError(
            f"{source}: divergence {task.divergence!r} is unknown; use {' or '.join(_DIVERGENCES)}"
        )
    check_numbers(task.model, f"the model of {source}")
    rows = Data(task.calibration, task.calibration_labels, task.test, task.test_labels)
    data = checked(rows, source)
    notes: Any = task.notes  # a string would come apart into letters
    task = replace(
        task,
        model=_evaluating(task.model),
        calibration=data.x,
        calibration_labels=data.y,
        test=data.test_x,
        test_labels=data.test_y,
        notes=(notes,) if isinstance(notes, str) else tuple(notes),
    )
    outputs = check_model_takes(task.model, data.x[:2])
    axis = task.class_axis + outputs.ndim if task.class_axis < 0 else task.class_axis
    if task.divergence == "kl" and not 0 < axis < outputs.ndim:
        raise BitwrightError(
            f"the model returns {tuple(outputs.shape)} for {len(outputs)} rows, which has no class "
            f"axis {task.class_axis}; use a Task with divergence='squared' or another class_axis"
        )
    # labels that only the user's own functions see may mean anything (255 for "ignore")
    if task.loss is None:
        _labels_fit(task, data.y, outputs, f"{source}: calibration labels")
    if task.metric is None and metric_of(task) is not None:
        _labels_fit(task, data.test_y, outputs, f"{source}: test labels")
    return task


def _evaluating(model: nn.Module) -> nn.Module:
    tensors = [*model.parameters(), *model.buffers()]
    here = all(value.device.type == "cpu" for value in tensors)
    if here and not any(module.training for module in model.modules()):
        return model
    return copy.deepcopy(model).cpu().eval()


def _labels_fit(task: Task, labels: Tensor | None, outputs: Tensor, name: str) -> None:
    """Labels of another shape would be broadcast against the outputs, and score nonsense."""
    shape = list(outputs.shape[1:])
    if labels is None or (task.divergence != "kl" and not labels.is_floating_point()):
        return
    if labels.is_floating_point():
        fits, wanted = labels[0].numel() == outputs[0].numel(), "one float an output"
    else:
        shape.pop(task.class_axis % outputs.ndim - 1)
        fits, wanted = list(labels.shape[1:]) == shape, "class numbers"
    if not fits:
        raise BitwrightError(
            f"{name} are {tuple(labels.shape[1:])} a row, but the model's outputs call for "
            f"{tuple(shape)}; give {wanted}, or your own loss and metric in a Task"
        )
    if not labels.is_floating_point():
        check_labels(labels, outputs.shape[task.class_axis], name)


def check_model_takes(model: nn.Module, x: Tensor) -> Tensor:
    """The model's (joined) output for a few rows, [n, ...]; its modes are put back.

    Raises:
        BitwrightError: it fails on them (the shape and the first line are given), or returns no
            float tensor, other than a row for each row, or NaN.
    """
    from bitwright.network import evaluating, join

    name = type(model).__name__
    try:
        with evaluating(model), torch.no_grad():
            answer = model(x)
    except Exception as error:
        raise BitwrightError(
            f"{name} does not take rows of shape {tuple(x.shape[1:])} ({x.dtype}): {said(error)}; "
            "give rows as the model takes them"
        ) from error
    leaves = [v for v in torch.utils._pytree.tree_leaves(answer) if isinstance(v, Tensor)]
    leaves = [v for v in leaves if v.is_floating_point()]
    if not leaves:
        raise BitwrightError(
            f"{name} returns a {type(answer).__name__} without a float tensor; return logits"
        )
    for leaf in leaves:
        if leaf.ndim == 0 or len(leaf) != len(x):
            raise BitwrightError(
                f"{name} returns {tuple(leaf.shape)} for {len(x)} rows; return an output a row"
            )
    outputs = join(answer)
    if not bool(torch.isfinite(outputs).all()):
        raise BitwrightError(f"{name} returns NaN or infinite outputs; check it and its weights")
    return outputs


def metric_of(task: Task) -> Callable[[Any, Tensor], float] | None:
    """The task's metric, or top-1 accuracy for integer labels and logits, or None."""
    if task.metric is not None or task.test_labels is None:
        return task.metric
    if task.test_labels.is_floating_point() or task.divergence != "kl":
        return None
    axis = task.class_axis

    def top1(outputs: Tensor, labels: Tensor) -> float:
        return float((outputs.argmax(axis) == labels).double().mean())

    return top1


def loss_of(task: Task) -> Callable[[Any, Tensor], Tensor]:
    """The task's loss, or cross-entropy for integer labels, or mean squared error for floats."""
    if task.loss is not None:
        return task.loss
    labels, axis = task.calibration_labels, task.class_axis

    def squared_error(outputs: Tensor, labels: Tensor) -> Tensor:
        return nn.functional.mse_loss(outputs, labels.reshape(outputs.shape))

    def cross_entropy(outputs: Tensor, labels: Tensor) -> Tensor:
        return nn.functional.cross_entropy(outputs.movedim(axis, 1), labels)

    return squared_error if labels is not None and labels.is_floating_point() else cross_entropy


def fingerprint(task: Task) -> str:
    """SHA-256 over names and bytes of all parameters and buffers, and the calibration rows.

    Types and shapes are part of it, the order of registration is not; a tied tensor counts under
    each of its names. Cost: one pass over the bytes.
    """
    digest = hashlib.sha256()
    tensors: dict[str, Tensor] = dict(task.model.named_buffers(remove_duplicate=False))
    tensors.update(task.model.named_parameters(remove_duplicate=False))
    for name in sorted(tensors):
        _feed(digest.update, name, tensors[name])
    # a name with a dot in front is never a parameter's
    _feed(digest.update, ".calibration", task.calibration)
    return digest.hexdigest()


def _feed(update: Callable[[Any], None], name: str, value: Tensor) -> None:
    head = f"{name}|{value.dtype}|{tuple(value.shape)}|".encode()
    # lengths first: no two sequences of tensors have the same bytes
    update(len(head).to_bytes(8, "little") + head)
    update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)


# ------------------------------------------------------------------------------ checks of the rows


def checked(data: Data, source: str) -> Data:
    """`data` with its tensors as `as_rows` and `as_labels` make them, once they fit each other.

    Raises:
        BitwrightError: theirs; no rows, labels of another length or without rows, test rows of
            another shape or type than the calibration rows, or among them.
    """
    x, y = _fitting(data.x, data.y, source, "calibration")
    if data.test_x is None:
        if data.test_y is not None:
            raise BitwrightError(f"{source}: there are test labels but no test rows; give both")
        return replace(data, x=x, y=y)
    test_x, test_y = _fitting(data.test_x, data.test_y, source, "test")
    _refuse_leak(x, test_x, source)
    return replace(data, x=x, y=y, test_x=test_x, test_y=test_y)


def _fitting(x: Any, y: Any, source: str, name: str) -> tuple[Tensor, Tensor | None]:
    rows = as_rows(x, f"{source}: {name} rows")
    labels = as_labels(y, f"{source}: {name} labels")
    if len(rows) == 0:
        raise BitwrightError(f"{source}: there are no {name} rows; give at least one")
    if labels is not None and len(labels) != len(rows):
        raise BitwrightError(
            f"{source}: {len(rows)} {name} rows but {len(labels)} labels; give one label a row"
        )
    return rows, labels


def _refuse_leak(x: Tensor, test: Tensor, source: str) -> None:
    if x.shape[1:] != test.shape[1:] or x.dtype != test.dtype:
        raise BitwrightError(
            f"{source}: calibration rows are {tuple(x.shape[1:])} of {x.dtype}, test rows "
            f"{tuple(test.shape[1:])} of {test.dtype}; give both as the model takes them"
        )
    first: dict[bytes, int] = {}
    for i, row in enumerate(x.numpy()):
        first.setdefault(digest_of(row), i)
    hits = [(first[d], j) for j, row in enumerate(test.numpy()) if (d := digest_of(row)) in first]
    if hits:
        raise BitwrightError(
            f"{source}: {len(hits)} test rows are among the calibration rows (first: calibration "
            f"row {hits[0][0]} = test row {hits[0][1]}), which would flatter; remove them"
        )


def digest_of(row: np.ndarray[Any, Any]) -> bytes:
    """A hash of the exact bytes of a row."""
    return hashlib.blake2b(np.ascontiguousarray(row).tobytes(), digest_size=16).digest()


def check_labels(labels: Tensor | None, classes: int, source: str = "labels") -> None:
    """Refuse integer labels outside 0 … classes − 1.

    Raises:
        BitwrightError: it names the first such row.
    """
    if labels is None or labels.is_floating_point():
        return
    bad = (labels < 0) | (labels >= classes)
    if bool(bad.any()):
        row = int(bad.nonzero()[0, 0])
        raise BitwrightError(
            f"{source}: label {int(labels[bad][0])} of row {row} is out of range: the model has "
            f"{classes} outputs; give labels of 0 to {classes - 1}"
        )


def as_rows(value: Any, name: str) -> Tensor:
    """[n, ...] as the model takes it: float32, or int64 from integer tokens; on the CPU.

    Raises:
        BitwrightError: not numbers, another type, no first axis, NaN.
    """
    rows = _tensor(value, name)
    if rows.dtype in (torch.int32, torch.int64):
        return rows.long()
    if rows.dtype != torch.float32:
        raise BitwrightError(
            f"{name}: the array is {str(rows.dtype).removeprefix('torch.')}; convert it to float32 "
            "(scaled and normalized) as the model takes it, or to int64 if it holds tokens"
        )
    return _finite(rows, name)


def as_labels(value: Any, name: str) -> Tensor | None:
    """[n, ...] labels, int64 from any integers or float32 from any floats; None stays None.

    Raises:
        BitwrightError: not numbers, no first axis, NaN.
    """
    if value is None:
        return None
    labels = _tensor(value, name)
    if labels.is_complex():
        raise BitwrightError(f"{name} are complex; give class numbers or float targets")
    return _finite(labels.float(), name) if labels.is_floating_point() else labels.long()


def _tensor(value: Any, name: str) -> Tensor:
    if not isinstance(value, Tensor):
        try:
            array = np.asarray(value)
        except Exception as error:
            raise BitwrightError(f"{name}: {said(error)}; give an array of numbers") from error
        if array.dtype.kind not in "fiubc":
            raise BitwrightError(
                f"{name}: the array holds {array.dtype} values; give an array of numbers"
            )
        # torch takes neither foreign byte order nor negative strides nor read-only memory
        native = np.array(array, dtype=array.dtype.newbyteorder("="), order="C", copy=None)
        try:
            value = torch.from_numpy(native if native.flags.writeable else native.copy())
        except TypeError as error:  # long double and the like
            raise BitwrightError(f"{name}: {said(error)}; convert to float32") from error
    if value.ndim == 0:
        raise BitwrightError(f"{name} is a single number; give an array whose first axis is rows")
    return value.detach().cpu().contiguous()


def _finite(values: Tensor, name: str) -> Tensor:
    # part by part: of a whole mapped array, the answer would not fit in memory
    each = math.prod(values.shape[1:])
    parts = values.split(max(1, _PART // max(1, each)))
    fine = torch.cat([torch.isfinite(p).reshape(len(p), each).all(1) for p in parts])
    if not bool(fine.all()):
        rows = (~fine).nonzero()[:, 0]
        raise BitwrightError(
            f"{name}: row {int(rows[0])} holds NaN or infinite numbers ({len(rows)} of "
            f"{len(values)} rows do); clean the data"
        )
    return values
