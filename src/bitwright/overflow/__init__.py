"""Narrow accumulators: counting overflows on data, range factors, guarantees, widths that fit."""

from bitwright.arith.accumulator import KINDS, Accumulator, Bounded
from bitwright.overflow.count import Count, overflows
from bitwright.overflow.emulate import emulated
from bitwright.overflow.guarantee import guaranteed
from bitwright.overflow.oaq import Rule, learn_ranges
from bitwright.overflow.on_data import Fitted, fit_to_data
from bitwright.overflow.one_clamp import one_clamp
from bitwright.overflow.operands import input_ranges, operands
from bitwright.overflow.theorem import LayerBound, layer_bounds, lines, require
from bitwright.overflow.widths import InputWidths, fitted_tables, input_widths

__all__ = [
    "KINDS",
    "Accumulator",
    "Bounded",
    "Count",
    "Fitted",
    "InputWidths",
    "LayerBound",
    "Rule",
    "emulated",
    "fit_to_data",
    "fitted_tables",
    "guaranteed",
    "input_ranges",
    "input_widths",
    "layer_bounds",
    "learn_ranges",
    "lines",
    "one_clamp",
    "operands",
    "overflows",
    "require",
]
