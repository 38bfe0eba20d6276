"""Small networks with every coupling: residual, concatenated, grouped, depthwise, attention."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Residual(nn.Module):
    """A stem, a block with a projection, pooling, two classes more than inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(4)
        self.conv1 = nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 8, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(8)
        self.short = nn.Conv2d(4, 8, 1, stride=2)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.stem(x)))
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return self.head(F.relu(y + self.short(x)).mean((2, 3)))


class Dense(nn.Module):
    """A concatenation, a grouped and a depthwise convolution, a flattening."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(2, 4, 3, padding=1)
        self.b = nn.Conv2d(4, 4, 3, padding=1)
        self.mix = nn.Conv2d(8, 8, 1)
        self.grouped = nn.Conv2d(8, 6, 3, padding=1, groups=2)
        self.depth = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.point = nn.Conv2d(6, 4, 1)
        self.head = nn.Linear(4 * 9, 3)

    def forward(self, x: Tensor) -> Tensor:
        a = F.relu(self.a(x))
        x = torch.cat([a, F.relu(self.b(a))], 1)
        x = F.relu(self.mix(x))
        x = F.hardswish(self.depth(F.relu(self.grouped(x))))
        return self.head(F.max_pool2d(torch.sigmoid(self.point(x)), 2).flatten(1))


class Attention(nn.Module):
    """Tokens, one layer of attention with four heads, an MLP, a mean."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = 4
        self.words = nn.Embedding(11, 16)
        self.query, self.key, self.value, self.out = (nn.Linear(16, 16) for _ in range(4))
        self.norm = nn.LayerNorm(16)
        self.up, self.down = nn.Linear(16, 10), nn.Linear(10, 16)
        self.head = nn.Linear(16, 3)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids)
        q, k, v = (
            f(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for f in (self.query, self.key, self.value)
        )
        y = F.scaled_dot_product_attention(q, k, v)
        x = self.norm(x + self.out(y.transpose(1, 2).flatten(2)))
        return self.head((x + self.down(F.gelu(self.up(x)))).mean(1))


class Padded(nn.Module):
    """A shortcut that pads channels, which the trace takes for nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        self.wide = nn.Conv2d(4, 8, 3, padding=1)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = F.relu(self.wide(F.relu(x))) + F.pad(x, (0, 0, 0, 0, 2, 2))
        return self.head(x.mean((2, 3)))


def made(kind: type[nn.Module], seed: int = 0) -> nn.Module:
    """In evaluation mode, with batch-norm statistics of its own."""
    torch.manual_seed(seed)
    model = kind().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            module.weight.data.uniform_(0.5, 2)
            module.bias.data.normal_()
    return model


def rows(kind: type[nn.Module], count: int = 8, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if kind is Attention:
        return torch.randint(0, 11, (count, 5), generator=generator)
    side = 6
    return torch.randn(count, 2, side, side, generator=generator)
