"""SqueezeNet 1.0 (Iandola et al., arXiv 1602.07360), its weights after Deep Compression."""

from __future__ import annotations

import networks
import numpy as np
import torch
from torch import Tensor, nn

WEIGHTS = "squeezenet1_0_deepcompressed_decoded.pt"
#: means of blue, green and red, 0..255
MEANS = (104.0, 117.0, 123.0)


class _Fire(nn.Module):
    """A narrow 1 × 1 convolution, then 1 × 1 and 3 × 3 side by side; names as in torchvision."""

    def __init__(self, inputs: int, narrow: int, wide: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(inputs, narrow, 1)
        self.expand1x1 = nn.Conv2d(narrow, wide, 1)
        self.expand3x3 = nn.Conv2d(narrow, wide, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[n, inputs, h, w] -> [n, 2 · wide, h, w]."""
        x = torch.relu(self.squeeze(x))
        return torch.cat([torch.relu(self.expand1x1(x)), torch.relu(self.expand3x3(x))], 1)


class SqueezeNet(nn.Module):
    """SqueezeNet 1.0."""

    def __init__(self) -> None:
        super().__init__()

        def pool() -> nn.Module:
            return nn.MaxPool2d(3, 2, ceil_mode=True)

        self.features = nn.Sequential(
            *(nn.Conv2d(3, 96, 7, 2), nn.ReLU(), pool()),
            *(_Fire(96, 16, 64), _Fire(128, 16, 64), _Fire(128, 32, 128), pool()),
            *(_Fire(256, 32, 128), _Fire(256, 48, 192), _Fire(384, 48, 192), _Fire(384, 64, 256)),
            *(pool(), _Fire(512, 64, 256)),
        )
        self.classifier = nn.Sequential(nn.Dropout(), nn.Conv2d(512, 1000, 1), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        """Logits of BGR images [n, 3, 224, 224] less their means."""
        return self.classifier(self.features(x)).mean((2, 3))


def squeezenet() -> nn.Module:
    """SqueezeNet with the decoded weights."""
    model = SqueezeNet()
    path = networks.root() / "imagenet" / WEIGHTS
    model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return model.eval()


def imagenet() -> dict[str, np.ndarray]:
    """The images of `networks.imagenet` in blue, green and red, less their means."""
    found = networks.imagenet()
    means = np.array(MEANS, np.float32).reshape(3, 1, 1)
    for name in ("train_x", "test_x"):
        found[name] = np.ascontiguousarray(found[name][:, ::-1] * 128 + 128 - means)
    return found
