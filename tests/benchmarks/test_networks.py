"""The benchmarks' networks reach what their weights are known for, and capture keeps it."""

from __future__ import annotations

import json
from collections.abc import Callable

import fastestdet
import mcunet
import networks
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import bitwright.network

pytestmark = [
    pytest.mark.data,
    pytest.mark.skipif(not networks.root().is_dir(), reason=f"there is no {networks.root()}"),
]


def answers(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([model(rows) for rows in x.split(20)])


def test_mcunet_classifies_as_published():
    data = mcunet.imagenet()
    x, labels = torch.from_numpy(data["train_x"][:60]), torch.from_numpy(data["train_y"][:60])
    model = mcunet.mcunet()

    def right(images: Tensor) -> int:
        return int((answers(model, images).argmax(1) == labels).sum())

    assert abs(right(x) - 50) <= 1  # 342 of all 500
    assert right(x.flip(1)) < 40  # BGR: the colours are as the network knows them


def test_mcunet_refuses_what_it_would_build_wrongly():
    path = networks.root() / "imagenet" / f"{mcunet.NAME}.json"
    description = json.loads(path.read_text())
    description["blocks"][3]["mobile_inverted_conv"]["use_se"] = True
    with pytest.raises(ValueError, match="squeeze-excite"):
        mcunet.MCUNet(description)


def test_fastestdet_detects_as_published():
    pytest.importorskip("pycocotools")
    import detection

    data = {k: torch.from_numpy(v) for k, v in fastestdet.coco().items()}
    assert sum(int((data[k][..., 0] >= 0).sum()) for k in ("train_y", "test_y")) == 898
    model = fastestdet.fastestdet()
    assert sum(p.numel() for p in model.parameters()) == 244_490
    x, labels = data["test_x"][:24], data["test_y"][:24]
    found = detection.average_precision(answers(model, x), labels)
    assert found == pytest.approx((0.2078, 0.3908), abs=0.003)  # 0.1912, 0.3548 on all 128
    assert detection.map50(answers(model, x.flip(1)), labels) < 0.33  # RGB


@pytest.mark.parametrize(
    ("make", "size", "layers"),
    [(mcunet.mcunet, mcunet.SIZE, 55), (fastestdet.fastestdet, fastestdet.SIZE, 70)],
    ids=["MCUNet", "FastestDet"],
)
def test_the_captured_network_answers_the_same(
    make: Callable[[], nn.Module], size: int, layers: int
):
    x = torch.from_numpy(np.random.default_rng(0).uniform(0, 1, (3, 3, size, size))).float()
    model = make()
    network = bitwright.network.build(model, x)
    assert len(network.layers) == layers and not network.skipped
    torch.testing.assert_close(
        bitwright.network.outputs(network.module, x), answers(model, x), atol=1e-3, rtol=1e-3
    )
