"""Fine-tuning of a quantized network, the float model as teacher.

The loss of a :class:`~bitwright.train.Trainable` is `T² KL(softmax(y/T) ‖ softmax(y_q/T))`, y the
float model's logits and y_q the quantized network's, T the temperature (Hinton et al., arXiv
1503.02531): no labels. On rows that the float model was trained on its answers are nearly certain
and the plain KL of almost all of them is next to nothing; softened answers tell on every row how
far the logits have moved. The result is taken only where that loss on held-out rows says that it is
better. All layers are quantized at once, or one after another (:mod:`bitwright.train.order`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from bitwright.arith.accumulator import Bounded
from bitwright.curvature.divergence import flat, per_sample
from bitwright.network import outputs
from bitwright.quantize import Quantized, simulate
from bitwright.train import resume
from bitwright.train.order import stages
from bitwright.train.trainable import Trainable

#: rows, with their random changes
Augment = Callable[[Tensor, torch.Generator], Tensor]


@dataclass(frozen=True)
class Recipe:
    """How to fine-tune.

    Attributes:
        epochs: passes over the training rows.
        batch: rows in a step.
        rate: Adam's, relative to a layer's mean step; falls along a cosine.
        temperature: of the softened answers, T.
        held_out: share of the rows that decides.
        most_held_out: rows of them at most.
        kind, class_axis: of the divergence; other kinds than `kl` have no temperature.
        seed: of the order of rows and of their changes.
        device: where to train; the result is back on the CPU.
        bounded: an accumulator that no step may make able to overflow.
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


def finetune(
    quantized: Quantized,
    x: Tensor,
    recipe: Recipe,
    *,
    order: Sequence[str] | None = None,
    augment: Augment | None = None,
    checkpoint: Path | None = None,
    progress: Callable[[float], None] | None = None,
) -> tuple[Quantized, list[float]]:
    """Train the quantized network towards the float model's answers.

    Args:
        quantized: the corrected network; left as it is.
        x: [n, ...] calibration rows; the last ones decide, the others train.
        recipe: with 0 epochs the network comes back as it is.
        order: names of all layers as they are to be quantized one after another; None for all at
            once. See :func:`bitwright.train.stages` for when each one's turn is.
        augment: changes the training rows of each step, from rows and a generator.
        checkpoint: a file that every epoch's state is kept in; training goes on from it.
        progress: called with the finished fraction.

    Returns:
        The best network, and the held-out loss before and after each epoch: of the whole quantized
        network, layers whose turn has not come as they were given.

    Raises:
        BitwrightError: the checkpoint is damaged or of another training.
    """
    r, network = recipe, quantized.network
    count = max(1, min(round(len(x) * r.held_out), r.most_held_out))
    train, judge = x[:-count], x[-count:]
    target = outputs(network.module, judge)
    state = Trainable(quantized, entered=False, bounded=r.bounded).to(r.device)
    placed = network.to(r.device).module
    steps = max(1, len(train) // r.batch)
    turns = {0: [la.name for la in network.layers]}
    if order is not None:
        turns = stages(order, r.epochs * steps)
    optimizer = torch.optim.Adam(state.groups(r.rate), betas=(0.9, 0.999))
    total = max(1, r.epochs * steps)
    schedule = LambdaLR(optimizer, lambda k: 0.5 * (1 + math.cos(math.pi * k / total)))
    generator = torch.Generator().manual_seed(r.seed)
    training = state, optimizer, schedule, generator
    history = [_value(quantized, judge, target, r)]
    best: dict[str, Tensor] = {}
    if checkpoint is not None and checkpoint.exists():
        history, best = resume.load(checkpoint, training)
        state.enter(_entered(turns, (len(history) - 1) * steps))
    for epoch in range(len(history) - 1, r.epochs):
        shuffled = torch.randperm(len(train), generator=generator)
        for step in range(steps):
            state.enter(turns.get(epoch * steps + step, ()))
            rows = train[shuffled[step * r.batch : (step + 1) * r.batch]]
            rows = (rows if augment is None else augment(rows, generator)).to(r.device)
            wanted = outputs(placed, rows)
            with torch.enable_grad():
                found = state(rows) / r.soft
                loss = r.soft**2 * divergence(wanted / r.soft, found, r.kind, r.class_axis)
                optimizer.zero_grad()
                loss.backward()
            optimizer.step()
            schedule.step()
            if progress:
                progress((epoch * steps + step + 1) / total)
        history.append(_value(state.quantized(), judge, target, r))
        if history[-1] < min(history[:-1]):
            best = {k: v.detach().cpu().clone() for k, v in state.state_dict().items()}
        if checkpoint is not None:
            resume.save(checkpoint, training, history, best)
    if not best:
        return quantized, history
    found = Trainable(quantized, entered=False, bounded=r.bounded)
    found.enter(_entered(turns, history.index(min(history)) * steps))
    found.load_state_dict(best)
    return found.quantized(), history


def _entered(turns: Mapping[int, Sequence[str]], steps: int) -> list[str]:
    """Layers whose turn came within so many steps."""
    return [name for at, names in turns.items() if at < steps for name in names]


def _value(candidate: Quantized, x: Tensor, target: Tensor, r: Recipe) -> float:
    """The loss on the rows x."""
    found = simulate(candidate, x)
    return r.soft**2 * float(
        per_sample(target / r.soft, found / r.soft, r.kind, r.class_axis).mean()
    )


def divergence(reference: Tensor, found: Tensor, kind: str = "kl", class_axis: int = 1) -> Tensor:
    """Mean over rows of `KL(reference ‖ found)` of logits, or of half the squared distance."""
    a, b = flat(reference, kind, class_axis), flat(found, kind, class_axis)
    if kind == "squared":
        return 0.5 * (a - b).square().sum((1, 2)).mean()
    p = a.log_softmax(-1)
    return (p.exp() * (p - b.log_softmax(-1))).sum((1, 2)).mean()
