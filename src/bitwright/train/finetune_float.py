"""Fine-tuning of a float module, pruned of another one, which teaches it.

By :mod:`bitwright.train.distil`. Channels that went have moved what batch-norm sees: its statistics
are taken anew from the training rows where held-out rows say that this is better (after a refit it
seldom is). Then they stand still, since a short training would end before running ones have
followed, and the module is trained as it will be used: dropout is off.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bitwright.network import join
from bitwright.train.distil import Augment, Recipe, Student, distil, loss_of

_NORMS = nn.modules.batchnorm._BatchNorm
#: training rows that statistics are taken from
_STATISTICS_ROWS = 1024


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
    state = _Joined(copy.deepcopy(module)).to(recipe.device).eval()
    placed = copy.deepcopy(teacher).to(recipe.device).eval()

    def answers(rows: Tensor, of: nn.Module = state) -> Tensor:
        with torch.no_grad():
            return torch.cat([of(part.to(recipe.device)).cpu() for part in rows.split(128)])

    def teach(rows: Tensor) -> Tensor:
        with torch.no_grad():
            return join(placed(rows))

    if recipe.epochs and any(isinstance(m, _NORMS) for m in module.modules()):
        train, judge = recipe.split(x)
        target = torch.cat([teach(rows.to(recipe.device)).cpu() for rows in judge.split(128)])
        anew = _restated(state, train[:_STATISTICS_ROWS], recipe)
        if loss_of(target, answers(judge, anew), recipe) < loss_of(target, answers(judge), recipe):
            state.load_state_dict(anew.state_dict())
    start = copy.deepcopy(state).cpu()
    student = Student(state, groups(state, recipe.rate), answers)
    best, history = distil(
        student, teach, x, recipe, augment=augment, checkpoint=checkpoint, progress=progress
    )
    if best:
        start.load_state_dict(best)
    return start.inner.eval(), history


class _Joined(nn.Module):
    """A module with one tensor for an output."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return join(self.inner(x))


def _restated(module: nn.Module, x: Tensor, recipe: Recipe) -> nn.Module:
    """A copy with the statistics that its batch-norms see on the rows x."""
    found = copy.deepcopy(module)
    norms = [m for m in found.modules() if isinstance(m, _NORMS) and m.track_running_stats]
    before = [m.momentum for m in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over the batches
        norm.train()
    with torch.no_grad():
        for rows in x.split(recipe.batch):
            if len(rows) > 1:
                found(rows.to(recipe.device))
    for norm, momentum in zip(norms, before, strict=True):
        norm.momentum = momentum
    return found.eval()


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
