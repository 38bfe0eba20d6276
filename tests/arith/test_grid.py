"""Grids: rounding is nearest, the container is exact, the fit is close to the best there is."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bitwright.arith.grid import (
    MAX_BITS,
    Grid,
    container,
    dequantize,
    fit,
    nearest,
    quantize,
    reach,
    round_scale,
    zero_points,
)

WIDTHS = range(1, MAX_BITS + 1)


@st.composite
def grids(draw: st.DrawFn) -> Grid:
    """Grids of some rows, each with a width, a float16 scale and an allowed zero point."""
    bits = draw(st.lists(st.integers(1, 8), min_size=1, max_size=6))
    zero = [draw(st.sampled_from(zero_points(b))) for b in bits]
    scale = [draw(st.floats(1e-4, 10.0)) for _ in bits]
    return Grid(torch.tensor(bits), round_scale(torch.tensor(scale)), torch.tensor(zero))


def gauss(rows: int, columns: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def levels(grid: Grid, row: int) -> Tensor:
    """All values of one row's grid, float32 [2ᵇ]."""
    one = Grid(grid.bits[row : row + 1], grid.scale[row : row + 1], grid.zero[row : row + 1])
    return dequantize(torch.arange(2 ** int(grid.bits[row]), dtype=torch.uint8)[None], one)[0]


@settings(max_examples=100, deadline=None)
@given(grids(), st.integers(0, 2**31))
def test_levels_are_fixed_points(grid: Grid, seed: int):
    generator = torch.Generator().manual_seed(seed)
    top = (2**grid.bits)[:, None]
    codes = (torch.rand(len(grid.bits), 40, generator=generator) * top).to(torch.uint8)
    assert torch.equal(quantize(dequantize(codes, grid), grid), codes)


@settings(max_examples=100, deadline=None)
@given(grids(), st.integers(0, 2**31), st.floats(0.1, 300))
def test_codes_are_those_of_the_nearest_level(grid: Grid, seed: int, spread: float):
    weight = gauss(len(grid.bits), 50, seed) * grid.scale[:, None] * spread
    codes = quantize(weight, grid)
    assert codes.dtype == torch.uint8
    assert bool((codes.long() < 2 ** grid.bits[:, None]).all())
    gap = (weight - dequantize(codes, grid)).abs()
    for row in range(len(weight)):
        scale, values = float(grid.scale[row]), levels(grid, row)
        best = (weight[row][:, None] - values).abs().amin(1)
        assert bool((gap[row] <= best + 1e-5 * scale * (1 + spread)).all())
        inside = (weight[row] >= values[0]) & (weight[row] <= values[-1])
        assert bool((gap[row][inside] <= scale / 2 * (1 + 1e-4)).all())


@settings(max_examples=50, deadline=None)
@given(grids(), st.integers(0, 2**31))
def test_nearest_positions_are_those_of_the_codes(grid: Grid, seed: int):
    weight = gauss(len(grid.bits), 50, seed) * grid.scale[:, None] * 2.0 ** grid.bits[:, None]
    at = weight / grid.scale[:, None] + grid.zero[:, None] / 2
    assert torch.equal(nearest(at, grid), quantize(weight, grid).float())
    assert torch.equal(reach(grid), (2.0**grid.bits - 1).float())


def test_a_zero_point_off_by_one_is_not_nearest():
    grid = Grid(torch.tensor([4]), torch.tensor([0.5]), torch.tensor([15]))
    off = Grid(grid.bits, grid.scale, grid.zero + 1)
    weight = torch.linspace(-3.7, 3.7, 101)[None]
    half_step = 0.25 * (1 + 1e-4)
    assert float((dequantize(quantize(weight, grid), grid) - weight).abs().max()) <= half_step
    assert float((dequantize(quantize(weight, grid), off) - weight).abs().max()) > half_step


@settings(max_examples=100, deadline=None)
@given(grids(), st.integers(0, 2**31))
def test_the_container_holds_the_same_numbers(grid: Grid, seed: int):
    generator = torch.Generator().manual_seed(seed)
    codes = (torch.rand(len(grid.bits), 40, generator=generator) * 2 ** grid.bits[:, None]).floor()
    codes[:, 0], codes[:, 1] = 0, (2**grid.bits - 1).float()
    q, t = container(codes.to(torch.uint8), grid)
    assert q.dtype == torch.int16 and int(q.min()) >= -128 and int(q.max()) <= 127
    assert torch.equal(q.float() * t[:, None], dequantize(codes.to(torch.uint8), grid))


@pytest.mark.parametrize("bits", WIDTHS)
def test_every_zero_point_fits_the_container_and_the_file(bits: int):
    for zero in zero_points(bits):
        grid = Grid(torch.tensor([bits]), torch.ones(1), torch.tensor([zero]))
        q, _ = container(torch.tensor([[0, 2**bits - 1]], dtype=torch.uint8), grid)
        assert int(q.min()) >= -128 and int(q.max()) <= 127
        # stored in a byte, except for the one 8-bit zero point; 128 - zero is the file's offset
        assert bits == MAX_BITS or 0 <= zero <= 128


def test_one_bit_is_a_sign_and_a_scale():
    weight = gauss(5, 64)
    grid, error = fit(weight, 1)
    value = dequantize(quantize(weight, grid), grid)
    assert torch.equal(value.sign(), torch.where(weight < 0, -1.0, 1.0))
    assert torch.equal(value.abs(), (grid.scale / 2)[:, None].expand_as(value))
    # the best magnitude of a sign is the mean magnitude
    assert torch.allclose(grid.scale / 2, weight.abs().mean(1), rtol=1e-3)
    assert torch.allclose(error.float(), (weight - value).square().sum(1), rtol=1e-4)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([24, 72]), st.sampled_from(["normal", "heavy"]))
def test_error_falls_with_bits(seed: int, fan_in: int, shape: str):
    weight = gauss(4, fan_in, seed)
    if shape == "heavy":
        weight = weight * weight.abs()
    errors = torch.stack([fit(weight, bits)[1] for bits in WIDTHS])
    assert bool((errors[1:] <= errors[:-1] * (1 + 1e-3) + 1e-9).all())
    assert bool((errors[-1] < 0.05 * errors[1]).all())


@pytest.mark.parametrize("bits", WIDTHS)
def test_the_error_reported_is_the_error(bits: int):
    weight = gauss(6, 50, bits)
    grid, error = fit(weight, bits)
    exact = (dequantize(quantize(weight, grid), grid).double() - weight.double()).square().sum(1)
    assert torch.equal(error, exact) and error.dtype == torch.float64
    assert bool((grid.bits == bits).all())
    assert set(grid.zero.tolist()) <= set(zero_points(bits))


def brute_force(row: np.ndarray, bits: int) -> float:
    """Least squared error over a dense set of scales and every zero point of the format."""
    top, best = 2**bits - 1, np.inf
    widest = 2.2 * np.abs(row).max()
    zeros = [1] if bits == 1 else [2**bits] if bits == 8 else [top - 1, top, top + 1]
    for zero in zeros:
        for scale in widest / top * np.linspace(0.1, 1.0, 400):
            v = np.clip(np.rint(row / scale + zero / 2), 0, top)
            best = min(best, float(((scale * (v - zero / 2) - row) ** 2).sum()))
    return best


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("fan_in", [9, 144])
def test_fit_is_close_to_brute_force(bits: int, fan_in: int):
    weight = gauss(4, fan_in, 10 * bits + 1)
    _, error = fit(weight, bits)
    best = sum(brute_force(row, bits) for row in weight.numpy())
    # at wide widths the dense search finds scales that happen to suit a few weights; what is
    # lost there is a fraction of an error that is small already
    slack = 1.05 if bits < 5 else {5: 1.05, 6: 1.08}.get(bits, 1.2) if fan_in > 9 else 1.8
    assert float(error.sum()) <= slack * best
    step = weight.abs().amax(1) / 2 ** (bits - 1)
    assert bool((error <= fan_in * step.double().square() / 12 * 1.4).all()) or bits < 3


def test_brute_force_tells_a_bad_fit_from_a_good_one():
    weight = gauss(4, 144)
    best = sum(brute_force(row, 3) for row in weight.numpy())
    scale = weight.abs().amax(1) / 3.5  # min-max: no clipping
    minmax = Grid(torch.full((4,), 3), scale, torch.full((4,), 7))
    value = dequantize(quantize(weight, minmax), minmax)
    assert float((value - weight).square().sum()) > 1.05 * best


@pytest.mark.parametrize("bits", WIDTHS)
def test_scales_are_float16_numbers(bits: int):
    for factor in (1e-3, 1.0, 100.0):
        grid, _ = fit(gauss(8, 30, bits) * factor, bits)
        assert grid.scale.dtype == torch.float32
        assert torch.equal(grid.scale.half().float(), grid.scale)


def test_scales_stay_positive_and_finite():
    scale = round_scale(torch.tensor([0.0, 1e-30, 1.0, 1e30]))
    assert bool((scale > 0).all()) and bool(scale.isfinite().all())


@pytest.mark.parametrize("bits", WIDTHS)
def test_rows_without_spread(bits: int):
    weight = torch.stack([torch.zeros(9), torch.full((9,), 0.25), torch.full((9,), -0.25)])
    grid, error = fit(weight, bits)
    assert bool((grid.scale > 0).all()) and bool(error.isfinite().all())
    value = dequantize(quantize(weight, grid), grid)
    assert float((value - weight).abs().max()) < 2e-3


def test_scaling_a_row_scales_its_grid():
    weight = gauss(3, 60)
    one, error = fit(weight, 4)
    two, larger = fit(weight * 4, 4)
    assert torch.equal(two.scale, one.scale * 4) and torch.equal(two.zero, one.zero)
    assert torch.allclose(larger, error * 16)
