"""Weights that cannot overflow an accumulator, whatever comes in.

A row's integers are within the bound of :mod:`bitwright.arith.accumulator` if `high Σq⁺ − low Σq⁻`
and `high Σq⁻ − low Σq⁺` are. A row that is not gets the step, and on it the integers nearest to its
weights among those within (:mod:`bitwright.arith.project`), that together leave the least squared
error: wide steps with all weights, or narrow ones with the small weights gone. A2Q (arXiv
2308.13504) trains towards the same set, AXE (arXiv 2409.17092) rounds into it; searching the step
is ours. For `pairs` no sums but two neighbours bound each other; there the step alone widens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from bitwright.arith.accumulator import Accumulator, reach
from bitwright.arith.grid import Grid, dequantize, round_scale
from bitwright.arith.project import allowed_sums, round_within
from bitwright.errors import BitwrightError
from bitwright.network import Layer, Network
from bitwright.overflow.operands import input_ranges, of_layer, weight_integers
from bitwright.quantize import EdgeGrid, QuantizedLayer
from bitwright.quantize.saturation import widened

#: steps tried: from this share of the one that reaches the largest weight, by this factor; and then
#: around every row's best one
_FINEST, _FACTOR, _MOST_STEPS = 0.5, 2**0.25, 48
_AROUND = tuple(2 ** (k / 32) for k in (-4, -3, -2, -1, 1, 2, 3, 4))


def excess(layer: Layer, stored: QuantizedLayer, within: tuple[int, int], a: Accumulator) -> Tensor:
    """How many times too large each row's worst sum is, float64 [rows]; ≤ 1: it cannot overflow."""
    q, _ = weight_integers(stored, a.kind)
    return a.excess(*reach(of_layer(layer, q, within), a.kind))


def guaranteed(
    network: Network,
    layers: Mapping[str, QuantizedLayer],
    edges: Mapping[int, EdgeGrid],
    accumulator: Accumulator,
    targets: Mapping[str, Tensor] | None = None,
) -> dict[str, QuantizedLayer]:
    """The layers with every row that could overflow rounded again; the others as they are.

    Widths stay; correct afterwards (:func:`bitwright.quantize.correct` changes no integer).

    Args:
        network: captured network; layers: stored; edges: grids of the activations.
        accumulator: that no sum may leave.
        targets: layer name -> the weights to round, [rows, fan_in]; the stored ones where missing.
    """
    if any(bool(stored.grid.multibit.any()) for stored in layers.values()):
        raise BitwrightError("channels of bases cannot be kept from overflowing; use uniform ones")
    matrices = targets or {}
    found = dict(layers)
    ranges = input_ranges(network, edges)
    for layer in network.layers:
        if layer.name in ranges:
            within, stored = ranges[layer.name], layers[layer.name]
            found[layer.name] = guaranteed_layer(
                layer, stored, within, accumulator, matrices.get(layer.name)
            )
    return found


def guaranteed_layer(
    layer: Layer,
    stored: QuantizedLayer,
    within: tuple[int, int],
    accumulator: Accumulator,
    target: Tensor | None = None,
) -> QuantizedLayer:
    """One layer, for inputs `within` a range; as :func:`guaranteed`."""
    exposed = excess(layer, stored, within, accumulator) > 1
    if not bool(exposed.any()):
        return stored
    if accumulator.kind == "pairs":
        return _wider(layer, stored, within, accumulator)
    matrix = (stored.matrix() if target is None else target)[exposed]
    bits = stored.grid.bits[exposed]
    codes, grid = fit_within(matrix.double(), bits, within, accumulator)
    return _replaced(stored, exposed, codes, grid)


def _replaced(stored: QuantizedLayer, rows: Tensor, codes: Tensor, grid: Grid) -> QuantizedLayer:
    all_codes, scale, zero = (
        t.clone() for t in (stored.codes, stored.grid.scale, stored.grid.zero)
    )
    all_codes[rows], scale[rows], zero[rows] = codes, grid.scale, grid.zero
    return replace(stored, codes=all_codes, grid=Grid(stored.grid.bits, scale, zero))


def _wider(
    layer: Layer, stored: QuantizedLayer, within: tuple[int, int], accumulator: Accumulator
) -> QuantizedLayer:
    """Steps as wide as it takes, with zero a level."""
    found = with_zero(stored, excess(layer, stored, within, accumulator) > 1)
    matrix, base = stored.matrix(), found
    ratio = excess(layer, found, within, accumulator)
    factor = torch.ones_like(ratio)
    while bool((ratio > 1).any()):
        factor = torch.where(ratio > 1, factor * ratio.clamp(min=1 + 2**-8), factor)
        found = widened(base, matrix, factor)
        ratio = excess(layer, found, within, accumulator)
    return found


def with_zero(stored: QuantizedLayer, rows: Tensor) -> QuantizedLayer:
    """Rows whose grids have no zero get one: `s (v − z/2)` with z even, one level more below."""
    odd = rows & (stored.grid.zero % 2 == 1)
    if not bool(odd.any()):
        return stored
    zero = torch.where(odd, stored.grid.zero + 1, stored.grid.zero)
    grid = Grid(stored.grid.bits, stored.grid.scale, zero)
    levels = (stored.matrix() / grid.scale[:, None] + zero[:, None] / 2).round()
    top = (2**grid.bits - 1)[:, None].to(levels.dtype)
    codes = levels.clamp(min=torch.zeros_like(top), max=top).to(torch.uint8)
    return replace(stored, codes=torch.where(odd[:, None], codes, stored.codes), grid=grid)


def fit_within(
    matrix: Tensor, bits: Tensor, within: tuple[int, int], accumulator: Accumulator
) -> tuple[Tensor, Grid]:
    """Codes and grids, zero a level, with the least squared error of those that cannot overflow.

    Errors are compared, and scales left, at the best scale for the integers: the step only says
    which integers. For `wrap` and `saturate`.

    Args:
        matrix: float64 [rows, K]; bits: int64 [rows], of the integers −2^(b−1) … 2^(b−1) − 1.
        within: range of the inputs.
        accumulator: that all sums are to fit.
    """
    half = 2 ** (bits - 1)
    size = matrix.abs().amax(1).clamp(min=1e-12) / half
    kept, at = torch.full_like(size, -1.0), size
    best = torch.zeros_like(matrix)

    def try_step(step: Tensor) -> bool:
        nonlocal kept, best, at
        target = matrix / step[:, None]
        rounded = target.round().minimum((half - 1)[:, None]).maximum(-half[:, None])
        limits = allowed_sums(rounded, within, accumulator)
        q = round_within(target, *limits, -half, half - 1)
        gained = _explained(matrix, q)
        better = gained > kept
        kept, at = torch.where(better, gained, kept), torch.where(better, step, at)
        best = torch.where(better[:, None], q, best)
        return bool((q == rounded).all())

    for place in range(_MOST_STEPS):
        if try_step(size * _FINEST * _FACTOR**place) and place > 8:  # coarser ones only lose
            break
    middle = at
    for factor in _AROUND:
        try_step(middle * factor)
    scale = (matrix * best).sum(1) / best.square().sum(1).clamp(min=1)
    scale = round_scale(torch.where(scale > 0, scale, size).float())
    codes = (best + half[:, None]).to(torch.uint8)
    return codes, Grid(bits, scale, 2 * half)


def squared_errors(matrix: Tensor, codes: Tensor, grid: Grid) -> Tensor:
    """‖Q(w) − w‖² of every row, float64."""
    return (dequantize(codes, grid).double() - matrix.double()).square().sum(1)


def _explained(matrix: Tensor, q: Tensor) -> Tensor:
    """What the best scale leaves out of ‖w‖²: `⟨w, q⟩² / ‖q‖²`."""
    common = (matrix * q).sum(1).clamp(min=0)
    return common.square() / q.square().sum(1).clamp(min=1)
