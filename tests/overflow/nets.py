"""A network with signed and unsigned inputs, a depthwise, a strided and a grouped convolution."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from bitwright.network import Network, build
from bitwright.quantize import (
    Quantized,
    WeightTable,
    calibrate,
    correct,
    float_outputs,
    round_weights,
    weight_tables,
)


def rows(count: int = 24) -> Tensor:
    """Rows [count, 3, 8, 8]."""
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(7)) + 0.5


def network() -> Network:
    """Captured; the same weights every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, padding=1, groups=8),
            nn.Conv2d(8, 12, 3, stride=2, padding=1),
            nn.ReLU6(),
            nn.Conv2d(12, 12, 1, groups=2),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(12, 5),
        ).eval()
    return build(model, rows())


def quantized(bits: int = 8, activations: int = 8) -> tuple[Quantized, dict[str, WeightTable]]:
    """Rounded and corrected."""
    found, x = network(), rows()
    tables = weight_tables(found)
    widths = {la.name: np.full(la.rows, bits) for la in found.layers}
    edges = calibrate(found, x, bits=activations)
    layers = round_weights(found, tables, widths)
    return correct(found, layers, edges, x, float_outputs(found, x)), tables
