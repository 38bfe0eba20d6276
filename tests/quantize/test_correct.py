"""The affine correction: least squares per channel, nothing else touched."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bitwright.curvature.divergence import per_sample
from bitwright.network import Network, build, outputs
from bitwright.quantize import (
    Quantized,
    calibrate,
    correct,
    float_outputs,
    mean_bits,
    round_weights,
    rows_that_fit,
    simulate,
    weight_tables,
)


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, 6, 3, padding=1)
        self.conv2 = nn.Conv2d(6, 8, 3, stride=2, padding=1)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv2(torch.relu(self.conv1(x))))
        return self.head(x.mean((2, 3)))


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        return self.block(torch.relu(self.block(x))).mean((2, 3))


def make(model: nn.Module, bits: int = 3, rows: int = 48, seed: int = 0):
    """The network of `model` rounded at `bits`, its inputs and their grids."""
    torch.manual_seed(seed)
    for p in model.parameters():
        if p.ndim > 1:
            nn.init.normal_(p, std=1.5 / p[0].numel() ** 0.5)
        else:
            nn.init.normal_(p, std=0.2)
    x = torch.randn(rows, 2, 8, 8)
    network = build(model.eval(), x)
    widths = {la.name: np.full(la.rows, bits) for la in network.layers}
    return network, round_weights(network, weight_tables(network), widths), x


@pytest.fixture(scope="module")
def tiny():
    torch.manual_seed(0)
    return make(Tiny())


def layer_outputs(quantized: Quantized, x: Tensor) -> dict[str, Tensor]:
    """The output of every layer call in the quantized network."""
    from bitwright.network import run
    from bitwright.quantize.activations import fake_quantize
    from bitwright.quantize.weights import constants

    group = {e.name: e.group for e in quantized.network.edges}
    found = {}

    def edge(node, value):
        grid = quantized.edges.get(group.get(node.name, -1))
        return value if grid is None else fake_quantize(value, grid)

    def call(node, args, kwargs):
        value = node.target(*args, **kwargs)
        found[node.name] = value
        return edge(node, value)

    weights = constants(quantized.network, quantized.layers)
    run(quantized.network.module, x, call, enter=edge, constants=weights)
    return {n: found[n] for la in quantized.network.layers for n in la.calls}


def kl(network: Network, x: Tensor, found: Tensor) -> float:
    return float(per_sample(outputs(network.module, x), found, "kl").mean())


@pytest.mark.parametrize("with_edges", [False, True])
def test_every_layer_and_the_answers_come_closer(tiny, with_edges: bool):
    network, layers, x = tiny
    edges = calibrate(network, x) if with_edges else {}
    reference = float_outputs(network, x)
    plain = Quantized(network, layers, edges)
    offset = correct(network, layers, edges, x, reference, gain=False)
    both = correct(network, layers, edges, x, reference)
    before, after = layer_outputs(plain, x), layer_outputs(both, x)
    assert before.keys() == after.keys() == reference.keys() and len(after) == 3
    for name, target in reference.items():
        error = [float((v[name] - target).square().mean()) for v in (before, after)]
        assert error[1] < error[0], name
        axis = (0, 2, 3) if target.ndim == 4 else (0,)
        gap = (after[name] - target).mean(axis).abs()
        spread = target.std()
        assert float(gap.max()) < 0.02 * float(spread), name  # no offset is left
    answers = [kl(network, x, simulate(q, x)) for q in (plain, offset, both)]
    assert answers[2] < answers[0] and answers[1] < answers[0]
    assert answers[2] < 0.8 * answers[0]


def test_gain_and_offset_are_the_least_squares_solution(tiny):
    network, layers, x = tiny
    reference = float_outputs(network, x)
    found = correct(network, layers, {}, x, reference)
    first = network.layers[0]
    # the first layer sees the same input before and after the correction
    plain = Quantized(network, layers, {})
    values = layer_outputs(plain, x)[first.calls[0]] - layers[first.name].bias[:, None, None]
    for c in range(first.rows):
        y_q = values[:, c].flatten().double().numpy()
        y = reference[first.calls[0]][:, c].flatten().double().numpy()
        design = np.stack([y_q, np.ones_like(y_q)], 1)
        (a, b), *_ = np.linalg.lstsq(design, y, rcond=None)
        stored = found.layers[first.name]
        gain = float(stored.grid.scale[c] / layers[first.name].grid.scale[c])
        assert gain == pytest.approx(a, rel=2**-10)
        # with the gain that float16 leaves, the best offset is the difference of the means
        assert float(stored.bias[c]) == pytest.approx(y.mean() - gain * y_q.mean(), abs=1e-5)
        assert float(stored.bias[c]) == pytest.approx(b, abs=2e-3)


def test_every_later_layer_is_solved_behind_the_corrected_ones(tiny):
    network, layers, x = tiny
    edges = calibrate(network, x)
    reference = float_outputs(network, x)
    found = correct(network, layers, edges, x, reference)
    values = layer_outputs(found, x)
    for layer in network.layers:
        y_q, y = values[layer.calls[0]], reference[layer.calls[0]]
        for c in range(layer.rows):
            design = y_q[:, c].flatten().double().numpy()
            design = np.stack([design, np.ones_like(design)], 1)
            target = y[:, c].flatten().double().numpy()
            (a, b), *_ = np.linalg.lstsq(design, target, rcond=None)
            assert a == pytest.approx(1, abs=2e-3) and b == pytest.approx(0, abs=2e-3)


def test_scales_stay_float16_and_codes_stay(tiny):
    network, layers, x = tiny
    found = correct(network, layers, {}, x, float_outputs(network, x))
    for name, stored in found.layers.items():
        assert torch.equal(stored.codes, layers[name].codes)
        assert torch.equal(stored.grid.zero, layers[name].grid.zero)
        assert torch.equal(stored.grid.bits, layers[name].grid.bits)
        assert torch.equal(stored.grid.scale.half().float(), stored.grid.scale)
        assert bool((stored.grid.scale > 0).all())
    assert mean_bits(network, found.layers) == 3


def test_the_offset_alone_leaves_the_scales(tiny):
    network, layers, x = tiny
    found = correct(network, layers, {}, x, float_outputs(network, x), gain=False)
    for name, stored in found.layers.items():
        assert torch.equal(stored.grid.scale, layers[name].grid.scale)
        assert not torch.equal(stored.bias, layers[name].bias)


def test_a_layer_used_twice_is_left_alone():
    network, layers, x = make(Twice())
    twice = next(la for la in network.layers if len(la.calls) == 2)
    found = correct(network, layers, calibrate(network, x), x, float_outputs(network, x))
    for layer in network.layers:
        same = torch.equal(found.layers[layer.name].bias, layers[layer.name].bias)
        scales = torch.equal(found.layers[layer.name].grid.scale, layers[layer.name].grid.scale)
        assert same == scales == (layer is twice)


@pytest.mark.parametrize("with_edges", [False, True])
def test_simulate_does_not_care_how_rows_are_cut_up(tiny, with_edges: bool):
    network, layers, x = tiny
    edges = calibrate(network, x) if with_edges else {}
    found = correct(network, layers, edges, x, float_outputs(network, x))
    whole = simulate(found, x, chunk=len(x))
    # a value beside a rounding boundary may fall to either side
    slack = 0.05 if with_edges else 1e-4
    assert torch.allclose(simulate(found, x, chunk=5), whole, atol=slack * float(whole.std()))
    assert float((simulate(found, x, chunk=5) - whole).abs().mean()) < 1e-3 * float(whole.std())


def test_the_model_and_the_layers_given_are_unchanged():
    model = Tiny()
    network, layers, x = make(model)
    before = {n: p.clone() for n, p in model.state_dict().items()}
    captured = {n: p.clone() for n, p in network.module.state_dict().items()}
    stored = {n: (q.codes.clone(), q.grid.scale.clone(), q.bias.clone()) for n, q in layers.items()}
    rows = x.clone()
    reference = float_outputs(network, x)
    targets = {n: v.clone() for n, v in reference.items()}
    found = correct(network, layers, calibrate(network, x), x, reference)
    simulate(found, x)
    assert torch.equal(x, rows)
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())
    assert all(torch.equal(v, captured[n]) for n, v in network.module.state_dict().items())
    assert all(torch.equal(v, targets[n]) for n, v in reference.items())
    for name, (codes, scale, bias) in stored.items():
        assert torch.equal(layers[name].codes, codes)
        assert torch.equal(layers[name].grid.scale, scale)
        assert torch.equal(layers[name].bias, bias)


def test_a_dead_channel_keeps_its_scale():
    model = Tiny()
    network, layers, x = make(model)
    conv1 = network.layers[0]
    with torch.no_grad():
        network.tensor(conv1.bias)[0] = -100.0  # never fires behind the relu: its readers see 0
        network.tensor(conv1.weight)[1] = 0.0
    layers = round_weights(
        network,
        weight_tables(network),
        {la.name: np.full(la.rows, 3) for la in network.layers},
    )
    found = correct(network, layers, {}, x, float_outputs(network, x))
    output = simulate(found, x)
    assert bool(output.isfinite().all())
    scale = found.layers[conv1.name].grid.scale
    assert bool(scale.isfinite().all()) and bool((scale > 0).all())
    assert float(scale[1] / layers[conv1.name].grid.scale[1]) == pytest.approx(1)


def test_eight_bits_need_no_correction(tiny):
    network, _, x = tiny
    widths = {la.name: np.full(la.rows, 8) for la in network.layers}
    layers = round_weights(network, weight_tables(network), widths)
    found = correct(network, layers, {}, x, float_outputs(network, x))
    output = simulate(found, x)
    for name, stored in found.layers.items():
        ratio = stored.grid.scale / layers[name].grid.scale
        assert float((ratio - 1).abs().max()) < 0.01
    assert kl(network, x, output) < 1e-4


def test_rows_that_fit_follows_the_limit(tiny):
    network, _, x = tiny
    per_row = sum(v[0].numel() for v in float_outputs(network, x).values())
    assert rows_that_fit(network, 4e6) == int(4e6 // (4 * per_row))
    assert rows_that_fit(network, 1) == 8
