"""Cutting weights into groups and back."""

from __future__ import annotations

import pytest
import torch

from bitwright.errors import BitwrightError
from bitwright.multibit.groups import Grouping, nearest_divisor, parse, usual


@pytest.mark.parametrize("text", ["kernel", "pixel", "channel", "6"])
@pytest.mark.parametrize("shape", [(5, 4, 3, 3), (5, 12), (5, 2, 6)])
def test_joining_is_the_inverse_of_cutting_and_no_group_leaves_its_channel(text, shape):
    weight = torch.randn(shape)
    grouping = parse(text, shape, "layer")
    groups = grouping.cut(weight)
    assert groups.shape[1] == grouping.size
    assert torch.equal(grouping.join(groups, shape), weight)
    channel = torch.arange(5).reshape(5, *[1] * (len(shape) - 1)).expand(shape)
    owners = grouping.cut(channel.contiguous())
    assert bool((owners == owners[:, :1]).all())


def test_each_kind_is_what_it_is_called():
    weight = torch.arange(2 * 3 * 4).reshape(2, 3, 2, 2)
    assert torch.equal(parse("kernel", (2, 3, 2, 2), "a").cut(weight)[1], weight[0, 1].flatten())
    assert torch.equal(parse("pixel", (2, 3, 2, 2), "a").cut(weight)[1], weight[0, :, 0, 1])
    assert torch.equal(parse("channel", (2, 3, 2, 2), "a").cut(weight)[1], weight[1].flatten())


@pytest.mark.parametrize(("text", "says"), [("5", "use 6"), ("0", "kernel"), ("rows", "kernel")])
def test_what_does_not_fit_is_refused_by_the_layers_name(text: str, says: str):
    with pytest.raises(BitwrightError, match=f"'fc'.*{says}"):
        parse(text, (4, 12), "fc")


def test_usual_groups_divide_a_channel():
    assert usual((10, 800), 64) == Grouping("sub-channel", 80)
    assert usual((20, 1, 5, 5), 64) == Grouping("channel", 25)
    assert nearest_divisor(7, 3) == 7
