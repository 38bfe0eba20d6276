"""Bit operations against counts by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from bitwright.cost import bops_per_bit
from bitwright.network import build
from deploy import nets
from mutants import mutant
from small import Fn

#: [1, 8, 8] -> stem 6 channels at 8×8 of 1·3·3 weights -> grouped: 4 channels at 4×4 (stride 2)
#: of 3·5 weights (two groups of 3 inputs, 1×5) -> pointwise: 3 channels at 4×4 of 4 weights
#: -> linear: 5 of 48
IMAGE = {
    "stem": (6, 8 * 8 * 9),
    "grouped": (4, 4 * 4 * 15),
    "pointwise": (3, 4 * 4 * 4),
    "head": (5, 48),
}


def image() -> nn.Module:
    def forward(m: Fn, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(m.pointwise(torch.relu(m.grouped(torch.relu(m.stem(x))))))
        return m.head(x.flatten(1))

    return Fn(
        forward,
        stem=nn.Conv2d(1, 6, 3, padding=1),
        grouped=nn.Conv2d(6, 4, (1, 5), stride=2, padding=(0, 2), groups=2),
        pointwise=nn.Conv2d(4, 3, 1),
        head=nn.Linear(48, 5),
    ).eval()


def by_hand(counts: dict[str, tuple[int, int]], bits: int) -> list[int]:
    return [macs * bits for channels, macs in counts.values() for _ in range(channels)]


def test_images_strides_groups_and_linear():
    network = build(image(), torch.zeros(2, 1, 8, 8))
    assert [layer.name for layer in network.layers] == list(IMAGE)
    assert bops_per_bit(network).tolist() == by_hand(IMAGE, 8)
    assert bops_per_bit(network).dtype == np.int64
    assert bops_per_bit(network, None).tolist() == by_hand(IMAGE, 32)
    assert bops_per_bit(network).sum() == 8 * sum(layer.macs for layer in network.layers)


def test_signals():
    network = build(nets.signal().eval(), torch.zeros(2, 2, 16))
    # 6 channels at 16 of 2·5; pooled to 8; 6 channels at 4 (stride 2) of 6·3; 5 of 24
    counts = {"a": (6, 16 * 10), "b": (6, 4 * 18), "head": (5, 24)}
    assert bops_per_bit(network).tolist() == by_hand(counts, 8)


def test_every_position_of_a_linear_layer_and_every_call_counts():
    tokens = build(nets.tokens().eval(), torch.zeros(2, 7, 6))
    counts = {"inside": (8, 7 * 6), "a": (16, 7 * 8), "b": (6, 7 * 16), "head": (5, 6)}
    assert bops_per_bit(tokens).tolist() == by_hand(counts, 8)
    twice = build(nets.twice().eval(), torch.zeros(2, *nets.IMAGE))
    counts = {"a": (6, 64 * 27), "b": (6, 2 * 64 * 54), "head": (5, 6)}
    assert bops_per_bit(twice).tolist() == by_hand(counts, 8)


def test_layers_left_in_float_are_not_counted():
    network = build(image(), torch.zeros(2, 1, 8, 8), skip=("stem",))
    rest = {name: count for name, count in IMAGE.items() if name != "stem"}
    assert bops_per_bit(network).tolist() == by_hand(rest, 8)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("for name in layer.calls:", "for name in layer.calls[-1:]:"),  # once for two calls
        ('node.meta["row_shape"]', "layer.shape[2:]"),  # positions of the kernel
        ("// layer.rows *", "*"),  # a layer's count for each channel
        ("FLOAT_BITS = 32", "FLOAT_BITS = 8"),
    ],
)
def test_a_wrong_count_is_seen(old: str, new: str):
    wrong = mutant("cost.bops", old, new).bops_per_bit
    twice = build(nets.twice().eval(), torch.zeros(2, *nets.IMAGE))
    counts = {"a": (6, 64 * 27), "b": (6, 2 * 64 * 54), "head": (5, 6)}
    right = wrong(twice).tolist() == by_hand(counts, 8)
    assert not right or wrong(twice, None).tolist() != by_hand(counts, 32)
