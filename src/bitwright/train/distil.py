"""Distillation: whatever is trained learns the float model's softened answers; our one loop.

The loss is `T² KL(softmax(y/T) ‖ softmax(ŷ/T))`, y the float model's logits, ŷ the student's, T the
temperature (Hinton et al., arXiv 1503.02531): no labels. On rows that the float model was trained
on its answers are nearly certain and the plain KL of almost all of them is next to nothing;
softened answers tell on every row how far the logits have moved. Held-out rows decide which epoch
is kept, if any. Several processes (`torchrun`) each take a part of every step's rows and add their
gradients; all of them end with the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from bitwright.arith.accumulator import Bounded
from bitwright.curvature import processes
from bitwright.curvature.divergence import flat, per_sample
from bitwright.errors import BitwrightError
from bitwright.train import resume

#: rows, with their random changes
Augment = Callable[[Tensor, torch.Generator], Tensor]


@dataclass(frozen=True)
class Recipe:
    """How to fine-tune.

    Attributes:
        epochs: passes over the training rows.
        batch: rows in a step.
        rate: Adam's, relative to a layer's mean step, or to ten times the mean size of a float
            tensor; falls along a cosine.
        temperature: of the softened answers, T.
        held_out: share of the rows that decides.
        most_held_out: rows of them at most.
        kind, class_axis: of the divergence; other kinds than `kl` have no temperature.
        seed: of the order of rows and of their changes.
        device: where to train; the result is back on the CPU.
        bounded: an accumulator that no step of a quantized network may make able to overflow.
    """

    epochs: int
    batch: int = 64
    rate: float = 1e-3
    temperature: float = 4.0
    held_out: float = 0.15
    most_held_out: int = 1024
    kind: str = "kl"
    class_axis: int = 1
    seed: int = 0
    device: str = "cpu"
    bounded: Bounded | None = None

    @property
    def soft(self) -> float:
        """T, or 1 where the outputs are no logits."""
        return self.temperature if self.kind == "kl" else 1.0

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Rows that train, and the last ones, which decide."""
        count = max(1, min(round(len(x) * self.held_out), self.most_held_out))
        return x[:-count], x[-count:]

    def steps(self, x: Tensor) -> int:
        """Steps of an epoch over the rows x."""
        return max(1, len(self.split(x)[0]) // self.batch)


@dataclass(frozen=True)
class Student:
    """What is trained.

    Attributes:
        module: rows to outputs, with gradients; its state is what is kept.
        groups: its parameters with their rates, for Adam.
        answers: outputs for rows of what the module stands for, as it will be used, on the CPU.
        before: called with the number of each step before it, and with all so far when a training
            goes on.
    """

    module: nn.Module
    groups: Sequence[dict[str, Any]]
    answers: Callable[[Tensor], Tensor]
    before: Callable[[int], None] = lambda step: None


def distil(
    student: Student,
    teacher: Callable[[Tensor], Tensor],
    x: Tensor,
    recipe: Recipe,
    *,
    first: Callable[[Tensor], Tensor] | None = None,
    augment: Augment | None = None,
    checkpoint: Path | None = None,
    progress: Callable[[float], None] | None = None,
) -> tuple[dict[str, Tensor], list[float]]:
    """Train a student towards the teacher's answers.

    Args:
        student: on the recipe's device.
        teacher: outputs for rows there, without gradient.
        x: [n, ...] calibration rows; the last ones decide, the others train.
        recipe: how.
        first: answers before any training; default the student's.
        augment: changes the training rows of each step, from rows and a generator.
        checkpoint: a file that every epoch's state is kept in; training goes on from it.
        progress: called with the finished fraction.

    Returns:
        The best state, empty where none was better than the beginning, and the held-out loss before
        and after each epoch.

    Raises:
        BitwrightError: the checkpoint is damaged or of another training; the loss is no longer
            finite (what was reached before that epoch stays in the checkpoint).
    """
    r = recipe
    train, judge = r.split(x)
    target = torch.cat([teacher(rows.to(r.device)).cpu() for rows in judge.split(128)])
    steps = r.steps(x)
    optimizer = torch.optim.Adam(student.groups, betas=(0.9, 0.999))
    total = max(1, r.epochs * steps)
    schedule = LambdaLR(optimizer, lambda k: 0.5 * (1 + math.cos(math.pi * k / total)))
    generator = torch.Generator().manual_seed(r.seed)
    group = processes.group()
    training = student.module, optimizer, schedule, generator
    history = [loss_of(target, (first or student.answers)(judge), r)]
    best: dict[str, Tensor] = {}
    if checkpoint is not None and checkpoint.exists():
        history, best = resume.load(checkpoint, training)
        for step in range((len(history) - 1) * steps):
            student.before(step)
    for epoch in range(len(history) - 1, r.epochs):
        shuffled = torch.randperm(len(train), generator=generator)
        finite = torch.ones((), dtype=torch.bool, device=r.device)
        for step in range(steps):
            student.before(epoch * steps + step)
            rows = train[shuffled[step * r.batch : (step + 1) * r.batch]]
            rows = rows if augment is None else augment(rows, generator)
            optimizer.zero_grad()
            part = group.shard(rows).to(r.device)
            if len(part):
                wanted = teacher(part)
                with torch.enable_grad():
                    found = student.module(part) / r.soft
                    loss = r.soft**2 * divergence(wanted / r.soft, found, r.kind, r.class_axis)
                    (len(part) / len(rows) * loss).backward()
                finite &= loss.detach().isfinite()
            _add_gradients(optimizer, group)
            optimizer.step()
            schedule.step()
            if progress:
                progress((epoch * steps + step + 1) / total)
        sound = bool(finite) and _finite(student)
        value = loss_of(target, student.answers(judge), r) if sound else math.nan
        values = torch.stack(group.gathered(torch.tensor(value, dtype=torch.float64)))
        if not bool(torch.isfinite(values).all()):
            raise BitwrightError(
                f"the loss is not finite in epoch {epoch + 1} of {r.epochs}: fine-tuning diverged; "
                f"lower the rate, which was {r.rate:g}"
            )
        history.append(float(values[0]))  # decided alike
        if history[-1] < min(history[:-1]):
            best = {k: v.detach().cpu().clone() for k, v in student.module.state_dict().items()}
        if checkpoint is not None:
            resume.save(checkpoint, training, history, best)
    return best, history


def _finite(student: Student) -> bool:
    given = (p for group in student.groups for p in group["params"])
    return all(bool(torch.isfinite(p).all()) for p in given)


def _add_gradients(optimizer: torch.optim.Optimizer, group: processes.Group) -> None:
    """Every parameter's gradient becomes the sum over the processes."""
    if group.size == 1:
        return
    given = [p for part in optimizer.param_groups for p in part["params"]]
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in given]
    total = group.summed(torch.cat([g.flatten() for g in grads]))
    for p, g in zip(given, total.split([p.numel() for p in given]), strict=True):
        p.grad = g.view_as(p)


def loss_of(target: Tensor, found: Tensor, r: Recipe) -> float:
    """The loss of some answers, [n, ...] beside the teacher's."""
    values = per_sample(target / r.soft, found / r.soft, r.kind, r.class_axis)
    return r.soft**2 * float(values.mean())


def divergence(reference: Tensor, found: Tensor, kind: str = "kl", class_axis: int = 1) -> Tensor:
    """Mean over rows of `KL(reference ‖ found)` of logits, or of half the squared distance."""
    a, b = flat(reference, kind, class_axis), flat(found, kind, class_axis)
    if kind == "squared":
        return 0.5 * (a - b).square().sum((1, 2)).mean()
    p = a.log_softmax(-1)
    return (p.exp() * (p - b.log_softmax(-1))).sum((1, 2)).mean()
