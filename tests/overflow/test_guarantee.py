"""Rows that cannot overflow: by the bound, on inputs that reach it, and no worse than others."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bitwright import overflow
from bitwright.arith.accumulator import worst_inputs
from bitwright.arith.grid import fits_container, quantize
from bitwright.arith.narrow_sums import narrow_sums
from bitwright.errors import BitwrightError
from bitwright.overflow import Accumulator, Bounded
from bitwright.overflow.count import in_kernel_order
from bitwright.overflow.guarantee import fit_within
from bitwright.quantize import Quantized
from bitwright.train import Recipe, finetune
from overflow.nets import network, quantized, rows

KINDS = [("wrap", 16), ("saturate", 14), ("pairs", 14), ("wrap", 12)]


def made(kind: str, bits: int, width: int = 8) -> tuple[Quantized, Quantized, Accumulator]:
    before, _ = quantized(width)
    accumulator = Accumulator(bits, kind)
    layers = overflow.guaranteed(before.network, before.layers, before.edges, accumulator)
    return before, Quantized(before.network, layers, before.edges), accumulator


@pytest.mark.parametrize(("kind", "bits"), KINDS)
def test_no_input_overflows_and_the_worst_ones_come_close(kind: str, bits: int):
    before, after, accumulator = made(kind, bits)
    with pytest.raises(BitwrightError):
        overflow.require(before, accumulator)
    overflow.require(after, accumulator)
    rng = np.random.default_rng(0)
    for one in overflow.operands(after, accumulator).values():
        matrix = in_kernel_order(one).numpy()
        low, high = (0, one.high - one.low) if kind == "pairs" else (one.low, one.high)
        x = rng.choice([low, high], (500, matrix.shape[1]))
        if kind != "pairs" and one.weight.ndim == 2:
            x = np.concatenate([x, *(w.numpy() for w in worst_inputs(one))])
        assert (narrow_sums(x, matrix, accumulator) == x @ matrix.T).all()
    counts = overflow.overflows(after, rows(), accumulator)
    assert sum(c.total for c in counts.values()) == 0


@pytest.mark.parametrize(("kind", "bits"), KINDS)
def test_rows_that_fit_are_untouched_and_the_file_can_hold_the_others(kind: str, bits: int):
    before, after, _ = made(kind, bits, width=5)
    for name, old in before.layers.items():
        new = after.layers[name]
        same = (new.codes == old.codes).all(1)
        assert torch.equal(new.grid.bits, old.grid.bits) and torch.equal(new.bias, old.bias)
        assert bool(fits_container(new.grid.bits, new.grid.zero).all())
        assert torch.equal(new.grid.scale, new.grid.scale.half().float())
        if kind != "pairs":
            assert torch.equal(new.grid.scale[same], old.grid.scale[same]) or not same.all()
    again = overflow.guaranteed(after.network, after.layers, after.edges, Accumulator(bits, kind))
    assert all(again[n] is after.layers[n] for n in again)


def test_the_step_searched_beats_the_step_that_fits_by_itself():
    """Against rounding to nearest on the finest step whose integers happen to fit."""
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(20, 200, generator=generator).double()
    accumulator, within = Accumulator(16), (0, 255)
    codes, grid = fit_within(matrix, torch.full((20,), 8), within, accumulator)
    q = codes.long() - 128
    most = accumulator.highest // 255
    assert int(q.clamp(min=0).sum(1).max()) <= most
    searched = (q * grid.scale[:, None] - matrix).square().sum(1)
    plain = torch.full((20,), torch.inf).double()
    for step in torch.logspace(-2, 3, 400).double():
        nearest = (matrix / step).round()
        sums = nearest.clamp(min=0).sum(1).maximum((-nearest).clamp(min=0).sum(1))
        best = (matrix * nearest).sum(1) / nearest.square().sum(1).clamp(min=1)
        error = (best[:, None] * nearest - matrix).square().sum(1)
        plain = torch.where((sums <= most) & (error < plain), error, plain)
    assert bool((searched < plain).all()) and float((searched / plain).mean()) < 0.95


def test_training_never_leaves_the_bound_and_learns():
    _, start, accumulator = made("wrap", 14)
    bounded = Bounded(accumulator, overflow.input_ranges(start.network, start.edges))
    x = rows(64)
    free, _ = finetune(start, x, Recipe(epochs=2, batch=16, rate=2e-3))
    with pytest.raises(BitwrightError):
        overflow.require(free, accumulator)
    kept, history = finetune(start, x, Recipe(epochs=2, batch=16, rate=2e-3, bounded=bounded))
    overflow.require(kept, accumulator)
    assert min(history) < history[0]
    assert any(bool((kept.layers[n].codes != start.layers[n].codes).any()) for n in kept.layers)


def test_the_message_names_layer_channel_bound_and_a_fix_that_holds():
    _, after, accumulator = made("wrap", 16)
    layer = network().layers[2]
    stored = after.layers[layer.name]
    codes = stored.codes.clone()
    codes[5] = 255
    layers = {**after.layers, layer.name: type(stored)(codes, stored.grid, stored.bias)}
    broken = Quantized(after.network, layers, after.edges)
    with pytest.raises(BitwrightError) as caught:
        overflow.require(broken, accumulator)
    said = str(caught.value)
    bound = next(b for b in overflow.layer_bounds(broken, accumulator) if not b.holds)
    assert bound.layer == layer.name and bound.channel == 5
    for part in (f"layer {layer.name!r}, channel 5", f"{bound.high:,}", "smallest fix: "):
        assert part in said
    needed = Accumulator(bound.bits_needed)
    assert all(b.holds for b in overflow.layer_bounds(broken, needed))
    if needed.bits > 12:
        less = Accumulator(needed.bits - 1)
        assert not all(b.holds for b in overflow.layer_bounds(broken, less))
    fixed = overflow.guaranteed(broken.network, layers, broken.edges, accumulator)
    overflow.require(Quantized(broken.network, fixed, broken.edges), accumulator)
    rows_changed = (quantize(stored.matrix(), stored.grid) != fixed[layer.name].codes).any(1)
    assert rows_changed.tolist() == [r == 5 for r in range(layer.rows)]


def test_the_theorem_is_told():
    _, after, accumulator = made("saturate", 14)
    said = overflow.lines(overflow.require(after, accumulator))
    assert len(said) == len(after.network.layers) + 1
    assert said[-1].startswith("theorem: no input overflows a 14-bit accumulator (saturate) in any")
    assert all("inside -8,192 … 8,191" in line for line in said[:-1])
