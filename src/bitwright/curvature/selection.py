"""Which directions of which samples are visited: eigenvectors for certain, the rest by chance.

With one number c: eigenvectors with `c λ ≥ 1` are visited one by one; what they leave of a sample,
`r = Tr Λ − Σ λ`, is drawn with probability `π = min(1, c r)`, as `max(1, c σ)` random directions,
`σ² = ½ (r² − Tr Λ² + Σ λ²)` the variance of one: for a sum of variances σ²/m at Σ m directions, m
goes with σ. A larger c only adds eigenvectors and samples (each keeps its luck), so nothing that
was visited is lost but redrawn rests.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bitwright.curvature.losses import OutputHessian
from bitwright.curvature.processes import Group

#: copies too few for a pass of their own
_FEW = 12


@dataclass(frozen=True)
class Spectrum:
    """Of every sample's Λ.

    Attributes:
        trace: Tr Λ, float64 [n].
        values: leading eigenvalues [n, k], falling; vectors: [n, K, k], or None for k = 0.
    """

    trace: Tensor
    values: Tensor
    vectors: Tensor | None

    @classmethod
    def of(cls, hessian: OutputHessian, count: int) -> Spectrum:
        """With `count` leading eigenvectors."""
        values = torch.zeros(hessian.rows, 0, dtype=torch.float64)
        vectors = None
        if count and hessian.rows:
            values, vectors = hessian.leading(count)
        return cls(hessian.trace(), values, vectors)

    def everywhere(self, group: Group) -> Spectrum:
        """Of the samples of all processes, without vectors."""
        return Spectrum(group.joined(self.trace), group.joined(self.values), None)

    def floor(self, spared: float) -> float:
        """The largest of the smallest eigenvalues that together hold a share `spared`."""
        values = self.values.flatten().sort().values
        left_out = int((values.cumsum(0) <= max(spared, 1e-15) * self.trace.sum()).sum())
        return float(values[left_out - 1]) if left_out else 0.0

    def heavy(self, share: float) -> float:
        """The smallest Tr Λ of the samples that together hold a share of all."""
        trace = self.trace.sort(descending=True).values
        count = int((trace.cumsum(0) < share * trace.sum()).sum())
        return float(trace[count]) if len(trace) else 0.0

    def left(self, own: Tensor) -> tuple[Tensor, Tensor]:
        """Trace of what `own` [n] eigenvectors leave, and the known part of its square's trace."""
        mask = torch.arange(self.values.shape[1]) < own[:, None]
        held = self.values * mask
        rest = (self.trace - held.sum(1)).clamp(min=0)
        rest = torch.where(rest < 1e-12 * self.trace, torch.zeros_like(rest), rest)
        return rest, (self.values * ~mask).square().sum(1)

    def density(self, tolerance: float, least: int) -> float:
        """c at which a channel whose curvature goes with Tr Λ has a third of the tolerance."""
        wanted = (tolerance / 3 * float(self.trace.sum())) ** 2

        def enough(c: float) -> bool:
            v = self.visits(c, least)
            chance = v.chance.clamp(min=1e-300)
            variance = (1 - chance) / chance * v.rest.square() + v.noise / (chance * v.count)
            return float(variance.sum()) <= wanted

        return self._edge(enough)[1]

    def affordable(self, directions: float, least: int) -> float:
        """The largest c that is expected to visit no more than so many directions."""
        return self._edge(lambda c: self.visits(c, least).expected > directions)[0]

    def _edge(self, reached: Callable[[float], bool]) -> tuple[float, float]:
        """Two close numbers c, of which the larger reaches what all larger ones do."""
        most = float(self.trace.max()) if len(self.trace) else 0.0
        if most == 0:
            return 1.0, 1.0
        low, high = -10.0, 60.0  # powers of two
        for _ in range(16):
            middle = (low + high) / 2
            if reached(2**middle / most):
                high = middle
            else:
                low = middle
        return 2**low / most, 2**high / most

    def visits(self, density: float, least: int) -> Visits:
        """What this c asks of every sample: eigenvectors, the chance of their rest, draws of it."""
        own = (self.values * density >= 1).sum(1)
        rest, squares = self.left(own)
        noise = 0.5 * (rest.square() - squares).clamp(min=0)
        count = (density * noise.sqrt()).round().clamp(min=least)
        chance = torch.where(rest > 0, (density * rest).clamp(max=1), torch.ones_like(rest))
        return Visits(own, rest, squares, noise, chance, count)

    def plan(self, density: float, luck: Tensor, least: int) -> Plan:
        """Who is visited at this c: samples with luck [n] below their π are drawn."""
        v = self.visits(density, least)
        mixing = (1 - v.squares / v.rest.square().clamp(min=1e-300)).clamp(0, 1)
        count = torch.where((luck < v.chance) & (v.rest > 0), v.count.long(), 0)
        return Plan(self, density, v.own, count, v.chance, mixing)


@dataclass(frozen=True)
class Visits:
    """What a number c asks for, by sample.

    Attributes:
        own: eigenvectors [n]; rest, squares: trace and trace of the square of what they leave [n].
        noise: variance of one random direction in the rest, of its trace [n].
        chance: π [n], 1 where nothing is left; count: random directions if it is drawn [n].
    """

    own: Tensor
    rest: Tensor
    squares: Tensor
    noise: Tensor
    chance: Tensor
    count: Tensor

    @property
    def expected(self) -> float:
        """Directions to visit."""
        drawn = torch.where(self.rest > 0, self.chance * self.count, 0)
        return float((self.own + drawn).sum())


@dataclass(frozen=True)
class Plan:
    """For every sample.

    Attributes:
        spectrum: of all samples; density: c.
        own: eigenvectors visited [n]; draws: random directions in the rest, 0 if not drawn [n].
        chance: π [n], 1 where nothing is left; mixing: ρ of what is left [n], 0 where it is a
            single known direction, whose sign does not matter.
    """

    spectrum: Spectrum
    density: float
    own: Tensor
    draws: Tensor
    chance: Tensor
    mixing: Tensor

    @classmethod
    def everything(cls, spectrum: Spectrum, floor: float = 0.0) -> Plan:
        """All eigenvectors with eigenvalues above `floor`."""
        own = (spectrum.values > floor).sum(1)
        zero = torch.zeros_like(spectrum.trace)
        return cls(spectrum, float("inf"), own, torch.zeros_like(own), zero + 1, zero)

    @property
    def final(self) -> bool:
        """Nothing is left to chance."""
        return self.density == float("inf")

    def seen(self) -> Tensor:
        """Σ Tr Λ of the visited directions."""
        trace = self.spectrum.trace
        rest = self.spectrum.left(self.own)[0]
        return torch.where(self.draws > 0, trace, trace - rest).sum()


@dataclass(frozen=True)
class Units:
    """Directions to visit, as copies of samples with equally many directions each.

    A forward pass serves several backward passes, all of them over all of its rows: samples with
    many directions are taken apart into copies of two and one, unless many samples have as many.

    Attributes:
        copies: (sample, first kind) by number of kinds: size -> int64 [m, 2].
            Kinds below `own` are eigenvectors, those from `own` on draws.
        opened: samples that are visited at all.
    """

    copies: dict[int, Tensor]
    opened: Tensor

    def __len__(self) -> int:
        return sum(size * len(some) for size, some in self.copies.items())

    @classmethod
    def of(cls, plan: Plan, before: Plan | None, chunk: int) -> Units:
        """What `plan` visits beyond `before`."""
        first = torch.zeros_like(plan.own) if before is None else before.own
        again = torch.ones_like(plan.own, dtype=torch.bool)
        if before is not None:
            again = (plan.own != before.own) | (plan.draws != before.draws)
        last = torch.where(again, plan.own + plan.draws, first)
        count = last - first
        opened = torch.nonzero(count > 0).flatten()
        sizes: dict[int, list[Tensor]] = {}
        for size in count[opened].unique().tolist():
            rows = opened[count[opened] == size]
            whole = plan.final or len(rows) >= chunk or size <= 2
            for a in range(0, size, size if whole else 2):
                width = size if whole else min(2, size - a)
                sizes.setdefault(width, []).append(torch.stack([rows, first[rows] + a], 1))
        copies = {k: torch.cat(v) for k, v in sorted(sizes.items(), reverse=True)}
        if not plan.final and 2 in copies and len(copies[2]) < _FEW:
            pairs, ones = copies.pop(2), copies.get(1, torch.zeros(0, 2, dtype=torch.int64))
            copies[1] = torch.cat([pairs, pairs + torch.tensor([0, 1]), ones])
        return cls(copies, opened)
