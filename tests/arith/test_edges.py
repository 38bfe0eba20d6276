"""The edges of the arithmetic: containers, inputs that are all zero, numbers of bases."""

from __future__ import annotations

import pytest
import torch

from bitwright.arith.accumulator import Accumulator
from bitwright.arith.grid import fits_container
from bitwright.arith.multibit import MOST_BASES, sketch
from bitwright.arith.project import allowed_sums


@pytest.mark.parametrize("bits", range(10))
def test_grids_fit_whose_levels_are_bytes(bits: int):
    zeros = range(-3, 262)
    found = fits_container(torch.full((len(zeros),), bits), torch.tensor(zeros)).tolist()
    for zero, fits in zip(zeros, found, strict=True):
        levels = [2 * v - zero for v in range(2**bits)]
        wanted = 1 <= bits <= 7 and zero >= 0 and min(levels) >= -128 and max(levels) <= 127
        # at 8 bits levels are v − 128, which is one zero point, stored as 256
        assert fits == (zero == 256 if bits == 8 else wanted), zero


def test_inputs_that_are_all_zero_allow_any_sum():
    rounded = torch.tensor([[100.0, -7.0, 3.0], [-128.0, -128.0, 0.0]], dtype=torch.float64)
    plus, minus = allowed_sums(rounded, (0, 0), Accumulator(12))
    assert plus.tolist() == [103, 0] and minus.tolist() == [7, 256]


@pytest.mark.parametrize("most", [0, MOST_BASES + 1])
def test_numbers_of_bases_that_no_code_holds_are_refused(most: int):
    with pytest.raises(ValueError, match=f"1 to 8 bases, not {most}"):
        sketch(torch.ones(1, 4), most)
