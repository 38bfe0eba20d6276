"""SqueezeNet 1.0 (Iandola et al., arXiv 1602.07360) after Deep Compression: 67 % of it is zeros.

1,248,424 parameters without batch-norm, ImageNet at 224 pixels, BGR less the mean of each colour.
"""

from __future__ import annotations

import networks
import numpy as np
import torch
from torch import Tensor, nn

#: squeeze and expand widths of the fire modules, and the places of the pools between them
FIRES = {
    3: (96, 16, 64),
    4: (128, 16, 64),
    5: (128, 32, 128),
    7: (256, 32, 128),
    8: (256, 48, 192),
    9: (384, 48, 192),
    10: (384, 64, 256),
    12: (512, 64, 256),
}
#: what Caffe subtracts from BGR in 0..255
MEANS = (104.0, 117.0, 123.0)


class Fire(nn.Module):
    """A 1×1 convolution to few channels, then 1×1 and 3×3 ones side by side."""

    def __init__(self, inputs: int, squeeze: int, expand: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(inputs, squeeze, 1)
        self.expand1x1 = nn.Conv2d(squeeze, expand, 1)
        self.expand3x3 = nn.Conv2d(squeeze, expand, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[n, inputs, h, w] -> [n, 2 · expand, h, w]."""
        x = self.squeeze(x).relu()
        return torch.cat([self.expand1x1(x).relu(), self.expand3x3(x).relu()], 1)


class SqueezeNet(nn.Module):
    """SqueezeNet 1.0 with torchvision's parameter names."""

    def __init__(self) -> None:
        super().__init__()
        parts: list[nn.Module] = [nn.Conv2d(3, 96, 7, 2), nn.ReLU()]
        for place in range(2, 13):
            pool = nn.MaxPool2d(3, 2, ceil_mode=True)
            parts.append(Fire(*FIRES[place]) if place in FIRES else pool)
        self.features = nn.Sequential(*parts)
        self.classifier = nn.Sequential(
            nn.Dropout(), nn.Conv2d(512, 1000, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Logits of images [n, 3, 224, 224] as :func:`imagenet` gives them."""
        return self.classifier(self.features(x)).flatten(1)


def squeezenet() -> nn.Module:
    """SqueezeNet with the published weights, decoded."""
    model = SqueezeNet()
    path = networks.root() / "imagenet" / "squeezenet1_0_deepcompressed_decoded.pt"
    model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return model.eval()


def imagenet() -> dict[str, np.ndarray]:
    """The images of `networks.imagenet`, BGR in 0..255 less the means."""
    data = networks.imagenet()
    means = np.array(MEANS, np.float32)[:, None, None]
    for name in ("train_x", "test_x"):
        data[name] = np.ascontiguousarray((data[name] * 128 + 128)[:, ::-1] - means)
    return data
