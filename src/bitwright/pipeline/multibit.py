"""`train-multibit`: a task's network as few signed bases, trained, written and judged."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bitwright.errors import BitwrightError
from bitwright.files import put
from bitwright.folders import made
from bitwright.multibit import Recipe, convert, float_weights, prepare, train
from bitwright.network import join
from bitwright.pipeline.judge import Judgement, answers_of, judge
from bitwright.report import falling
from bitwright.task import Task, loss_of
from bitwright.train import augment, divergence

#: rows that a network is captured with, and that bases of activations are fitted to
EXAMPLES = 256


@dataclass(frozen=True)
class MultibitSettings:
    """What `train-multibit` is asked for.

    Attributes:
        recipe: how to train.
        groups: layer -> `kernel`, `pixel`, `channel` or a number of weights.
        size: about how many weights the groups of other layers have.
        most: bases a group begins with.
        skip: layers to leave in float.
        labels: learn from labels; else from the float model's answers.
        temperature: of those answers.
        augment: as for fine-tuning.
        activation_bases: binary bases of what each layer reads; 0 for float.
        from_float: straight-through epochs begin at the float weights, not at what the bases stand
            for by then.
    """

    recipe: Recipe
    groups: Mapping[str, str]
    size: int = 64
    most: int = 6
    skip: tuple[str, ...] = ()
    labels: bool = False
    temperature: float = 4.0
    augment: str | None = None
    activation_bases: int = 0
    from_float: bool = False


@dataclass(frozen=True)
class MultibitResult:
    """What came of it.

    Attributes:
        bits: stored bits a weight: signs, coordinates and counts of bases.
        sizes: bytes of each file.
        judgement: beside the float model, on the test rows; None without any.
        history: a line an epoch.
    """

    bits: float
    sizes: Mapping[str, int]
    judgement: Judgement | None
    history: Sequence[Mapping[str, Any]]


def train_multibit(
    task: Task,
    settings: MultibitSettings,
    out: Path,
    progress: Callable[[str, float], None] = lambda stage, share: None,
) -> MultibitResult:
    """Train, write `model.safetensors`, `model.onnx`, `multibit.json` and `multibit.html`.

    A killed training goes on from `training.safetensors` where its last epoch ended.

    Raises:
        BitwrightError: labels are asked for and there are none, the folder holds a training with
            other settings, weights or data, or as the stages say.
    """
    if settings.labels and task.calibration_labels is None:
        raise BitwrightError("--labels: the data has none; leave it out to learn from the model")
    x, soft = task.calibration, _temperature(task, settings)
    r = replace(settings.recipe, kind=task.divergence, class_axis=task.class_axis, temperature=soft)
    # drawn, as rows may lie class by class
    drawn = torch.randperm(len(x), generator=torch.Generator().manual_seed(r.seed))
    net = prepare(task.model, x[drawn[:EXAMPLES]], groups=settings.groups, size=settings.size,
                  most=settings.most, skip=settings.skip,
                  activation_bases=settings.activation_bases)  # fmt: skip
    many = len(r.epochs())
    in_recipe = ("recipe", "temperature")
    asked = {name: value for name, value in asdict(settings).items() if name not in in_recipe}
    with made(out):
        history = train(
            net,
            x,
            task.calibration_labels if settings.labels else None,
            r,
            loss=_loss(task, settings),
            teacher=None if settings.labels else lambda rows: join(task.model(rows)),
            augment=augment.parse(settings.augment) if settings.augment else None,
            floats=float_weights(task.model, net) if settings.from_float else None,
            checkpoint=out / "training.safetensors",
            identity=asked,
            progress=lambda line: progress("multi-bit", line["epoch"] / many),
        )
        found = convert(net, out, {"preprocessing": task.preprocessing})
        judgement = None
        if task.test is not None:
            with torch.no_grad():
                reference = torch.cat([join(task.model(rows)) for rows in task.test.split(128)])
            judgement = judge(task, reference, answers_of(out / "model.onnx", task.test))
        files = ("model.safetensors", "model.onnx")
        sizes = {name: (out / name).stat().st_size for name in files}
        falling.write(history, out / "multibit.html")
        said = {"bits": found.average_bits, "sizes": sizes, "recipe": asdict(r), "history": history}
        put(out / "multibit.json", json.dumps(said, indent=1))
    return MultibitResult(found.average_bits, sizes, judgement, history)


def _temperature(task: Task, settings: MultibitSettings) -> float:
    return 1.0 if settings.labels or task.divergence != "kl" else settings.temperature


def _loss(task: Task, settings: MultibitSettings) -> Callable[[Tensor, Tensor], Tensor]:
    if settings.labels:
        return loss_of(task)
    soft = _temperature(task, settings)

    def softened(found: Tensor, wanted: Tensor) -> Tensor:
        kind, axis = task.divergence, task.class_axis
        return soft**2 * divergence(wanted / soft, found / soft, kind, axis)

    return softened


__all__ = ["MultibitResult", "MultibitSettings", "train_multibit"]
