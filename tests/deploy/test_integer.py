"""The runtime's formulas, each against exact arithmetic."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from bitwright.arith.grid import Grid, container
from bitwright.deploy import IntegerNetwork
from bitwright.deploy.integer import (
    Stored,
    _add,
    _global_average,
    _mul,
    exact_sums,
    integer_bias,
    quantize,
)
from bitwright.network import build
from bitwright.network.ops import aten
from bitwright.quantize import EdgeGrid, Quantized, round_weights, simulate, weight_tables
from bitwright.quantize.weights import QuantizedLayer
from deploy import nets

grids = st.builds(
    lambda s, z: EdgeGrid(float(np.float32(s)), z), st.floats(1e-3, 10), st.integers(0, 255)
)


def draw(seed: int, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, shape, generator=generator).double()


def long(value: float) -> np.longdouble:
    return np.longdouble(np.float32(value))


def rounded(exact: np.ndarray, zero: int) -> tuple[np.ndarray, np.ndarray]:
    """The exact result in steps, and where it lies clear of a tie."""
    steps = exact + zero
    clear = np.abs(steps - np.floor(steps) - 0.5) > 1e-3  # float32 is closer than that to 255
    return np.clip(np.rint(steps), 0, 255).astype(np.int64), clear


@settings(max_examples=100, deadline=None)
@given(grids, grids, grids, st.integers(0, 2**31))
def test_add_is_exact_except_at_ties(a: EdgeGrid, b: EdgeGrid, out: EdgeGrid, seed: int):
    qa, qb = draw(seed, 500), draw(seed + 1, 500)
    found = _add(Stored(qa, a), Stored(qb, b), out).q.numpy()
    exact = long(a.scale) * (qa.numpy().astype(np.longdouble) - a.zero)
    exact = (exact + long(b.scale) * (qb.numpy().astype(np.longdouble) - b.zero)) / long(out.scale)
    expected, clear = rounded(exact, out.zero)
    # with large ratios of scales float32 keeps fewer places behind the point
    clear &= np.abs(exact) < 2000
    size = (a.scale + b.scale) / out.scale * 255
    if size < 5000:
        assert np.array_equal(found[clear], expected[clear])
    assert (np.abs(found - expected) <= 1)[np.abs(exact) < 2000].all()


@settings(max_examples=100, deadline=None)
@given(grids, grids, grids, st.integers(0, 2**31))
def test_mul_is_exact_except_at_ties(a: EdgeGrid, b: EdgeGrid, out: EdgeGrid, seed: int):
    qa, qb = draw(seed, 500), draw(seed + 1, 500)
    node: Any = None
    found = _mul(node, (Stored(qa, a), Stored(qb, b)), out)
    assert found is not None
    exact = (qa - a.zero).numpy().astype(np.longdouble) * (qb - b.zero).numpy()
    exact = exact * long(a.scale) * long(b.scale) / long(out.scale)
    expected, clear = rounded(exact, out.zero)
    clear &= np.abs(exact) < 1000
    assert np.array_equal(found.q.numpy()[clear], expected[clear])


@settings(max_examples=50, deadline=None)
@given(grids, grids, st.integers(0, 2**31), st.integers(1, 9))
def test_global_average_is_exact_except_at_ties(x: EdgeGrid, out: EdgeGrid, seed: int, side: int):
    q = draw(seed, 3, 5, side, side)
    node: Any = SimpleNamespace(target=aten.adaptive_avg_pool2d.default, args=(None, [1, 1]))
    found = _global_average(node, (Stored(q, x), [1, 1]), out)
    assert found is not None and found.q.shape == (3, 5, 1, 1)
    exact = (q - x.zero).sum((2, 3)).numpy().astype(np.longdouble)
    exact = exact * long(x.scale) / (long(out.scale) * side * side)
    expected, clear = rounded(exact, out.zero)
    clear &= np.abs(exact) < 1000
    assert np.array_equal(found.q.numpy()[:, :, 0, 0][clear], expected[clear])


@settings(max_examples=50, deadline=None)
@given(grids, st.integers(0, 2**31))
def test_quantize_inverts_the_float_value(grid: EdgeGrid, seed: int):
    q = draw(seed, 200)
    again = quantize(Stored(q, grid).float(), grid)
    assert torch.equal(again.q, q)
    assert quantize(torch.tensor([-1e9, 1e9]), grid).q.tolist() == [0, 255]


@settings(max_examples=50, deadline=None)
@given(st.floats(1e-3, 1), st.integers(0, 2**31))
def test_integer_bias_is_within_half_a_step(scale: float, seed: int):
    generator = torch.Generator().manual_seed(seed)
    bits = torch.tensor([1, 3, 7, 8])
    grid = Grid(bits, torch.tensor([0.5, 0.25, 0.01, 0.02]), torch.tensor([1, 7, 127, 256]))
    stored = QuantizedLayer(
        torch.zeros(4, 5, dtype=torch.uint8), grid, 3 * torch.randn(4, generator=generator)
    )
    edge = EdgeGrid(float(np.float32(scale)), 3)
    found = integer_bias(stored, edge)
    assert found.dtype == torch.int32
    step = np.float32(scale) * container(stored.codes, grid)[1].numpy()
    gap = np.abs(found.numpy() * step.astype(float) - stored.bias.numpy())
    assert (gap <= step * 0.5001).all()


def brute_conv(
    q: np.ndarray, w: np.ndarray, bias: np.ndarray, stride: int, pad: int, groups: int
) -> np.ndarray:
    """Convolution of int64 arrays, as its definition says."""
    n, _, height, width = q.shape
    rows, per_group, k, _ = w.shape
    padded = np.zeros((n, q.shape[1], height + 2 * pad, width + 2 * pad), np.int64)
    padded[:, :, pad : pad + height, pad : pad + width] = q
    out_h, out_w = (padded.shape[2] - k) // stride + 1, (padded.shape[3] - k) // stride + 1
    found = np.zeros((n, rows, out_h, out_w), np.int64)
    for r in range(rows):
        group = r // (rows // groups)
        source = padded[:, group * per_group : (group + 1) * per_group]
        for i in range(out_h):
            for j in range(out_w):
                window = source[:, :, i * stride : i * stride + k, j * stride : j * stride + k]
                found[:, r, i, j] = (window * w[r]).sum((1, 2, 3)) + bias[r]
    return found


@pytest.mark.parametrize(
    ("stride", "pad", "groups", "zero"), [(1, 1, 1, 0), (2, 1, 2, 117), (2, 0, 4, 255)]
)
def test_a_convolution_is_the_rule_on_int64(stride: int, pad: int, groups: int, zero: int):
    torch.manual_seed(stride + zero)
    first = nn.Conv2d(4, 8, 3, stride, pad, groups=groups)
    model = nn.Sequential(first, nn.ReLU(), nn.Conv2d(8, 2, 1)).eval()
    x = torch.randn(5, 4, 7, 7)
    network = build(model, x)
    bits = {"0": np.arange(1, 9), "2": np.array([8, 8])}
    layers = round_weights(network, weight_tables(network), bits)
    edge = {e.name: e.group for e in network.edges}
    step_in, step_out = np.float32(0.02), np.float32(0.013)
    edges = dict.fromkeys(edge.values(), EdgeGrid(0.02, 128))
    edges[edge["input"] if "input" in edge else network.edges[0].group] = EdgeGrid(
        float(step_in), zero
    )
    edges[edge["relu"]] = EdgeGrid(float(step_out), 0)
    notes: dict[str, torch.Tensor] = {}
    integer = IntegerNetwork(Quantized(network, layers, edges))
    integer.trace(x, lambda name, value: notes.__setitem__(name, value.q))
    q = np.clip(np.rint(x.numpy() / step_in) + zero, 0, 255).astype(np.int64)
    assert np.array_equal(q, notes[network.edges[0].name].numpy())
    w, t = container(layers["0"].codes, layers["0"].grid)
    bias = integer_bias(layers["0"], EdgeGrid(float(step_in), zero)).numpy().astype(np.int64)
    weight = w.reshape(first.weight.shape).numpy().astype(np.int64)
    sums = brute_conv(q - zero, weight, bias, stride, pad, groups)
    factor = step_in * t.numpy() / step_out  # float32, as the runtime's multiplier
    assert factor.dtype == np.float32
    product = sums.astype(np.float32) * factor[:, None, None]
    expected = np.clip(np.rint(product), 0, 255)
    assert np.array_equal(notes["relu"].numpy(), expected)
    assert 0 < (expected > 0).mean() < 1


@pytest.mark.parametrize("size", [1, 40, 4096])
def test_sums_are_exact_where_float32_is_not(size: int):
    """The short cut through float32 is taken only where it cannot lose a unit."""
    x = torch.full((2, size), 255.0, dtype=torch.float64)
    x[1] = draw(0, size)
    weight = torch.full((3, size), 127, dtype=torch.int8)
    weight[1] = -127
    weight[2] = draw(1, size).sub(128).to(torch.int8)
    bias = torch.tensor([1, 2**24 + 1, -(2**31) + 1], dtype=torch.int32)
    node: Any = SimpleNamespace(target=aten.linear.default)
    for b in (bias, bias * 0):
        found = exact_sums(node, x, weight, b, ())
        exact = x.long() @ weight.long().T + b.long()
        assert torch.equal(found.long(), exact) and found.dtype == torch.float64


@pytest.mark.parametrize("name", ["plain", "residual", "squeeze_excite", "tokens", "signal"])
def test_integers_are_close_to_the_simulation(name: str):
    """Another way of computing the same network: float32, rounded at the same edges."""
    quantized, x = nets.quantized(name)
    ours, theirs = IntegerNetwork(quantized)(x), simulate(quantized, x)
    assert ours.shape == theirs.shape and ours.dtype == torch.float32
    assert float((ours - theirs).abs().mean()) < 0.02 * float(theirs.std())


def test_a_state_dict_holds_only_buffers():
    quantized, x = nets.quantized("plain")
    module = IntegerNetwork(quantized)
    assert not list(module.parameters())
    before = [b.clone() for b in module.buffers()]
    first = module(x)
    assert torch.equal(module(x), first) and not first.requires_grad
    assert all(torch.equal(a, b) for a, b in zip(before, module.buffers(), strict=True))


def test_without_edges_the_reference_is_the_simulation():
    quantized, x = nets.quantized("residual", edges=False)
    notes: list[str] = []
    found = IntegerNetwork(quantized).trace(x, lambda name, value: notes.append(name))
    assert not notes
    assert torch.allclose(found, simulate(quantized, x), atol=1e-5)
