"""XNOR and popcount against the dense product."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bitwright.arith.multibit import Bases, sketch, tidied, values
from bitwright.multibit.kernel import matrix, product, to_words


def test_words_hold_bits_from_the_lowest():
    bits = np.zeros((2, 70), np.uint8)
    bits[0, [0, 3, 64]] = 1
    assert to_words(bits).tolist() == [[9, 1], [0, 0]]


@pytest.mark.parametrize(("n", "count"), [(64, 1), (50, 2), (130, 3), (7, 1)])
def test_the_kernel_is_the_dense_product(n: int, count: int):
    generator = torch.Generator().manual_seed(n)
    rows, groups, batch = 9, 4, 5
    weights = sketch(torch.randn(rows * groups, n, generator=generator), 3)
    kept = torch.rand(weights.alpha.shape, generator=generator) < 0.5
    weights = tidied(Bases(weights.codes, weights.alpha * kept))
    x = sketch(torch.randn(batch * groups, n, generator=generator), count)
    assert not kept.all() and int(weights.counts.min()) == 0
    found = product(matrix(weights, rows), x, batch)
    wanted = values(x).double().reshape(batch, -1) @ values(weights).double().reshape(rows, -1).T
    assert torch.allclose(found.double(), wanted, rtol=1e-4, atol=1e-4)
    wrong = wanted + values(x).double().reshape(batch, -1).abs().mean(1, keepdim=True)
    assert not torch.allclose(found.double(), wrong, rtol=1e-4, atol=1e-4)
