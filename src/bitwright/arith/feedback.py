"""Rounding one weight after another, each one's error fed back to the weights still to come.

A layer's output error with weights q in place of w is `(q − w)ᵀ H (q − w)` in each row, H the
second moment of its inputs. Rounding weight i by `e = w_i − q_i`, the weights not yet rounded are
moved to where they make up for it best (Optimal Brain Surgeon):

    w_j ← w_j − e · U_ij / U_ii      for j > i ,   Uᵀ U = (H + λI)⁻¹ ,  U upper triangular,

the Cholesky form of GPTQ (Frantar et al., arXiv 2210.17323, algorithm 1; its one weight at a time
is OBQ, arXiv 2208.11580). Weights are taken by descending `H_ii`, GPTQ's `act_order`.

Weights rounded early know nothing of the roundings to come. Descent goes over all of them again and
puts each on the level that is best given all others, `q_i ← nearest(q_i − [H (q − w)]_i / H_ii)`,
until none moves (QuantEase, Behdin et al., arXiv 2309.01885): the error never grows.

All rows go at once, each on its own grid; they do not touch each other.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from bitwright.arith.grid import Ordered, ordered, positions_in, positions_of

#: columns whose corrections reach the later ones in one product
_BLOCK = 32


@dataclass(frozen=True)
class Levels:
    """Levels `s · (p(v) − z/2)` of rows in groups.

    Attributes:
        scale, half, top: float64 [G, r]; s, z/2 and the largest code.
        coordinates: int64 [G, r, 4] of multi-bit rows, zeros in uniform ones; None: all are.
    """

    scale: Tensor
    half: Tensor
    top: Tensor
    coordinates: Tensor | None = None

    def nearest(self, weight: Tensor) -> Tensor:
        """The nearest codes, float64 [G, r, K], clipped to the grid."""
        scale, half, top = (t[..., None] for t in (self.scale, self.half, self.top))
        found = nearest(weight, scale, half, top)
        if self.coordinates is None:
            return found
        own = self._multibit[..., 0]
        at = weight[own] / scale[own] + half[own]
        found[own] = self._ordered.nearest(at).to(found.dtype)
        return found

    def steps(self, codes: Tensor) -> Tensor:
        """`p(v) − z/2` of codes [G, r, K]."""
        if self.coordinates is not None:
            codes = positions_in(codes, self._table, self._multibit)
        return codes - self.half[..., None]

    # looked up once, not for every column
    @cached_property
    def _multibit(self) -> Tensor:
        assert self.coordinates is not None
        return self.coordinates[..., :1] > 0

    @cached_property
    def _table(self) -> Tensor:
        assert self.coordinates is not None
        return positions_of(self.coordinates).to(self.scale.dtype)

    @cached_property
    def _ordered(self) -> Ordered:
        assert self.coordinates is not None
        own = self.coordinates[self._multibit[..., 0]]
        return ordered(own, (own > 0).sum(-1), self.scale.dtype)


def round_columns(
    weight: Tensor,
    gram: Tensor,
    scale: Tensor,
    zero: Tensor,
    top: Tensor,
    damping: float,
    coordinates: Tensor | None = None,
) -> Tensor:
    """Codes `v` of `s · (p(v) − z/2)`, 0 to `top`, float64 [G, r, K].

    Args:
        weight: [G, r, K], groups of r rows that read the same K inputs.
        gram: symmetric, positive semi-definite H of each group, [G, K, K].
        scale, zero, top: of every row, [G, r]; zero in half steps.
        damping: `λ = damping · mean H_ii`; the larger, the nearer to rounding to nearest.
        coordinates: of multi-bit rows, as in :class:`Levels`.
    """
    count = weight.shape[2]
    w, h = weight.double(), gram.double()
    diagonal = h.diagonal(dim1=1, dim2=2)
    order = diagonal.argsort(dim=1, descending=True, stable=True)
    w = w.gather(2, order[:, None].expand_as(w))
    u = inverse_factor(damped(h, damping), order)
    levels = Levels(scale.double(), zero.double() / 2, top.double(), coordinates)
    codes = torch.empty_like(w)
    for a in range(0, count, _BLOCK):
        b = min(a + _BLOCK, count)
        errors = torch.empty_like(w[:, :, a:b])
        for i in range(a, b):
            v = levels.nearest(w[:, :, i : i + 1])
            e = (w[:, :, i] - levels.scale * levels.steps(v)[..., 0]) / u[:, i, i, None]
            codes[:, :, i], errors[:, :, i - a] = v[..., 0], e
            w[:, :, i + 1 : b] -= e[:, :, None] * u[:, None, i, i + 1 : b]
        w[:, :, b:] -= errors @ u[:, a:b, b:]
    return codes.gather(2, order.argsort(dim=1)[:, None].expand_as(codes))


def descend(
    codes: Tensor,
    weight: Tensor,
    gram: Tensor,
    scale: Tensor,
    zero: Tensor,
    top: Tensor,
    sweeps: int = 3,
    coordinates: Tensor | None = None,
) -> Tensor:
    """Codes with an error no larger, from at most `sweeps` times over all weights; as above.

    Args:
        codes: float64 [G, r, K], integers.
        weight, gram, scale, zero, top, coordinates: as for :func:`round_columns`; gram with a
            positive diagonal.
    """
    count = codes.shape[2]
    v, h, w = codes.clone(), gram.double(), weight.double()
    levels = Levels(scale.double(), zero.double() / 2, top.double(), coordinates)
    s = levels.scale
    slope = (s[..., None] * levels.steps(v) - w) @ h
    for _ in range(sweeps):
        moved = False
        for a in range(0, count, _BLOCK):
            b = min(a + _BLOCK, count)
            steps = torch.zeros_like(v[:, :, a:b])
            inside = slope[:, :, a:b].clone()
            for i in range(a, b):
                at = levels.steps(v[:, :, i : i + 1])[..., 0]
                pull = inside[:, :, i - a] / h[:, i, i, None]
                better = levels.nearest((s * at - pull)[..., None])
                step = s * (levels.steps(better)[..., 0] - at)
                gains = step * (step + 2 * pull) < 0
                step = torch.where(gains, step, 0.0)
                v[:, :, i] = torch.where(gains, better[..., 0], v[:, :, i])
                steps[:, :, i - a] = step
                inside += step[:, :, None] * h[:, None, i, a:b]
            if steps.any():
                moved = True
                slope += steps @ h[:, a:b]
        if not moved:
            break
    return v


def nearest(weight: Tensor, scale: Tensor, half: Tensor, top: Tensor) -> Tensor:
    """The nearest codes `clip(round(w/s + z/2), 0, top)`; all of one shape, `half` is z/2."""
    return (weight / scale + half).round_().clamp_(min=0).minimum(top)


def damped(gram: Tensor, damping: float) -> Tensor:
    """`H + λI`, `λ = damping · mean H_ii`; the identity's multiple where H is zero."""
    mean = gram.diagonal(dim1=1, dim2=2).mean(1)
    least = torch.where(mean > 0, damping * mean, 1.0)
    return gram + torch.diag_embed(least[:, None].expand(gram.shape[:2]))


def inverse_factor(gram: Tensor, order: Tensor) -> Tensor:
    """U of `Uᵀ U = H⁻¹` with rows and columns in `order`: [G, K, K], order int64 [G, K]."""
    h = gram.gather(1, order[:, :, None].expand_as(gram))
    h = h.gather(2, order[:, None].expand_as(h))
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(h))
    return torch.linalg.cholesky(inverse, upper=True)
