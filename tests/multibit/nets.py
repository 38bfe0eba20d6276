"""Small networks and rows for tests of multi-bit training and files."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Small(nn.Module):
    """Two convolutions with batch-norm, one grouped, and two linear layers: logits of 4 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, 8, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 12, 3, groups=2)
        self.fc1 = nn.Linear(48, 24)
        self.fc2 = nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.conv2(x))
        return self.fc2(torch.relu(self.fc1(torch.flatten(nn.functional.max_pool2d(x, 2), 1))))


def small(seed: int = 0) -> Small:
    """With batch-norm statistics and factors that are not trivial, one of them negative."""
    torch.manual_seed(seed)
    model = Small()
    with torch.no_grad():
        model.bn1.running_mean.uniform_(-0.3, 0.3)
        model.bn1.running_var.uniform_(0.5, 2)
        model.bn1.weight.uniform_(0.5, 1.5)
        model.bn1.weight[3] = -0.7
        model.bn1.bias.uniform_(-0.2, 0.2)
    return model.eval()


def rows(n: int = 64, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Images [n, 2, 8, 8] and labels that a linear rule gives."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 2, 8, 8, generator=generator)
    rule = torch.randn(128, 4, generator=torch.Generator().manual_seed(7))
    return x, (x.flatten(1) @ rule).argmax(1)
