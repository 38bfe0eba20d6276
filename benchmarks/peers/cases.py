"""The cases, their rows, and with what settings each peer takes part.

`CONTENDERS` are each peer's best settings, found by trying; `TRIED` are the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import mcunet
import networks
import numpy as np
from peers.compare import Case

#: calibration images of CIFAR-10
CALIBRATION = 1024

R20, MOBILE = "resnet20", "mobilenet_v2"
TITLES = {R20: "ResNet-20", MOBILE: "MobileNetV2", "mcunet": "MCUNet"}


@dataclass(frozen=True)
class Contender:
    """A peer, its settings, and where it takes part."""

    network: str
    case: Case
    peer: str
    setting: Mapping[str, Any] = field(default_factory=dict)


def rows(network: str) -> dict[str, np.ndarray]:
    """What all parties calibrate on and are judged on.

    CIFAR-10: `CALIBRATION` training images drawn once, and the 517 test images. ImageNet: 250
    images and the other 250.
    """
    if network.startswith("resnet"):
        data = networks.cifar10()
        drawn = np.random.default_rng(0).permutation(len(data["train_x"]))[:CALIBRATION]
        calibration = data["train_x"][np.sort(drawn)]
    else:
        data = mcunet.imagenet() if network == "mcunet" else networks.imagenet()
        calibration = data["train_x"]
    return {"calibration": calibration, "judged": data["test_x"], "labels": data["test_y"]}


FLOAT = {bits: Case(bits, None) for bits in (4, 3, 2)}
EIGHT = {bits: Case(bits, 8) for bits in (8, 4, 3, 2)}
FOUR = Case(4, 4)

CONTENDERS: tuple[Contender, ...] = ()
TRIED: tuple[Contender, ...] = ()
