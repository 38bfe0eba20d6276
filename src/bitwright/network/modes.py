"""Modules as they answer: in evaluation mode, whatever mode they are in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from bitwright.network.run import join


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


def answers(module: nn.Module, x: Tensor, chunk: int = 128) -> Tensor:
    """Joined outputs of any module, in the mode it is in, for all rows [n, ...], no gradient."""
    with torch.no_grad():
        return torch.cat([join(module(rows)) for rows in x.split(chunk)])
