"""Modules as they answer: in evaluation mode, one tensor from whatever they return."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode, and each part's own mode afterwards."""
    before = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, mode in before.items():
            part.training = mode


def join(value: Any) -> Tensor:
    """One tensor from an output: itself, or all float tensors in it as [n, -1], side by side."""
    if isinstance(value, Tensor):
        return value
    leaves = [t for t in torch.utils._pytree.tree_leaves(value) if isinstance(t, Tensor)]
    leaves = [t for t in leaves if t.is_floating_point()]
    if len(leaves) == 1:
        return leaves[0]
    return torch.cat([t.flatten(1) for t in leaves], dim=1)


def answers(module: nn.Module, x: Tensor, chunk: int = 128) -> Tensor:
    """Joined outputs of any module, in the mode it is in, for all rows [n, ...], no gradient."""
    with torch.no_grad():
        return torch.cat([join(module(rows)) for rows in x.split(chunk)])
