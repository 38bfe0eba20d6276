"""MCUNet (Lin et al., arXiv 2007.10319), built from its JSON description, and its images.

The network for 320 kB of memory: 737,408 parameters, ImageNet at 176 pixels.
"""

from __future__ import annotations

import json
from typing import Any

import networks
import numpy as np
import torch
from torch import Tensor, nn

NAME = "mcunet-320kb-1mb_imagenet"
#: pixels, a side
SIZE = 176


def _conv_norm(
    inputs: int, outputs: int, kernel: int, stride: int, groups: int, clip: bool
) -> nn.Sequential:
    """Convolution with symmetric padding, batch-norm and, for `clip`, ReLU6."""
    found = nn.Sequential()
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    found.add_module("conv", conv)
    found.add_module("bn", nn.BatchNorm2d(outputs))
    if clip:
        found.add_module("act", nn.ReLU6())
    return found


class _Inverted(nn.Module):
    """An inverted residual as its JSON entry describes it; names as in the published weights."""

    def __init__(self, block: dict[str, Any]) -> None:
        super().__init__()
        conv = block["mobile_inverted_conv"]
        if conv["act_func"] != "relu6" or conv["use_se"]:
            raise ValueError(f"only ReLU6 without squeeze-excite is built here, not {conv}")
        inputs, outputs = conv["in_channels"], conv["out_channels"]
        hidden = conv["mid_channels"] or round(inputs * conv["expand_ratio"])
        kernel, stride = conv["kernel_size"], conv["stride"]
        parts = nn.Sequential()
        if conv["expand_ratio"] != 1:
            parts.add_module("inverted_bottleneck", _conv_norm(inputs, hidden, 1, 1, 1, True))
        parts.add_module("depth_conv", _conv_norm(hidden, hidden, kernel, stride, hidden, True))
        parts.add_module("point_linear", _conv_norm(hidden, outputs, 1, 1, 1, False))
        self.mobile_inverted_conv = parts
        self.residual = block["shortcut"] is not None

    def forward(self, x: Tensor) -> Tensor:
        """[n, inputs, h, w] -> [n, outputs, h/stride, w/stride]."""
        y = self.mobile_inverted_conv(x)
        return x + y if self.residual else y


class MCUNet(nn.Module):
    """The network of a description.

    Args:
        description: the JSON file's content.
    """

    def __init__(self, description: dict[str, Any]) -> None:
        super().__init__()
        first, last = description["first_conv"], description["classifier"]
        if description["feature_mix_layer"] is not None:
            raise ValueError("a feature mix layer is not built here")
        channels = first["in_channels"], first["out_channels"]
        self.first_conv = _conv_norm(*channels, first["kernel_size"], first["stride"], 1, True)
        self.blocks = nn.Sequential(*[_Inverted(block) for block in description["blocks"]])
        self.classifier = nn.Sequential()
        linear = nn.Linear(last["in_features"], last["out_features"])
        self.classifier.add_module("linear", linear)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of images [n, 3, 176, 176] in −1..1."""
        return self.classifier(self.blocks(self.first_conv(x)).mean((2, 3)))


def mcunet() -> nn.Module:
    """MCUNet-320kB with the published weights."""
    folder = networks.root() / "imagenet"
    model = MCUNet(json.loads((folder / f"{NAME}.json").read_text()))
    found = torch.load(folder / f"{NAME}.pth", map_location="cpu", weights_only=True)
    model.load_state_dict(found["state_dict"])
    return model.eval()


def imagenet() -> dict[str, np.ndarray]:
    """The images of `networks.imagenet` at 176 pixels, x/127.5 − 1."""
    return networks.imagenet(SIZE, middle=127.5)
