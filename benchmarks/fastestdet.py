"""FastestDet (dog-qiuqiu/FastestDet): a ShuffleNetV2 backbone, one scale, no anchors; its images.

244,490 parameters, 80 classes of COCO, 22 × 22 cells of an image of 352 × 352 pixels.
"""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import networks
import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

CLASSES = 80
#: pixels, a side
SIZE = 352
WEIGHTS = "FastestDet_weight_AP05_0.253207_280-epoch.pth"


def _conv_norm(
    inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1
) -> list[nn.Module]:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(outputs)]


def _depthwise(width: int, kernel: int, stride: int = 1) -> list[nn.Module]:
    return _conv_norm(width, width, kernel, stride, width)


class _Shuffle(nn.Module):
    """A unit of ShuffleNetV2: at stride 1 the even channels pass, the odd ones are worked on."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        own = inputs if stride == 2 else inputs // 2
        middle = outputs // 2
        self.branch_main = nn.Sequential(
            *_conv_norm(own, middle),
            nn.ReLU(),
            *_depthwise(middle, 3, stride),
            *_conv_norm(middle, outputs - own),
            nn.ReLU(),
        )
        self.branch_proj = None
        if stride == 2:
            self.branch_proj = nn.Sequential(
                *_depthwise(own, 3, stride), *_conv_norm(own, own), nn.ReLU()
            )

    def forward(self, x: Tensor) -> Tensor:
        """[n, inputs, h, w] -> [n, outputs, h/stride, w/stride]."""
        if self.branch_proj is None:
            return torch.cat((x[:, ::2], self.branch_main(x[:, 1::2])), 1)
        return torch.cat((self.branch_proj(x), self.branch_main(x)), 1)


class _Backbone(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first_conv = nn.Sequential(*_conv_norm(3, 24, 3, 2), nn.ReLU())
        inputs = 24
        for stage, (count, width) in enumerate(((4, 48), (8, 96), (4, 192)), start=2):
            units = [
                _Shuffle(inputs if i == 0 else width, width, 1 + (i == 0)) for i in range(count)
            ]
            setattr(self, f"stage{stage}", nn.Sequential(*units))
            inputs = width

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[n, 3, h, w] -> 48, 96 and 192 channels at an 8th, a 16th and a 32nd of the size."""
        fine = self.stage2(F.max_pool2d(self.first_conv(x), 3, 2, 1))
        middle = self.stage3(fine)
        return fine, middle, self.stage4(middle)


class _Named(nn.Module):
    """A sequence under the name that the published weights have for it."""

    def __init__(self, name: str, *parts: nn.Module) -> None:
        super().__init__()
        self.add_module(name, nn.Sequential(*parts))

    def forward(self, x: Tensor) -> Tensor:
        """Through all parts."""
        for sequence in self.children():
            x = sequence(x)
        return x


class _Pyramid(nn.Module):
    """One, two and three 5 × 5 convolutions side by side, around a shortcut."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.Conv1x1 = _Named("conv1x1", *_conv_norm(inputs, width), nn.ReLU())
        for depth in (1, 2, 3):
            parts = [m for _ in range(depth) for m in (*_depthwise(width, 5), nn.ReLU())]
            setattr(self, f"S{depth}", nn.Sequential(*parts))
        self.output = nn.Sequential(*_conv_norm(3 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """[n, inputs, h, w] -> [n, width, h, w]."""
        x = self.Conv1x1(x)
        return F.relu(x + self.output(torch.cat((self.S1(x), self.S2(x), self.S3(x)), 1)))


class _Heads(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1x1 = _Named("conv1x1", *_conv_norm(width, width), nn.ReLU())
        for name, outputs in (("obj", 1), ("reg", 4), ("cls", CLASSES)):
            parts = [*_depthwise(width, 5), nn.ReLU(), *_conv_norm(width, outputs)]
            setattr(self, f"{name}_layers", _Named("conv5x5", *parts))

    def forward(self, x: Tensor) -> Tensor:
        """[n, width, h, w] -> [n, 85, h, w]."""
        x = self.conv1x1(x)
        return torch.cat((self.obj_layers(x), self.reg_layers(x), self.cls_layers(x)), 1)


class FastestDet(nn.Module):
    """The network up to its logits; the published one has a sigmoid and a softmax behind them."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = _Backbone()
        self.SPP = _Pyramid(48 + 96 + 192, 96)
        self.detect_head = _Heads(96)

    def forward(self, x: Tensor) -> Tensor:
        """A map of logits of BGR images in 0..1.

        Args:
            x: [n, 3, 352, 352].

        Returns:
            [n, 85, 22, 22]: for each cell objectness, four numbers of the box, 80 classes.
        """
        fine, middle, coarse = self.backbone(x)
        fine = F.avg_pool2d(fine, 3, 2, 1)
        coarse = F.interpolate(coarse, scale_factor=2.0)
        return self.detect_head(self.SPP(torch.cat((fine, middle, coarse), 1)))


def fastestdet() -> nn.Module:
    """FastestDet with the published weights."""
    model = FastestDet()
    path = networks.root() / "detector" / WEIGHTS
    model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return model.eval()


def coco() -> dict[str, np.ndarray]:
    """128 images of COCO's val2017 by name: 64 to calibrate on, the other 64 to judge on.

    Returns:
        `train_x`, `test_x` float32 [64, 3, 352, 352], BGR in 0..1; `train_y`, `test_y` float32
        [64, most, 5], for each box its class, centre, width and height in shares of the image;
        class −1 where there are no more boxes.
    """
    images, boxes = {}, {}
    with tarfile.open(networks.root() / "coco128" / "coco_val128.tar") as archive:
        for member in archive:
            file = archive.extractfile(member)
            if file is None:
                continue
            name, content = Path(member.name), file.read()
            if name.suffix == ".jpg":
                images[name.stem] = _pixels(Image.open(io.BytesIO(content)).convert("RGB"))
            else:
                found = [line.split() for line in content.decode().splitlines()]
                boxes[name.stem] = np.array(found, np.float32).reshape(-1, 5)
    names = sorted(images)
    y = np.full((len(names), max(map(len, boxes.values())), 5), -1, np.float32)
    for row, name in zip(y, names, strict=True):
        row[: len(boxes[name])] = boxes[name]
    x = np.stack([images[name] for name in names])
    half = len(names) // 2
    return {"train_x": x[:half], "train_y": y[:half], "test_x": x[half:], "test_y": y[half:]}


def _pixels(picture: Image.Image) -> np.ndarray:
    """Stretched to the network's size as in its training: bilinear, without antialiasing."""
    values = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float()
    values = F.interpolate(values, size=(SIZE, SIZE), mode="bilinear").round()
    return np.ascontiguousarray(values[0].flip(0).numpy() / np.float32(255))
