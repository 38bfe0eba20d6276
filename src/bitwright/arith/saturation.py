"""What a pair of products can come to, in kernels that add two of them in 16 bits.

x86 processors without VNNI multiply unsigned by signed bytes with `vpmaddubsw`: it adds
`x₀·w₀ + x₁·w₁` of neighbouring weights and clips the sum to −2¹⁵ … 2¹⁵ − 1. With x in 0..top, the
sums of a pair reach from `−top·(w₀⁻ + w₁⁻)` to `top·(w₀⁺ + w₁⁺)`, both attained (w⁺ = max(w, 0),
w⁻ = max(−w, 0)), so the bound is exact: a pair is safe for every input, or an input spoils it.
"""

from __future__ import annotations

import torch
from torch import Tensor

LOWEST, HIGHEST = -(2**15), 2**15 - 1


def pairs(weight: Tensor) -> Tensor:
    """The weights as such kernels pair them: [rows, ceil(K / 2), 2].

    Channels of one kernel position lie side by side, as in images with channels last; an odd number
    of them pairs the last one with the first of the next position.

    Args:
        weight: [rows, K] or [rows, channels, *kernel], integers.
    """
    order = weight.flatten(2).transpose(1, 2) if weight.ndim > 2 else weight
    flat = order.flatten(1)
    return torch.nn.functional.pad(flat, (0, flat.shape[1] % 2)).unflatten(1, (-1, 2))


def reach(weight: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """The least and the greatest sum of any pair of each row, int64 [rows] each.

    Args:
        weight: integers in −128..127, shaped as for :func:`pairs`.
        top: the largest input; the least is 0.
    """
    found = pairs(weight).long()
    return top * found.clamp(max=0).sum(2).amin(1), top * found.clamp(min=0).sum(2).amax(1)


def excess(weight: Tensor, top: int) -> Tensor:
    """How many times too large the largest pair of each row is, float64 [rows]; ≤ 1 is safe."""
    low, high = reach(weight, top)
    return torch.maximum(low.double() / LOWEST, high.double() / HIGHEST)


def saturated(x: Tensor, weight: Tensor) -> Tensor:
    """What those kernels compute for `x @ weight.T`, int64 [n, rows].

    Args:
        x: [n, K] integers in 0..255.
        weight: [rows, K] integers in −128..127.
    """
    products = pairs(x).long()[:, None] * pairs(weight).long()[None]
    return products.sum(-1).clamp(LOWEST, HIGHEST).sum(-1)
