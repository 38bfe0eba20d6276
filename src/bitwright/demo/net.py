"""The embedded default: a small residual network for Fashion-MNIST, trained by this project.

`examples/train_fashion_mnist.py` trains it and writes both files beside this module.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

FOLDER = Path(__file__).parent
WEIGHTS = FOLDER / "weights.safetensors"
IMAGES = FOLDER / "images.npz"
#: mean and standard deviation of the training pixels, in 0..1
MEAN, STD = 0.2860, 0.3530
CLASSES = (
    "T-shirt/top",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)


class Block(nn.Module):
    """Two 3×3 convolutions around a shortcut (1×1 where the shape changes)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        """[n, inputs, h, w] -> [n, outputs, h/stride, w/stride]."""
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class SmallResNet(nn.Module):
    """Stem, three stages of two blocks, pooling, linear: [n, 1, 28, 28] -> logits [n, 10]."""

    def __init__(self, widths: tuple[int, int, int] = (16, 32, 64)) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, widths[0], 3, 1, 1, bias=False)
        self.bn = nn.BatchNorm2d(widths[0])
        blocks, inputs = [], widths[0]
        for stage, width in enumerate(widths):
            blocks += [Block(inputs, width, 1 if stage == 0 else 2), Block(width, width, 1)]
            inputs = width
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(inputs, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of normalized images."""
        x = self.blocks(torch.relu(self.bn(self.stem(x))))
        return self.head(torch.flatten(nn.functional.adaptive_avg_pool2d(x, 1), 1))


def network() -> nn.Module:
    """The trained network in evaluation mode."""
    model = SmallResNet()
    model.load_state_dict(load_file(WEIGHTS))
    return model.eval()


def normalize(images: np.ndarray) -> np.ndarray:
    """uint8 [n, 28, 28] -> float32 [n, 1, 28, 28] as the network takes them."""
    return ((images.astype(np.float32) / 255 - MEAN) / STD)[:, None]


def data() -> dict[str, np.ndarray]:
    """1,000 calibration images of the training set and 1,000 of the test set, with labels."""
    with np.load(IMAGES, allow_pickle=False) as file:
        return {
            "train_x": normalize(file["train_images"]),
            "train_y": file["train_labels"].astype(np.int64),
            "test_x": normalize(file["test_images"]),
            "test_y": file["test_labels"].astype(np.int64),
        }
