"""The local quadratic model of the loss that multi-bit steps minimize (ALQ, sec. 4.2, eq. 7).

`L(x + δ) ≈ L(x) + gᵀδ + ½ δᵀ H δ` with diagonal H. From AMSGrad's statistics (Reddi et al., ICLR
2018) over the steps so far,

    g = m / (1 − β₁ᵗ) ,   H = √(v̂ / (1 − β₂ᵗ)) / η ,   v̂ = the largest v so far,

so that a step of `−g/H` is AMSGrad's with rate η. Our own step beyond the paper takes H from the
Gauss-Newton matrix (:mod:`bitwright.multibit.gauss_newton`); pruning then leaves g out.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

BETAS = (0.9, 0.999)
_SMALLEST = 1e-12


@dataclass(frozen=True)
class Quadratic:
    """g and diagonal H > 0 of some numbers, both of their shape."""

    gradient: Tensor
    curvature: Tensor

    def loss(self, change: Tensor) -> Tensor:
        """`gᵀδ + ½ δᵀ H δ`, float64."""
        d = change.double()
        return (self.gradient * d + 0.5 * self.curvature * d.square()).sum()

    def target(self, now: Tensor) -> Tensor:
        """Where it is least: `x − g/H`."""
        return now - self.gradient / self.curvature


class Moments:
    """AMSGrad's statistics of gradients of one shape.

    Attributes:
        first, second, largest: m, v and v̂; empty before the first gradient.
        steps: t.
    """

    def __init__(self) -> None:
        self.first = self.second = self.largest = torch.zeros(0)
        self.steps = 0

    def add(self, gradient: Tensor) -> None:
        """One more gradient."""
        if not self.steps:
            self.first = torch.zeros_like(gradient)
            self.second, self.largest = self.first.clone(), self.first.clone()
        self.steps += 1
        self.first.lerp_(gradient, 1 - BETAS[0])
        self.second.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
        torch.maximum(self.largest, self.second, out=self.largest)

    def turn(self, which: Tensor) -> None:
        """The numbers `which` are counted the other way round from now on."""
        self.first = torch.where(which, -self.first, self.first)

    def quadratic(self, rate: float, curvature: Tensor | None = None) -> Quadratic:
        """The model whose minimum is a step of this rate.

        Args:
            rate: η.
            curvature: of another source, in the place of AMSGrad's: then H is that plus the share
                of its mean that keeps numbers without curvature where they are.
        """
        gradient = self.first / (1 - BETAS[0] ** self.steps)
        if curvature is None:
            root = (self.largest / (1 - BETAS[1] ** self.steps)).sqrt()
            return Quadratic(gradient, root.clamp(min=_SMALLEST) / rate)
        return Quadratic(gradient, (curvature + curvature.mean().clamp(min=_SMALLEST)) / rate)

    def state(self) -> dict[str, Tensor]:
        """Tensors that :meth:`restore` takes."""
        return {"first": self.first, "second": self.second, "largest": self.largest,
                "steps": torch.tensor(self.steps)}  # fmt: skip

    def restore(self, state: dict[str, Tensor]) -> None:
        """Go on from there."""
        self.first, self.second = state["first"].clone(), state["second"].clone()
        self.largest, self.steps = state["largest"].clone(), int(state["steps"])
