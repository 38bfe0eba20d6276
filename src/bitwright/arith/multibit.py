"""Multi-bit weights: a group of n weights as Σᵢ αᵢ bᵢ (Qu et al., arXiv 1912.08883, eq. 1).

Signs bᵢ ∈ {−1, +1}ⁿ and coordinates αᵢ > 0. The signs of a weight are one byte: bit i of its code
is set where bᵢ is +1, so that a group has 8 bases at most. αᵢ = 0 marks a basis that is not there;
its bits are 0. A group without bases is all zeros.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

MOST_BASES = 8
#: numbers that one temporary of signs may have
_CHUNK = 2**24
_RIDGE = 1e-9


@dataclass(frozen=True)
class Bases:
    """G groups of n weights with up to I bases each.

    Attributes:
        codes: uint8 [G, n]; bit i: the sign in basis i.
        alpha: float32 [G, I], I ≤ 8; positive, or 0 where there is no such basis.
    """

    codes: Tensor
    alpha: Tensor

    @property
    def counts(self) -> Tensor:
        """Bases of each group, int64 [G]."""
        return (self.alpha > 0).sum(1)


def values(bases: Bases) -> Tensor:
    """Σᵢ αᵢ bᵢ, float32 [G, n]; added in the order of i, as every reader of our files does."""
    codes, alpha = bases.codes, bases.alpha
    found = torch.zeros(codes.shape, dtype=alpha.dtype, device=codes.device)
    for i in range(alpha.shape[1]):
        each = alpha[:, i : i + 1]
        if bool((each > 0).any()):
            found += torch.where((codes >> i) & 1 == 1, each, -each)
    return found


def signs(codes: Tensor, count: int) -> Tensor:
    """bᵢ of all groups, float32 [G, count, n], entries ±1."""
    shifts = torch.arange(count, dtype=torch.uint8, device=codes.device)[:, None]
    return ((codes[:, None, :] >> shifts) & 1).float().mul_(2).sub_(1)


def projected(gradient: Tensor, codes: Tensor, count: int) -> Tensor:
    """Gradients of the coordinates, ∂L/∂αᵢ = ⟨bᵢ, ∂L/∂w⟩: [G, count] of [G, n].

    ⟨b, g⟩ = 2 Σ_{b=+1} g − Σ g: no signs are made.
    """
    total = gradient.sum(1)
    chosen = [torch.where((codes >> i) & 1 == 1, gradient, 0).sum(1) for i in range(count)]
    return 2 * torch.stack(chosen, 1) - total[:, None]


def tidied(bases: Bases) -> Bases:
    """The same weights with αᵢ ≥ 0 (a negative one turns its signs over) and no stray bits."""
    codes, alpha = bases.codes, bases.alpha
    turn = _bits(alpha < 0)
    kept = _bits(alpha != 0)
    return Bases((codes ^ turn) & kept, alpha.abs())


def sketch(weight: Tensor, most: int, *, tolerance: float = 1e-6) -> Bases:
    """Greedy bases: bᵢ = sign(residual), then all coordinates by least squares (ALQ, sec. 4.1).

    Args:
        weight: float32 [G, n].
        most: bases a group may have, 1 to 8.
        tolerance: a group takes no more bases once ‖residual‖² ≤ tolerance · ‖w‖².

    Returns:
        Bases whose residual fell with each one. Cost: `most` small systems a group.

    Raises:
        ValueError: a number of bases that there cannot be, or weights that are not finite.
    """
    if not 1 <= most <= MOST_BASES:
        raise ValueError(f"a group may have 1 to {MOST_BASES} bases, not {most}")
    if not bool(torch.isfinite(weight).all()):
        raise ValueError("weights are NaN or infinite")
    groups = len(weight)
    found = Bases(
        torch.zeros(weight.shape, dtype=torch.uint8, device=weight.device),
        torch.zeros(groups, most, dtype=weight.dtype, device=weight.device),
    )
    enough = tolerance * weight.square().sum(1)
    for i in range(most):
        residual = weight - values(found)
        open_ = residual.square().sum(1) > enough
        bit = ((residual >= 0) & open_[:, None]).to(torch.uint8) << i
        alpha = found.alpha.clone()
        alpha[:, i] = residual.abs().mean(1) * open_
        found = coordinates(Bases(found.codes | bit, alpha), weight)
    return found


def levels(alpha: Tensor) -> Tensor:
    """The 2ᴵ values that a weight of each group may take, [G, 2ᴵ], by code."""
    count = alpha.shape[1]
    codes = torch.arange(2**count, device=alpha.device).to(torch.uint8)
    return values(Bases(codes.expand(len(alpha), -1), alpha))


def nearest(target: Tensor, alpha: Tensor) -> Tensor:
    """Codes uint8 [G, n] of the levels nearest to `target`: the optimal signs for given α.

    Any diagonal curvature has the same optimum, weight by weight. Cost: a sort of 2ᴵ levels a group
    and a search of I steps a weight.
    """
    table, order = levels(alpha).sort(1)
    middles = (table[:, 1:] + table[:, :-1]) / 2
    place = torch.searchsorted(middles.contiguous(), target.contiguous())
    return order.gather(1, place).to(torch.uint8) & _bits(alpha != 0)


def coordinates(bases: Bases, target: Tensor, curvature: Tensor | None = None) -> Bases:
    """The optimal coordinates of given signs: min_α Σⱼ hⱼ (Σᵢ αᵢ bᵢⱼ − tⱼ)².

    `α = (B H Bᵀ)⁻¹ B H t` of each group; the old coordinates stay where rounding, or a singular
    system, would make the sum larger. A negative coordinate turns its signs over.

    Args:
        bases: signs, and the coordinates that are better than nothing.
        target: t, [G, n].
        curvature: h ≥ 0, [G, n]; None for ones.
    """
    size = max(1, _CHUNK // max(1, bases.codes.shape[1] * bases.alpha.shape[1]))
    pieces = []
    for start in range(0, len(target), size):
        part = slice(start, start + size)
        h = None if curvature is None else curvature[part]
        pieces.append(_solved(bases.codes[part], bases.alpha[part], target[part], h))
    alpha = torch.cat(pieces) if pieces else bases.alpha
    return tidied(Bases(bases.codes, alpha))


def squared_error(bases: Bases, target: Tensor, curvature: Tensor | None = None) -> Tensor:
    """Σⱼ hⱼ (ŵⱼ − tⱼ)² of each group, float64 [G]."""
    square = (values(bases).double() - target.double()).square()
    return (square if curvature is None else square * curvature.double()).sum(1)


def _solved(codes: Tensor, alpha: Tensor, target: Tensor, h: Tensor | None) -> Tensor:
    count = alpha.shape[1]
    there = alpha != 0
    b = signs(codes, count) * there[:, :, None]
    weighted = b if h is None else b * h[:, None, :]
    system = torch.bmm(weighted, b.transpose(1, 2)).double()
    wanted = torch.bmm(weighted, target[:, :, None].float()).double()
    diagonal = torch.diagonal(system, dim1=1, dim2=2)
    diagonal += _RIDGE * diagonal.amax(1, keepdim=True) + (~there | (diagonal <= 0))
    found, _ = torch.linalg.solve_ex(system, wanted)
    found = (found[:, :, 0] * there).to(alpha.dtype)
    found = torch.where(torch.isfinite(found).all(1, keepdim=True), found, alpha)
    was, now = (squared_error(tidied(Bases(codes, a)), target, h) for a in (alpha, found))
    return torch.where((now <= was)[:, None], found, alpha)


def _bits(chosen: Tensor) -> Tensor:
    """A byte a group with bit i set where `chosen[:, i]`, uint8 [G, 1]."""
    powers = 2 ** torch.arange(chosen.shape[1], device=chosen.device)
    return (chosen * powers).sum(1, keepdim=True).to(torch.uint8)
