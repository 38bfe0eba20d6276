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

import torch
from torch import Tensor

#: columns whose corrections reach the later ones in one product
_BLOCK = 32


def round_columns(
    weight: Tensor, gram: Tensor, scale: Tensor, zero: Tensor, top: Tensor, damping: float
) -> Tensor:
    """Codes `v` of `s · (v − z/2)`, 0 to `top`, float64 [G, r, K].

    Args:
        weight: [G, r, K], groups of r rows that read the same K inputs.
        gram: symmetric, positive semi-definite H of each group, [G, K, K].
        scale, zero, top: of every row, [G, r]; zero in half steps.
        damping: `λ = damping · mean H_ii`; the larger, the nearer to rounding to nearest.
    """
    count = weight.shape[2]
    w, h = weight.double(), gram.double()
    diagonal = h.diagonal(dim1=1, dim2=2)
    order = diagonal.argsort(dim=1, descending=True, stable=True)
    w = w.gather(2, order[:, None].expand_as(w))
    u = inverse_factor(damped(h, damping), order)
    s, half, most = scale.double(), zero.double() / 2, top.double()
    codes = torch.empty_like(w)
    for a in range(0, count, _BLOCK):
        b = min(a + _BLOCK, count)
        errors = torch.empty_like(w[:, :, a:b])
        for i in range(a, b):
            v = nearest(w[:, :, i], s, half, most)
            e = (w[:, :, i] - s * (v - half)) / u[:, i, i, None]
            codes[:, :, i], errors[:, :, i - a] = v, e
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
) -> Tensor:
    """Codes with an error no larger, from at most `sweeps` times over all weights; as above.

    Args:
        codes: float64 [G, r, K], integers.
        weight, gram, scale, zero, top: as for :func:`round_columns`; gram with a positive diagonal.
    """
    count = codes.shape[2]
    v, h, w = codes.clone(), gram.double(), weight.double()
    s, half, most = scale.double(), zero.double() / 2, top.double()
    slope = (s[..., None] * (v - half[..., None]) - w) @ h
    for _ in range(sweeps):
        moved = False
        for a in range(0, count, _BLOCK):
            b = min(a + _BLOCK, count)
            steps = torch.zeros_like(v[:, :, a:b])
            inside = slope[:, :, a:b].clone()
            for i in range(a, b):
                now = s * (v[:, :, i] - half)
                pull = inside[:, :, i - a] / h[:, i, i, None]
                better = nearest(now - pull, s, half, most)
                step = s * (better - v[:, :, i])
                gains = step * (step + 2 * pull) < 0
                step = torch.where(gains, step, 0.0)
                v[:, :, i] = torch.where(gains, better, v[:, :, i])
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
