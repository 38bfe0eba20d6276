"""The networks whose files `deploy.py` measures, each with a few rows to capture it on."""

from __future__ import annotations

from collections.abc import Callable

import fastestdet
import language
import mcunet
import networks
import squeezenet
import torch
from torch import Tensor, nn

from bitwright import demo


class Encoder(nn.Module):
    """MiniLM's six blocks with a head on tokens that are embedded already; random weights.

    Bytes do not depend on what the weights are. An embedding has no quantized form here: its 46 MB
    of float would hide everything else.
    """

    def __init__(self, width: int = 384, inner: int = 1536, blocks: int = 6) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(language.Block(width, inner, 12) for _ in range(blocks))
        self.head = nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        """[n, tokens, width] -> [n, 2]."""
        for block in self.blocks:
            x = block(x, None)
        return self.head(x.mean(1))


def encoder() -> nn.Module:
    """The encoder, seeded."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Encoder().eval()


def _noise(*shape: int) -> Tensor:
    return torch.randn(4, *shape, generator=torch.Generator().manual_seed(0))


#: name -> the network and rows for it; those that need no data folder first
ROSTER: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "embedded default": lambda: (demo.network(), torch.from_numpy(demo.data()["test_x"][:16])),
    "transformer encoder": lambda: (encoder(), _noise(32, 384)),
    "ResNet-20": lambda: (networks.resnet20(), _noise(3, 32, 32)),
    "ResNet-44": lambda: (networks.resnet44(), _noise(3, 32, 32)),
    "MCUNet": lambda: (mcunet.mcunet(), _noise(3, 176, 176)),
    "SqueezeNet": lambda: (squeezenet.squeezenet(), _noise(3, 224, 224)),
    "FastestDet": lambda: (fastestdet.fastestdet(), _noise(3, 352, 352)),
    "MobileNetV2": lambda: (networks.mobilenet_v2(), _noise(3, 224, 224)),
}
#: of a quick run
QUICK = ("embedded default", "ResNet-20")
