"""Fine-tuning of a quantized network, the float model as teacher.

The loss of a :class:`~bitwright.train.Trainable` is KL(float ‖ quantized): no labels. The result is
taken only where the KL on held-out rows says that it is better. All layers are quantized at once,
or one after another (:mod:`bitwright.train.order`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from bitwright.curvature.divergence import flat, per_sample
from bitwright.network import outputs
from bitwright.quantize import Quantized, simulate
from bitwright.train.order import stages
from bitwright.train.trainable import Trainable


def finetune(
    quantized: Quantized,
    x: Tensor,
    *,
    epochs: int,
    order: Sequence[str] | None = None,
    kind: str = "kl",
    class_axis: int = 1,
    batch: int = 64,
    rate: float = 1e-3,
    held_out: float = 0.15,
    seed: int = 0,
    device: str = "cpu",
    progress: Callable[[float], None] | None = None,
) -> tuple[Quantized, list[float]]:
    """Train the quantized network towards the float model's answers.

    Args:
        quantized: the corrected network; left as it is.
        x: [n, ...] calibration rows; the last `held_out` share decides, the others train.
        epochs: passes over the training rows; 0 returns the network as it is.
        order: names of all layers as they are to be quantized one after another; None for all at
            once. See :func:`bitwright.train.stages` for when each one's turn is.
        kind, class_axis: of the divergence.
        batch: rows in a step.
        rate: Adam's learning rate relative to a layer's mean step; falls along a cosine.
        held_out: share of rows.
        seed: of the order of rows.
        device: where to train; the result is back on the CPU.
        progress: called with the finished fraction.

    Returns:
        The best network, and the held-out divergence before and after each epoch: of the whole
        quantized network, layers whose turn has not come as they were given.
    """
    count = max(1, round(len(x) * held_out))
    train, judge = x[:-count], x[-count:]
    teacher = outputs(quantized.network.module, train)
    target = outputs(quantized.network.module, judge)

    def value(candidate: Quantized) -> float:
        return float(per_sample(target, simulate(candidate, judge), kind, class_axis).mean())

    best, history = quantized, [value(quantized)]
    state = Trainable(quantized, entered=False).to(device)
    steps = max(1, len(train) // batch)
    names = [layer.name for layer in quantized.network.layers]
    turns = {0: names} if order is None else stages(order, epochs * steps)
    optimizer = torch.optim.Adam(state.groups(rate), betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, epochs * steps))
    generator = torch.Generator().manual_seed(seed)
    for epoch in range(epochs):
        shuffled = torch.randperm(len(train), generator=generator)
        for step in range(steps):
            if epoch * steps + step in turns:
                state.enter(turns[epoch * steps + step])
            rows = shuffled[step * batch : (step + 1) * batch]
            wanted, given = teacher[rows].to(device), train[rows].to(device)
            with torch.enable_grad():
                loss = divergence(wanted, state(given), kind, class_axis)
                optimizer.zero_grad()
                loss.backward()
            optimizer.step()
            schedule.step()
            if progress:
                progress((epoch * steps + step + 1) / (epochs * steps))
        candidate = state.quantized()
        history.append(value(candidate))
        if history[-1] < min(history[:-1]):
            best = candidate
    return best, history


def divergence(reference: Tensor, found: Tensor, kind: str = "kl", class_axis: int = 1) -> Tensor:
    """Mean over rows of `KL(reference ‖ found)` of logits, or of half the squared distance."""
    a, b = flat(reference, kind, class_axis), flat(found, kind, class_axis)
    if kind == "squared":
        return 0.5 * (a - b).square().sum((1, 2)).mean()
    p = a.log_softmax(-1)
    return (p.exp() * (p - b.log_softmax(-1))).sum((1, 2)).mean()
