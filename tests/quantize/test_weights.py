"""Tables of grids: any plan is a lookup, and costs what it says."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from bitwright.arith.grid import dequantize, fit, quantize
from bitwright.network import build, outputs
from bitwright.quantize import Quantized, mean_bits, round_weights, simulate, weight_tables


def network(seed: int = 0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(2, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(80, 3))
    x = torch.randn(8, 2, 6, 6)
    return build(model.eval(), x), x


def test_rows_of_any_widths_are_looked_up():
    net, _ = network()
    done: list[float] = []
    tables = weight_tables(net, done.append)
    assert done == [0.5, 1.0]
    rng = np.random.default_rng(0)
    bits = {la.name: rng.integers(1, 9, la.rows) for la in net.layers}
    layers = round_weights(net, tables, bits)
    total = 0
    for layer in net.layers:
        stored = layers[layer.name]
        matrix = net.matrix(layer)
        assert torch.equal(stored.grid.bits, torch.as_tensor(bits[layer.name]))
        assert torch.equal(stored.bias, net.tensor(layer.bias))
        for c, b in enumerate(bits[layer.name]):
            grid, error = fit(matrix[c : c + 1], int(b))
            assert torch.equal(
                stored.matrix()[c], dequantize(quantize(matrix[c : c + 1], grid), grid)[0]
            )
            assert torch.isclose(tables[layer.name].error[b - 1, c], error[0])
            total += int(b) * layer.fan_in
    assert mean_bits(net, layers) == total / net.weights


def test_more_bits_come_closer_to_the_float_network():
    net, x = network(1)
    tables = weight_tables(net)
    target = outputs(net.module, x)
    errors = []
    for b in (2, 4, 6, 8):
        layers = round_weights(net, tables, {la.name: np.full(la.rows, b) for la in net.layers})
        errors.append(float((simulate(Quantized(net, layers, {}), x) - target).square().mean()))
    assert errors == sorted(errors, reverse=True) and errors[-1] < 1e-2 * errors[0]
