"""Fine-tuning of a float module, pruned of another one, which teaches it.

By :mod:`bitwright.train.distil`. Batch-norm takes its statistics from the batches, as in training,
and keeps running ones; everything else that behaves otherwise in training (dropout) stays off.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bitwright.network import join
from bitwright.train.distil import Augment, Recipe, Student, distil


def finetune_float(
    module: nn.Module,
    teacher: nn.Module,
    x: Tensor,
    recipe: Recipe,
    *,
    augment: Augment | None = None,
    checkpoint: Path | None = None,
    progress: Callable[[float], None] | None = None,
) -> tuple[nn.Module, list[float]]:
    """Train a module towards another one's answers.

    Args:
        module, teacher: left as they are; both in evaluation mode.
        x, recipe, augment, checkpoint, progress: see :func:`bitwright.train.distil.distil`; with 0
            epochs a copy of the module comes back.

    Returns:
        The best module, in evaluation mode on the CPU, and the held-out losses.

    Raises:
        BitwrightError: the checkpoint is damaged or of another training.
    """
    state = _Joined(copy.deepcopy(module)).to(recipe.device)
    placed = copy.deepcopy(teacher).to(recipe.device).eval()

    def answers(rows: Tensor) -> Tensor:
        state.eval()
        with torch.no_grad():
            return torch.cat([state(part.to(recipe.device)).cpu() for part in rows.split(128)])

    def teach(rows: Tensor) -> Tensor:
        with torch.no_grad():
            return join(placed(rows))

    student = Student(state, groups(state, recipe.rate), answers, lambda step: _training(state))
    best, history = distil(
        student, teach, x, recipe, augment=augment, checkpoint=checkpoint, progress=progress
    )
    found = _Joined(copy.deepcopy(module))
    if best:
        found.load_state_dict(best)
    return found.inner.eval(), history


class _Joined(nn.Module):
    """A module with one tensor for an output."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return join(self.inner(x))


def _training(module: nn.Module) -> None:
    """Batch-norm in training mode, whatever else in evaluation mode."""
    module.eval()
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.train()


def groups(module: nn.Module, rate: float) -> list[dict[str, Any]]:
    """Parameter groups for Adam: each tensor moves in units of ten times its mean size.

    A bias that is zero moves as the mean of its layer's weight does.
    """
    found: list[dict[str, Any]] = []
    for part in module.modules():
        own = [p for p in part.parameters(recurse=False) if p.is_floating_point() and p.numel()]
        largest = max((float(p.detach().abs().mean()) for p in own), default=0.0)
        for p in own:
            p.requires_grad_(True)
            size = float(p.detach().abs().mean()) or largest or 1e-2
            found.append({"params": [p], "lr": 10 * rate * size})
    return found
