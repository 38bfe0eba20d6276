"""Overflows counted on data against a plain loop over what every sum multiplies."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bitwright import overflow
from bitwright.arith.grid import container
from bitwright.deploy.integer import IntegerNetwork
from bitwright.overflow import Accumulator, Count
from bitwright.overflow.count import layer_inputs
from bitwright.quantize import Quantized
from overflow.nets import quantized, rows


def counted_by_hand(found: Quantized, kind: str, bits: int) -> dict[str, tuple[list[int], int]]:
    """Per layer: overflows of each row, and how many sums it has; windows cut by slices."""
    limits = Accumulator(bits, kind)
    result = {}
    for layer, node, stored in layer_inputs(IntegerNetwork(found), rows(2)):
        q = container(found.layers[layer.name].codes, found.layers[layer.name].grid)[0].long()
        if kind != "pairs":
            for row in q:
                while (row % 2 == 0).all() and row.any():
                    row //= 2
        x = stored.q.long()
        if layer.kind == "linear":
            windows = [[r] * layer.rows for r in x]
        else:
            stride, pad = node.args[3][0], node.args[4][0]
            x = torch.nn.functional.pad(x, [pad] * 4, value=stored.grid.zero)
            size, each = layer.shape[2], layer.rows // layer.groups
            inputs = layer.shape[1]
            windows = []
            for image in x:
                for i in range(0, image.shape[1] - size + 1, stride):
                    for j in range(0, image.shape[2] - size + 1, stride):
                        cut = image[:, i : i + size, j : j + size].permute(1, 2, 0)
                        windows.append([
                            cut[..., g * inputs : (g + 1) * inputs].reshape(-1)
                            for g in np.repeat(np.arange(layer.groups), each)
                        ])  # fmt: skip
        over = [0] * layer.rows
        weight = q.reshape(layer.shape)
        if weight.ndim > 2:
            weight = weight.flatten(2).transpose(1, 2).flatten(1)
        depthwise = layer.groups == layer.rows > 1
        for window in windows:
            for r in range(layer.rows):
                raw, w = window[r], weight[r]
                if kind == "pairs":
                    products = (raw * w).tolist()
                    step = 1 if depthwise else 2
                    seen = [sum(products[k : k + step]) for k in range(0, len(products), step)]
                else:
                    seen = ((raw - stored.grid.zero) * w).cumsum(0).tolist()
                    seen = seen[-1:] if kind == "wrap" else seen
                over[r] += any(not limits.lowest <= v <= limits.highest for v in seen)
        result[layer.name] = over, len(windows)
    return result


@pytest.mark.parametrize(("kind", "bits"), [("wrap", 16), ("saturate", 16), ("pairs", 15)])
def test_counts_equal_a_plain_loop(kind: str, bits: int):
    found, _ = quantized()
    expected = counted_by_hand(found, kind, bits)
    counts = overflow.overflows(found, rows(2), Accumulator(bits, kind), chunk=1)
    assert {n: (c.over.tolist(), c.sums) for n, c in counts.items()} == expected
    assert sum(c.total for c in counts.values()) > 0


def test_what_is_met_says_how_much_too_large_it_is():
    found, _ = quantized()
    for kind in overflow.KINDS:
        accumulator = Accumulator(16, kind)
        counts = overflow.overflows(found, rows(2), accumulator)
        for count in counts.values():
            assert torch.equal(count.excess(accumulator) > 1, count.over > 0)
    none = overflow.overflows(found, rows(2), Accumulator(32))
    assert sum(c.total for c in none.values()) == 0


def test_excess_is_of_the_end_that_is_further_out():
    count = Count(torch.zeros(2), 1, torch.tensor([-4096, 0]), torch.tensor([2047, 1023]))
    assert count.excess(Accumulator(12)).tolist() == [2.0, 1023 / 2047]


@pytest.mark.parametrize("kind", overflow.KINDS)
def test_the_emulated_network_is_the_file_s_where_nothing_overflows_and_not_elsewhere(kind: str):
    found, _ = quantized()
    x = rows(6)
    exact = IntegerNetwork(found)(x)
    assert torch.equal(overflow.emulated(found, Accumulator(32, kind))(x), exact)
    assert not torch.equal(overflow.emulated(found, Accumulator(14, kind))(x), exact)
