"""Sums over samples of every channel's curvature, some samples visited for certain, some by chance.

A sample's curvature for a channel is `t = own + rest`: `own` from eigenvectors of its Λ visited one
by one, `rest` from random directions in what they leave, visited with probability π and then
divided by it (Horvitz and Thompson, JASA 47, 1952). Both sums are unbiased:

    Σ t ≈ Σ (own + rest/π),   Var = Σ (1 − π)/π² rest² + Σ σ²/π ,

σ² the variance of a rest's estimate over random signs: measured where it was drawn twice or more,
else bounded by `rest² 2ρ/(1 + 2ρ)`, `ρ = 1 − Σ λ²/r²` with the known eigenvalues λ of what is left
and its trace r: signs along few directions have few ways to differ.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from bitwright.curvature.estimate import Estimate


class Ledger:
    """Squares of visited samples in all C channels: own directions, draws, and draws squared."""

    def __init__(self, samples: int, channels: int) -> None:
        self.slot = torch.full((samples,), -1)
        self._table = torch.zeros(3, 0, channels)
        self._closed = torch.zeros(3, channels, dtype=torch.float64)

    def open(self, rows: Tensor, dtype: torch.dtype) -> None:
        """Make room for samples that will be visited, and forget their draws."""
        new = rows[self.slot[rows] < 0]
        first = self._table.shape[1]
        self.slot[new] = torch.arange(first, first + len(new))
        room = torch.zeros(3, len(new), self._table.shape[2], dtype=dtype)
        self._table = torch.cat([self._table.to(dtype), room], 1)
        self._table[1:, self.slot[rows]] = 0

    def add(self, rows: Tensor, squares: Tensor, own: Tensor) -> None:
        """Add one direction's squares [m, C] of open samples; `own` [m] tells which it is of."""
        slots = self.slot[rows]
        self._table[0].index_add_(0, slots[own], squares[own])
        if not own.all():
            slots, drawn = slots[~own], squares[~own]
            self._table[1].index_add_(0, slots, drawn)
            self._table[2].index_add_(0, slots, drawn.square())

    def close(self, squares: Tensor) -> None:
        """Add samples of which nothing is left, [m, C]: only their sums are kept."""
        t = squares.double()
        self._closed[0] += t.sum(0)
        self._closed[2] += t.square().sum(0)

    def sums(self, chance: Tensor, spread: Tensor, draws: Tensor) -> Tensor:
        """Σ t, its variance, and Σ t², float64 [3, C].

        Args:
            chance: π of each sample's rest [n]; spread: ρ of it [n]; draws: of it so far [n].
        """
        total = self._closed.clone()
        rows = torch.nonzero(self.slot >= 0).flatten()
        for some in rows.split(256):
            own, rest, squares = self._table[:, self.slot[some]].double()
            pi, rho, count = chance[some, None], spread[some, None], draws[some, None]
            rest = rest / count.clamp(min=1)
            measured = (squares / count.clamp(min=1) - rest.square()).clamp(min=0)
            bound = rest.square() * (2 * rho / (1 + 2 * rho))
            noise = torch.where(count > 1, measured / (count - 1).clamp(min=1), bound)
            variance = (1 - pi) / pi**2 * rest.square() + noise / pi
            t = own + rest / pi
            second = (t.square() - variance).clamp(min=0)
            total += torch.stack([t.sum(0), variance.sum(0), second.sum(0)])
        return total


def estimate(sums: Tensor, samples: int) -> Estimate:
    """Mean over samples with both errors, from :meth:`Ledger.sums`.

    Args:
        sums: [3, C] of one layer or edge, over all processes; samples: n, over all processes.
    """
    t, variance, squares = (s.numpy() for s in sums)
    n = samples
    value = t / n
    spread = np.sqrt(np.maximum(squares / n - value**2, 0) / max(n - 1, 1))
    data = spread if n > 1 else value
    return Estimate(value, np.sqrt(variance) / n, data, n)
