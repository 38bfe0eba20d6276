"""Widths under an accumulator against looking at every combination."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from bitwright import curvature, overflow, quantize
from bitwright.overflow import Accumulator
from bitwright.overflow.operands import read_groups
from bitwright.quantize import EDGE_WIDTHS, Quantized
from overflow.nets import network, quantized, rows


@pytest.mark.slow
def test_widths_are_the_optimum_of_the_sum():
    found = network()
    tables = quantize.weight_tables(found)
    sensitivity = curvature.gauss_newton(found, rows(), kind="kl")
    edges = quantize.edge_tables(found, rows())
    accumulator = Accumulator(14)
    chosen = overflow.input_widths(found, sensitivity, tables, edges, accumulator)

    def total(widths: dict[int, int]) -> float:
        grids = {g: edges[g].grids[b] for g, b in widths.items()}
        fitted = overflow.fitted_tables(found, tables, grids, accumulator, widths=(8,))
        losses = quantize.channel_losses("trace", found, sensitivity, fitted)
        own = quantize.edge_problem(found, sensitivity, edges, 8).loss
        columns = [EDGE_WIDTHS.index(widths[g]) for g in sorted(edges)]
        return float(own[np.arange(len(own)), columns].sum()) + sum(
            float(loss[:, 7].sum()) for loss in losses.values()
        )

    best = {g: grid.bits for g, grid in chosen.edges.items()}
    assert len(set(best.values())) > 1
    read = sorted(set(read_groups(found, chosen.edges).values()))[:3]
    for widths in itertools.product((3, 5, 6, 8), repeat=len(read)):
        assert total(best) <= total({**best, **dict(zip(read, widths, strict=True))}) + 1e-9
    few = overflow.input_widths(found, sensitivity, tables, edges, accumulator, most=5)
    assert max(g.bits for g in few.edges.values()) <= 5


def test_fitted_tables_price_what_guaranteed_rounds():
    before, tables = quantized()
    accumulator = Accumulator(13)
    fitted = overflow.fitted_tables(before.network, tables, before.edges, accumulator)
    targets = {la.name: before.network.matrix(la) for la in before.network.layers}
    for bits in (3, 5, 8):
        widths = {la.name: np.full(la.rows, bits) for la in before.network.layers}
        layers = quantize.round_weights(before.network, tables, widths)
        layers = overflow.guaranteed(before.network, layers, before.edges, accumulator, targets)
        overflow.require(Quantized(before.network, layers, before.edges), accumulator)
        for name, stored in layers.items():
            error = (stored.matrix().double() - targets[name].double()).square().sum(1)
            assert torch.allclose(error, fitted[name].error[bits - 1], rtol=1e-6)
            assert bool((error >= tables[name].error[bits - 1] * 0.999).all()) or bits < 8
