"""Networks and data of the benchmarks, read from the data folder (not part of this repository).

The folder is `../shared/data` beside the repository, or `$BITWRIGHT_DATA_ROOT`, or `--data-root`.
"""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

HERE = Path(__file__).resolve().parent


def root() -> Path:
    """The data folder."""
    return Path(os.environ.get("BITWRIGHT_DATA_ROOT", HERE.parent.parent / "shared" / "data"))


class CifarBlock(nn.Module):
    """A basic block of He et al. with the parameter-free shortcut (option A)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.widen = outputs // 4 if stride != 1 or inputs != outputs else 0

    def forward(self, x: Tensor) -> Tensor:
        """[n, inputs, h, w] -> [n, outputs, h/stride, w/stride]."""
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.widen:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.widen, self.widen))
        return F.relu(y + x)


class CifarResNet(nn.Module):
    """ResNet of 6·depth + 2 layers for CIFAR-10; names as in akamaster/pytorch_resnet_cifar10."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        inputs = 16
        for stage, width in enumerate((16, 32, 64), start=1):
            blocks = []
            for i in range(depth):
                blocks.append(CifarBlock(inputs, width, 2 if stage > 1 and i == 0 else 1))
                inputs = width
            setattr(self, f"layer{stage}", nn.Sequential(*blocks))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of normalized images [n, 3, 32, 32]."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        x = F.avg_pool2d(x, x.shape[3])
        return self.linear(x.flatten(1))


def _cifar(depth: int, name: str) -> nn.Module:
    model = CifarResNet(depth)
    found = torch.load(root() / "cifar10" / name, map_location="cpu", weights_only=True)
    weights = {k.removeprefix("module."): v for k, v in found["state_dict"].items()}
    model.load_state_dict(weights)
    return model.eval()


def resnet20() -> nn.Module:
    """ResNet-20, 91.64 % on the exact test images."""
    return _cifar(3, "resnet20-12fca82f.th")


def resnet44() -> nn.Module:
    """ResNet-44, 93.41 %."""
    return _cifar(7, "resnet44-014dd654.th")


def cifar10() -> dict[str, np.ndarray]:
    """The 8,068 exact training and 517 exact test images, normalized."""
    mean = np.array([0.485, 0.456, 0.406], np.float32)
    std = np.array([0.229, 0.224, 0.225], np.float32)
    with np.load(root() / "cifar10" / "exact.npz", allow_pickle=False) as file:

        def rows(name: str) -> np.ndarray:
            images = (file[name].astype(np.float32) / 255 - mean) / std
            return np.ascontiguousarray(images.transpose(0, 3, 1, 2))

        return {
            "train_x": rows("train_images"),
            "train_y": file["train_labels"].astype(np.int64),
            "test_x": rows("test_images"),
            "test_y": file["test_labels"].astype(np.int64),
        }


class _ConvNorm(nn.Sequential):
    """Convolution, batch-norm, ReLU6, with the asymmetric padding of TensorFlow at stride 2."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, groups: int) -> None:
        padding = 0 if stride == 2 else (kernel - 1) // 2
        super().__init__(
            nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU6(),
        )
        self.uneven = stride == 2

    def forward(self, x: Tensor) -> Tensor:
        """[n, inputs, h, w] -> [n, outputs, h/stride, w/stride]."""
        return super().forward(F.pad(x, (0, 1, 0, 1)) if self.uneven else x)


class _Inverted(nn.Module):
    """An inverted residual of MobileNetV2; names as in torchvision."""

    def __init__(self, inputs: int, outputs: int, stride: int, expand: int) -> None:
        super().__init__()
        hidden = inputs * expand
        parts: list[nn.Module] = []
        if expand != 1:
            parts.append(_ConvNorm(inputs, hidden, 1, 1, 1))
        parts.append(_ConvNorm(hidden, hidden, 3, stride, hidden))
        parts += [nn.Conv2d(hidden, outputs, 1, bias=False), nn.BatchNorm2d(outputs)]
        self.conv = nn.Sequential(*parts)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """[n, inputs, h, w] -> [n, outputs, h/stride, w/stride]."""
        return x + self.conv(x) if self.residual else self.conv(x)


class MobileNetV2(nn.Module):
    """MobileNetV2 1.0 (Sandler et al.) with torchvision's parameter names."""

    def __init__(self) -> None:
        super().__init__()
        parts: list[nn.Module] = [_ConvNorm(3, 32, 3, 2, 1)]
        inputs = 32
        for expand, width, count, stride in (
            (1, 16, 1, 1),
            (6, 24, 2, 2),
            (6, 32, 3, 2),
            (6, 64, 4, 2),
            (6, 96, 3, 1),
            (6, 160, 3, 2),
            (6, 320, 1, 1),
        ):
            for i in range(count):
                parts.append(_Inverted(inputs, width, stride if i == 0 else 1, expand))
                inputs = width
        parts.append(_ConvNorm(320, 1280, 1, 1, 1))
        self.features = nn.Sequential(*parts)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, 1000))

    def forward(self, x: Tensor) -> Tensor:
        """Logits of images [n, 3, 224, 224] in −1..1."""
        x = F.adaptive_avg_pool2d(self.features(x), 1)
        return self.classifier(x.flatten(1))


def mobilenet_v2() -> nn.Module:
    """MobileNetV2 with the Edge TPU release's weights."""
    model = MobileNetV2()
    path = root() / "imagenet" / "mobilenet_v2_tf_dequant_torchvision_keys.pt"
    weights = torch.load(path, map_location="cpu", weights_only=True)
    known = model.state_dict().keys()
    model.load_state_dict({k: v for k, v in weights.items() if k in known}, strict=False)
    return model.eval()


def imagenet(size: int = 224, *, middle: float = 128.0, views: int = 1) -> dict[str, np.ndarray]:
    """500 images, one of each even class: 250 to calibrate on, the other 250 to judge on.

    Args:
        size: pixels, a side, of the centre that is cut out; the images are made smaller first by as
            much as 224 out of 256 is to it.
        middle: pixels become `x / middle − 1`.
        views: rows made of each image to calibrate on: its centre, then cuts at random places, half
            of them mirrored; in an order drawn once.
    """
    short = size * 256 // 224
    rng = np.random.default_rng(0)
    with tarfile.open(root() / "imagenet" / "even_classes_short256.tar") as archive:
        members = sorted((m for m in archive if m.isfile()), key=lambda m: m.name)
        rows, labels = [], []
        for member in members:
            file = archive.extractfile(member)
            assert file is not None
            picture = _shrunk(Image.open(io.BytesIO(file.read())).convert("RGB"), short)
            middles = (picture.width - size) // 2, (picture.height - size) // 2
            seen = [picture.crop((*middles, middles[0] + size, middles[1] + size))]
            if len(labels) % 2 == 0:
                seen += [_anywhere(picture, size, rng) for _ in range(views - 1)]
            pixels = np.stack([np.asarray(view, np.float32) for view in seen])
            rows.append(((pixels - middle) / middle).transpose(0, 3, 1, 2))
            labels.append(int(Path(member.name).stem))
    train, test = np.concatenate(rows[::2]), np.concatenate(rows[1::2])
    order = np.arange(len(train)) if views == 1 else rng.permutation(len(train))
    return {
        "train_x": train[order],
        "train_y": np.repeat(labels[::2], views)[order],
        "test_x": test,
        "test_y": np.array(labels[1::2]),
    }


def _shrunk(picture: Image.Image, short: int) -> Image.Image:
    """The picture with `short` pixels on its shorter side."""
    least = min(picture.size)
    if least == short:
        return picture
    width, height = (side * short // least for side in picture.size)
    return picture.resize((width, height), Image.Resampling.BILINEAR)


def _anywhere(picture: Image.Image, size: int, rng: np.random.Generator) -> Image.Image:
    """`size` pixels from a random place, mirrored half of the time."""
    left, top = (int(rng.integers(side - size + 1)) for side in picture.size)
    found = picture.crop((left, top, left + size, top + size))
    return found.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else found
