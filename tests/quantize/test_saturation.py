"""Rows whose pairs are too large: found exactly, and narrowed no more than needed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import nn

from bitwright.arith.grid import container
from bitwright.arith.saturation import saturated
from bitwright.network import Network, build
from bitwright.quantize import (
    EdgeGrid,
    QuantizedLayer,
    exposed,
    input_tops,
    narrowed,
    round_weights,
    weight_tables,
)


def networks() -> tuple[Network, dict[str, QuantizedLayer], dict[int, EdgeGrid]]:
    """Convolutions of 8, 7 and 6 bits with large weights side by side, and a depthwise one."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 1),
        nn.ReLU(),
        nn.Conv2d(8, 6, 1),
    )
    for module in model:
        if isinstance(module, nn.Conv2d):
            module.weight.data = module.weight.data.sign() * (0.8 + 0.2 * module.weight.data.abs())
    network = build(model.eval(), torch.randn(4, 3, 8, 8))
    widths = {
        la.name: np.full(la.rows, b) for la, b in zip(network.layers, (8, 8, 7, 6), strict=True)
    }
    layers = round_weights(network, weight_tables(network), widths)
    return network, layers, {e.group: EdgeGrid(0.02, 0) for e in network.edges}


def test_exposed_rows_are_those_that_some_input_spoils():
    network, layers, edges = networks()
    found = exposed(network, layers, edges)
    assert set(found) == {"0", "4"}  # not depthwise, not 6 bits
    matrix = container(layers["4"].codes, layers["4"].grid)[0].long()
    worst = torch.cat([(sign * matrix > 0).long() * 255 for sign in (1, -1)])
    spoiled = (saturated(worst, matrix) != worst @ matrix.T).any(0)
    assert torch.equal(found["4"] > 1, spoiled) and bool(spoiled.any())


def test_narrower_activations_make_wide_weights_safe():
    network, layers, edges = networks()
    few = {g: replace(e, bits=7) for g, e in edges.items()}
    assert set(exposed(network, layers, edges)) and not exposed(network, layers, few)
    assert set(input_tops(network, few).values()) == {127}
    assert not exposed(network, layers, {})  # in float nothing saturates


def test_narrowed_rows_are_safe_and_others_untouched():
    network, layers, edges = networks()
    before = exposed(network, layers, edges)
    found = narrowed(network, layers, edges)
    assert not exposed(network, found, edges)
    assert found["2"] is layers["2"] and found["6"] is layers["6"]
    for name, ratio in before.items():
        old, new = layers[name], found[name]
        rows = ratio > 1
        assert torch.equal(new.codes[~rows], old.codes[~rows])
        assert torch.equal(new.grid.scale[~rows], old.grid.scale[~rows])
        assert torch.equal(new.grid.bits, old.grid.bits) and torch.equal(new.bias, old.bias)
        growth = (new.grid.scale / old.grid.scale)[rows]
        # no less than the pairs ask for, and a little more at most: float16, and rounding up
        assert bool((growth >= 0.99 * ratio[rows]).all() and (growth <= 1.05 * ratio[rows]).all())
        assert bool((growth <= 2.1).all())
        error = (new.matrix() - old.matrix()).abs().amax(1)
        assert bool((error <= 0.5001 * new.grid.scale)[rows].all())
        assert torch.equal(new.grid.scale, new.grid.scale.half().float())


def test_narrowing_twice_is_narrowing_once():
    network, layers, edges = networks()
    once = narrowed(network, layers, edges)
    assert narrowed(network, once, edges) == once  # the same objects
