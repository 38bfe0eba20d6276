"""Networks, images and what images become while training, for multi-bit weights and their rivals.

LeNet-5 and the quarter-width VGG are trained here once, on labels, and kept in a cache outside the
repository. Fashion-MNIST is that of the Debian package `dataset-fashion-mnist`, or its four files
in `$BITWRIGHT_FASHION_MNIST`; without either the 1,000 embedded images are taken, and said so.
"""

from __future__ import annotations

import gzip
import io
import os
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import networks
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from prune_networks import vgg11
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bitwright import demo
from bitwright.demo.net import normalize
from bitwright.network import join
from bitwright.train import augment, divergence

FASHION = Path(os.environ.get("BITWRIGHT_FASHION_MNIST", "/usr/share/datasets/fashion-mnist"))
#: of softened answers
TEMPERATURE = 4.0


@dataclass(frozen=True)
class Case:
    """A float network and its images.

    Attributes:
        name: for the rows of results.
        model: in evaluation mode.
        arrays: `train_x`, `train_y`, `test_x`, `test_y`; `shifted_x`, `shifted_y` where there are
            test images of another kind, too.
        augment: of the training images of a step.
    """

    name: str
    model: nn.Module
    arrays: dict[str, Tensor]
    augment: augment.Augment

    def answers(self, x: Tensor) -> Tensor:
        """Logits of the float network."""
        return answers(self.model, x)


def answers(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([join(model(rows)) for rows in x.split(500)])


def accuracy(found: Tensor, y: Tensor) -> float:
    """Percent."""
    return 100 * float((found.argmax(1) == y).double().mean())


def softened(found: Tensor, wanted: Tensor) -> Tensor:
    """What students of a float network learn from: `T² KL` of softened answers."""
    return TEMPERATURE**2 * divergence(wanted / TEMPERATURE, found / TEMPERATURE)


def lenet5() -> nn.Module:
    """The LeNet-5 of the paper: 430,500 weights."""
    return nn.Sequential(
        nn.Conv2d(1, 20, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(20, 50, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(800, 500), nn.ReLU(), nn.Linear(500, 10),
    )  # fmt: skip


def moved(x: Tensor, generator: torch.Generator) -> Tensor:
    return augment.shifted(x, 2, generator)


def lenet(cache: Path, quick: bool) -> Case:
    """LeNet-5 on MNIST."""
    found = {}
    with np.load(networks.root() / "mnist" / "mnist.npz", allow_pickle=False) as file:
        for part in ("train", "test"):
            pixels = file[f"{part}_images"].astype(np.float32) / 255
            found[f"{part}_x"] = torch.from_numpy(pixels).reshape(-1, 1, 28, 28)
            found[f"{part}_y"] = torch.from_numpy(file[f"{part}_labels"].astype(np.int64))
    path = cache / f"alq-lenet5{'-quick' if quick else ''}.safetensors"
    arrays = _quick(found, 1500) if quick else found
    return Case("LeNet-5, MNIST", _trained(lenet5, arrays, moved, path, 4), arrays, moved)


def vgg(cache: Path, quick: bool) -> Case:
    """VGG-11 at a quarter of its widths on Fashion-MNIST."""
    change = augment.parse("flip,crop2")
    if not (FASHION / "train-images-idx3-ubyte.gz").is_file():
        name, kind = "VGG-11/4, 1,000 images of Fashion-MNIST", "embedded"
        arrays = {k: torch.from_numpy(v) for k, v in demo.data().items()}
    else:
        name, kind = "VGG-11/4, Fashion-MNIST", "whole"
        arrays = {}
        for part, stem in (("train", "train"), ("test", "t10k")):
            images = normalize(_idx(FASHION / f"{stem}-images-idx3-ubyte.gz"))
            labels = _idx(FASHION / f"{stem}-labels-idx1-ubyte.gz").astype(np.int64)
            arrays |= {f"{part}_x": torch.from_numpy(images), f"{part}_y": torch.from_numpy(labels)}
    arrays = _quick(arrays, 300) if quick else arrays
    path = cache / f"alq-vgg-{kind}{'-quick' if quick else ''}.safetensors"
    epochs = 2 if quick else 12
    return Case(name, _trained(vgg11, arrays, change, path, epochs), arrays, change)


def resnet20(cache: Path, quick: bool) -> Case:
    """ResNet-20 on the exact images of CIFAR-10; the shifted ones are those in JPEG."""
    del cache  # it comes trained
    arrays = {k: torch.from_numpy(v) for k, v in networks.cifar10().items()}
    arrays = _quick(arrays, 128) if quick else arrays | jpeg_cifar10()
    change = augment.parse("flip,crop4")
    return Case("ResNet-20, CIFAR-10", networks.resnet20(), arrays, change)


def embedded(cache: Path, quick: bool) -> Case:
    """The embedded network on its 1,000 images, nothing else."""
    del cache  # it comes trained
    arrays = {k: torch.from_numpy(v) for k, v in demo.data().items()}
    arrays = _quick(arrays, 150) if quick else arrays
    return Case("embedded, Fashion-MNIST", demo.network(), arrays, augment.parse("flip"))


def jpeg_cifar10() -> dict[str, Tensor]:
    """All 10,000 test images of CIFAR-10 in JPEG, normalized: another kind than trained on."""
    mean = np.array([0.485, 0.456, 0.406], np.float32)
    std = np.array([0.229, 0.224, 0.225], np.float32)
    images, folders = [], []
    with tarfile.open(networks.root() / "cifar10" / "jpeg_test.tar") as archive:
        for member in sorted((m for m in archive if m.isfile()), key=lambda m: m.name):
            file = archive.extractfile(member)
            assert file is not None
            picture = np.asarray(Image.open(io.BytesIO(file.read())).convert("RGB"), np.float32)
            images.append(((picture / 255 - mean) / std).transpose(2, 0, 1))
            folders.append(member.name.split("/")[-2])
    classes = sorted(set(folders))  # alphabetic, as CIFAR-10's numbers are
    labels = [classes.index(name) for name in folders]
    return {"shifted_x": torch.from_numpy(np.stack(images)), "shifted_y": torch.tensor(labels)}


def _idx(path: Path) -> np.ndarray:
    raw = gzip.decompress(path.read_bytes())
    shape = np.frombuffer(raw, ">u4", raw[3], 4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(shape)


def _quick(arrays: dict[str, Tensor], rows: int) -> dict[str, Tensor]:
    """About so many rows to train on, and about 100 to judge on."""
    most = {"train": rows, "test": 100}
    return {k: v[:: max(1, len(v) // most[k.split("_")[0]])] for k, v in arrays.items()}


def _trained(
    make: Callable[[], nn.Module],
    arrays: dict[str, Tensor],
    change: augment.Augment,
    path: Path,
    epochs: int,
) -> nn.Module:
    """Trained here once on labels, AdamW's cosine; kept in the cache."""
    torch.manual_seed(0)
    model = make()
    if path.is_file():
        model.load_state_dict(load_file(path))
        return model.eval()
    x, y = arrays["train_x"], arrays["train_y"]
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    total = epochs * (len(x) // 128)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total)
    generator = torch.Generator().manual_seed(0)
    model.train()
    for _ in range(epochs):
        order = torch.randperm(len(x), generator=generator)[: len(x) // 128 * 128]
        for rows in order.split(128):
            loss = F.cross_entropy(model(change(x[rows], generator)), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    save_file(model.state_dict(), path)
    return model.eval()
