"""Rounding with gradients: straight through to the values, learned steps as in LSQ.

What is rounded passes its gradient on where nothing was clipped (Bengio et al., arXiv 1308.3432).
The step s of `x̂ = s (q − z)`, q = clip(round(v), 0, top), v = x/s + z, has the gradient

    ∂x̂/∂s = q − v   inside the grid,   q − z   outside

(Esser et al., arXiv 1902.08153, eq. 3), times 1/√(numbers of the step) for weights and
1/√(numbers of a row · top) for activations, so that steps move about as fast as values do.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bitwright.arith.grid import Grid, nearest, reach


def straight_weights(
    weight: Tensor,
    log_step: Tensor,
    grid: Grid,
    rounded: Callable[[Tensor, Grid], Tensor] | None = None,
) -> Tensor:
    """Fake-quantized weights [rows, fan_in] of latent ones; steps by their logarithms [rows].

    `rounded` makes codes of weights in steps from the lowest level; None rounds to nearest. The
    coordinates of multi-bit rows stay in the ratio they have.
    """
    half = grid.zero[:, None] / 2
    top = reach(grid)[:, None].to(weight.dtype)
    damp = 1 / math.sqrt(weight.shape[1])
    step = log_step.exp()[:, None]
    step = step * damp + (step * (1 - damp)).detach()
    scaled = (weight / step + half).clamp(min=torch.zeros_like(top), max=top)
    at = nearest(scaled.detach(), grid) if rounded is None else rounded(scaled.detach(), grid)
    levels = scaled + (at - scaled).detach()
    return (levels - half) * step


def straight_values(
    x: Tensor, step: Tensor, zero: int, top: int, limits: tuple[Any, Any] | None = None
) -> Tensor:
    """Fake-quantized activations [n, ...]; one step, a tensor of no axes.

    `limits`: least and largest q, numbers or tensors that broadcast with x; None for 0 and `top`.
    """
    found: Tensor = _Values.apply(x, step, zero, top, *(limits or (0, top)))
    return found


class _Values(torch.autograd.Function):
    """One node in place of eight: activations are the memory of a training step."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, step: Tensor, zero: int, top: int, low: Any, high: Any
    ) -> Tensor:
        v = x / step + zero
        q = v.round().clamp_(low, high)
        ctx.save_for_backward(v, q)
        ctx.zero, ctx.top, ctx.limits = zero, top, (low, high)
        return (q - zero) * step

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        v, q = ctx.saved_tensors
        inside = (v >= ctx.limits[0]) & (v <= ctx.limits[1])
        by_step = gradient * torch.where(inside, q - v, q - ctx.zero)
        to_step = by_step.sum() / math.sqrt(v[0].numel() * ctx.top)
        return gradient * inside, to_step, None, None, None, None
