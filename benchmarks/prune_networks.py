"""LeNet-5 and a quarter-width VGG, trained here once and kept in a cache outside the repository."""

from __future__ import annotations

from pathlib import Path

import networks
import numpy as np
import torch
import torch.nn.functional as F
from prune_methods import Bench
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bitwright.demo import data as demo_data


def lenet5() -> nn.Module:
    """LeNet-5 with ReLU and maximum pooling."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10),
    )  # fmt: skip


def vgg11() -> nn.Module:
    """VGG-11 at a quarter of its widths, with batch-norm, for 28×28 pixels."""
    parts: list[nn.Module] = []
    inputs = 1
    for width in (16, 0, 32, 0, 64, 64, 0, 128, 128, 0, 128, 128):
        if not width:
            parts.append(nn.MaxPool2d(2))
            continue
        parts += [nn.Conv2d(inputs, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)]
        parts.append(nn.ReLU())
        inputs = width
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 10))


def lenet(cache: Path) -> Bench:
    """LeNet-5 on MNIST: 2,000 of the training images for the methods, 2,000 test images."""
    with np.load(networks.root() / "mnist" / "mnist.npz", allow_pickle=False) as file:
        x, test_x = (_pixels(file[f"{part}_images"]) for part in ("train", "test"))
        y, test_y = (torch.from_numpy(file[f"{part}_labels"].astype(np.int64))
                     for part in ("train", "test"))  # fmt: skip
    model = trained(lenet5(), x[:20000], y[:20000], cache / "lenet5-mnist.safetensors", 2)
    return Bench.of("LeNet-5, MNIST", model, _rows(x, y, test_x, test_y))


def _pixels(images: np.ndarray) -> Tensor:
    return torch.from_numpy(images.astype(np.float32) / 255).reshape(-1, 1, 28, 28)


def _rows(x: Tensor, y: Tensor, test_x: Tensor, test_y: Tensor) -> dict[str, Tensor]:
    return {"train_x": x[-2000:], "train_y": y[-2000:],
            "test_x": test_x[:2000], "test_y": test_y[:2000]}  # fmt: skip


def vgg(cache: Path) -> Bench:
    """The VGG on the embedded images of Fashion-MNIST, taught by the embedded network."""
    arrays = {k: torch.from_numpy(v) for k, v in demo_data().items()}
    path = cache / "vgg11-fashion.safetensors"
    model = trained(vgg11(), arrays["train_x"], arrays["train_y"], path, 12)
    return Bench.of("VGG-11/4, Fashion-MNIST", model, arrays)


def trained(model: nn.Module, x: Tensor, y: Tensor, path: Path, epochs: int) -> nn.Module:
    """The model with the weights of the cache, or trained and put there."""
    if not path.is_file():
        torch.manual_seed(0)
        for module in model.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                module.reset_parameters()
        optimizer = torch.optim.Adam(model.parameters(), 2e-3)
        total = epochs * (len(x) // 64)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total)
        model.train()
        for _ in range(epochs):
            for rows in torch.randperm(len(x))[: len(x) // 64 * 64].split(64):
                loss = F.cross_entropy(model(x[rows]), y[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
        save_file(model.state_dict(), path)
    model.load_state_dict(load_file(path))
    return model.eval()
