"""Factors found on data, by our rule, OAQ's and the released one."""

from __future__ import annotations

import math

import pytest
import torch

from bitwright import overflow
from bitwright.overflow import Accumulator, Rule
from bitwright.overflow.oaq import at_factors, moves, narrower
from bitwright.quantize import EdgeGrid, Quantized, correct, float_outputs
from overflow.nets import quantized, rows


def left(found: Quantized, accumulator: Accumulator) -> int:
    counts = overflow.overflows(found, rows(), accumulator)
    return sum(c.total for c in counts.values())


@pytest.mark.parametrize(("kind", "bits"), [("wrap", 15), ("saturate", 15), ("pairs", 14)])
def test_nothing_overflows_and_factors_are_no_larger_than_needed(kind: str, bits: int):
    before, _ = quantized()
    accumulator = Accumulator(bits, kind)
    assert left(before, accumulator) > 0
    x, reference = rows(), float_outputs(before.network, rows())

    def again(layers: object) -> Quantized:
        return correct(before.network, layers, before.edges, x, reference)  # type: ignore[arg-type]

    found = overflow.fit_to_data(before, rows(), accumulator, correct=again, margin=1.05)
    assert left(found.quantized, accumulator) == 0 == found.history[-1]
    met = overflow.overflows(found.quantized, rows(), accumulator)
    before_met = overflow.overflows(before, rows(), accumulator)
    for name, factor in found.factors.items():
        wide = factor > 1.2
        if bool(wide.any()):
            assert float(met[name].excess(accumulator)[wide].median()) > 0.75
        fine = before_met[name].excess(accumulator) < 0.9
        assert bool((factor[fine] < 1.1).all())


def test_the_rule_moves_as_written():
    rule = Rule(rate=0.1, most=0.3)
    over = torch.tensor([0.0, 4.0, 32.0, 96.0, 1e9])
    expected = [-0.1, 0.1 * math.log(4 / 32), 0.0, 0.1 * math.log(3), 0.3]
    assert moves(over, 32, rule).tolist() == pytest.approx(expected)


@pytest.mark.parametrize("inputs", [True, False])
@pytest.mark.parametrize("by", ["layer", "channel"])
def test_oaq_s_rule_ends_without_overflows(inputs: bool, by: str):
    before, _ = quantized()
    rule = Rule(rate=0.3, batch=8, steps=6, raising=40, by=by, inputs=inputs)
    found = overflow.learn_ranges(before, rows(), Accumulator(15), rule)
    assert found.history[-1] == 0 == left(found.quantized, Accumulator(15))
    alike = [float(a.max() - a.min()) == 0 for a in found.factors.values()]
    assert all(alike) if by == "layer" else not all(alike)
    widths = {g.bits for g in found.quantized.edges.values()}
    assert (min(widths) < 8) == inputs


def test_inputs_take_whole_bits_and_weights_the_rest():
    before, _ = quantized()
    alpha = {n: torch.full((len(s.codes),), 3.0).double() for n, s in before.layers.items()}
    found = at_factors(before, alpha, inputs=True)
    read = [found.edges[g].bits for g in sorted(found.edges)]
    assert read.count(7) >= 4  # 2 of 3; what no layer reads keeps 8
    first = next(iter(before.layers))
    growth = found.layers[first].grid.scale / before.layers[first].grid.scale
    assert growth.tolist() == pytest.approx([9 / 2] * 8, rel=2e-3)


def test_a_narrower_grid_spans_the_same_range_and_stays_below_a_ceiling():
    grid = EdgeGrid(6 / 255, 0)
    for shift in range(1, 7):
        found = narrower(grid, shift)
        assert found.bits == 8 - shift
        assert 5.99 < found.scale * found.top <= grid.scale * grid.top
    assert narrower(grid, 9).bits == 2
    signed = narrower(EdgeGrid(0.01, 128), 4)
    assert signed.zero == round(128 * 15 / 255)


def test_the_released_rule_lowers_one_clamp_a_layer_and_leaves_depthwise_alone():
    before, _ = quantized()
    found = overflow.one_clamp(before, rows(8), Accumulator(17))
    assert found.history[0] > 0
    assert found.history[-1] <= found.history[0]
    assert float(found.factors["2"].max()) == 1.0  # depthwise
    assert max(float(f.max()) for f in found.factors.values()) > 1
