"""Small networks and rows that the tests of the input Hessian share, all float64."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def piecewise() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.LeakyReLU(0.1), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 8),
        nn.ReLU(), nn.Linear(8, 4),
    ).double()  # fmt: skip


def smooth() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, stride=2), nn.Tanh(), nn.Flatten(), nn.Linear(12, 6), nn.Softplus(),
        nn.Linear(6, 4),
    ).double()  # fmt: skip


def rows(n: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(n, 1, 6, 6, dtype=torch.double, generator=generator)
    return x, torch.randint(4, (n,), generator=generator)
