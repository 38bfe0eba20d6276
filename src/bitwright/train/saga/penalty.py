"""The separable regularizer ψ: none, L1, L2, elastic net, box, and their combinations."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bitwright.errors import BitwrightError

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class Penalty:
    """`ψ(x) = Σ_j l1 |x_j| + ½ l2 x_j²`, finite for `lower <= x_j <= upper`.

    In one dimension the minimizer over an interval is the free one, clipped, so that

        prox_{αψ}(v) = clip(soft(v, α l1) / (1 + α l2), lower, upper).

    Raises:
        BitwrightError: a negative or infinite weight, or an empty box.
    """

    l1: float = 0.0
    l2: float = 0.0
    lower: float = -math.inf
    upper: float = math.inf

    def __post_init__(self) -> None:
        for name, value in (("l1", self.l1), ("l2", self.l2)):
            if not 0 <= value < math.inf:
                raise BitwrightError(f"{name} is {value}; give a finite number that is 0 or more")
        if not self.lower <= self.upper:
            raise BitwrightError(f"the box [{self.lower}, {self.upper}] is empty")

    @property
    def affine(self) -> bool:
        """Whether the proximal operator only scales: no L1, no box."""
        return not self.l1 and self.lower == -math.inf and self.upper == math.inf

    def value(self, x: Vector) -> float:
        """ψ(x); infinite outside the box."""
        if (x < self.lower).any() or (x > self.upper).any():
            return math.inf
        return float(self.l1 * np.abs(x).sum() + 0.5 * self.l2 * np.vdot(x, x))

    def prox(self, v: Vector, step: float) -> Vector:
        """`argmin_x ψ(x) + ‖x − v‖² / (2 step)`."""
        bound = step * self.l1
        shrunk = (v - np.clip(v, -bound, bound)) / (1 + step * self.l2)
        return np.clip(shrunk, self.lower, self.upper)

    def conjugate(self, v: Vector) -> float:
        """`ψ*(v) = sup_x v·x − ψ(x)`; infinite where ψ does not bound the direction of v."""
        slope = v - np.clip(v, -self.l1, self.l1)
        if self.l2:
            best = np.clip(slope / self.l2, self.lower, self.upper)
        else:  # the end of the box it points to; |v| <= l1 asks for the point nearest to 0
            nearest = np.clip(0.0, self.lower, self.upper)
            best = np.where(slope > 0, self.upper, np.where(slope < 0, self.lower, nearest))
        if not np.isfinite(best).all():
            return math.inf
        return float((v * best - self.l1 * np.abs(best) - 0.5 * self.l2 * best**2).sum())
