"""The cases, their rows, and with what settings each peer takes part.

`CONTENDERS` are the settings with which a peer did best in a case; `TRIED` are others that it was
given there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import language
import mcunet
import networks
import numpy as np
from peers import compare
from peers.compare import Case

#: calibration images of CIFAR-10
CALIBRATION = 1024
#: rows made of each calibration image of ImageNet
VIEWS = 4

#: calibration sentences of SST-2
SENTENCES = 256

R20, MOBILE, MINILM = "resnet20", "mobilenet_v2", "minilm"
TITLES = {R20: "ResNet-20", MOBILE: "MobileNetV2", MINILM: "MiniLM"}


@dataclass(frozen=True)
class Contender:
    """A peer, where it takes part, and its settings."""

    network: str
    case: Case
    peer: str
    setting: Mapping[str, Any] = field(default_factory=dict)


def rows(network: str) -> dict[str, np.ndarray]:
    """What all parties calibrate on and are judged on.

    CIFAR-10: `CALIBRATION` training images drawn once, and the 517 test images. ImageNet: 250
    images, each seen in `VIEWS` ways, and the other 250. SST-2: `SENTENCES` training sentences, and
    the dev sentences.

    Returns:
        `calibration`, `calibration_labels`, `judged`, `labels`.
    """
    if network.startswith("resnet"):
        data = networks.cifar10()
        drawn = np.random.default_rng(0).permutation(len(data["train_x"]))[:CALIBRATION]
        chosen = np.sort(drawn)
    elif network == MINILM:
        data = language.sst2_rows(SENTENCES)
        chosen = np.arange(SENTENCES)
    else:
        data = mcunet.imagenet() if network == "mcunet" else networks.imagenet(views=VIEWS)
        chosen = np.arange(len(data["train_x"]))
    return {
        "calibration": data["train_x"][chosen],
        "calibration_labels": data["train_y"][chosen],
        "judged": data["test_x"],
        "labels": data["test_y"],
    }


def of(network: str, case: Case, contenders: Iterable[Contender]) -> list[Contender]:
    """Those that take part in a case."""
    return [c for c in contenders if (c.network, c.case) == (network, case)]


def peer_rows(
    network: str, case: Case, calibration: np.ndarray, judged: np.ndarray
) -> list[compare.PeerResult]:
    """What every contender of a case makes of it; computed where it is not in the cache."""
    return [
        compare.run(c.peer, network, case, c.setting, calibration, judged)
        for c in of(network, case, CONTENDERS)
    ]


W4, W3, W2 = (Case(bits, None) for bits in (4, 3, 2))
W8A8, W4A8, W3A8, W2A8 = (Case(bits, 8) for bits in (8, 4, 3, 2))
W4A4 = Case(4, 4)

#: the peers' settings by name: rows are fewer than there are where more cost minutes for little
QRONOS = {"rounding": "qronos", "rows": 256}
INPUTS = {**QRONOS, "backend": "layerwise"}
NEAREST = {"rounding": "nearest"}
GPTQ = {"rounding": "gptq", "rows": 256}
LEARNED = {"rounding": "learned", "rows": 256, "iterations": 500, "batch": 8, "rate": 0.01}
#: the last layer of MobileNetV2 has a third of its weights, the depthwise ones 2 %
NARROW = {**GPTQ, "backend": "layerwise", "last": None, "depthwise": 8}
#: one width for all, the last layer and the embeddings among them
UNIFORM = {"rounding": "gptq", "last": None, "scale": "mse"}
WIDTHS = {"widths": [8, 6, 5, 4, 3, 2]}
GRADIENT = {**WIDTHS, "epochs": 20, "rows": 512, "batch": 16}

CONTENDERS: tuple[Contender, ...] = (
    Contender(R20, W8A8, "onnxruntime"),
    Contender(R20, W8A8, "nncf"),
    Contender(R20, W4, "brevitas", QRONOS),
    Contender(R20, W4, "mct", WIDTHS),
    Contender(R20, W3, "brevitas", QRONOS),
    Contender(R20, W3, "mct", GRADIENT),
    Contender(R20, W2, "brevitas", QRONOS),
    Contender(R20, W4A8, "brevitas", INPUTS),
    Contender(R20, W3A8, "brevitas", INPUTS),
    Contender(R20, W2A8, "brevitas", INPUTS),
    Contender(R20, W4A4, "brevitas", {**INPUTS, "act_scale": "mse"}),
    Contender(MOBILE, W4A8, "brevitas", NARROW),
    Contender(MOBILE, W4A8, "mct", WIDTHS),
    Contender(MINILM, W3, "brevitas", UNIFORM),
)
TRIED: tuple[Contender, ...] = (
    Contender(R20, W4, "brevitas", {**NEAREST, "scale": "mse"}),
    Contender(R20, W4, "brevitas", {"rounding": "gptq", "scale": "mse"}),
    Contender(R20, W4, "brevitas", {"rounding": "qronos", "scale": "mse"}),
    Contender(R20, W4, "mct"),
    Contender(R20, W4A4, "brevitas", INPUTS),
    Contender(R20, W3, "brevitas", {**NEAREST, "scale": "mse"}),
    Contender(R20, W3, "brevitas", {**NEAREST, "scale": "stats"}),
    Contender(R20, W3, "brevitas", GPTQ),
    Contender(R20, W3, "brevitas", LEARNED),
    Contender(R20, W3, "mct"),
    Contender(R20, W3, "mct", WIDTHS),
    Contender(R20, W3, "mct", {**WIDTHS, "epochs": 16, "rows": 256}),
)
