"""Post-training of multi-bit weights with a float copy and straight-through gradients (ALQ-e).

The copy w takes AMSGrad's steps with ∂L/∂ŵ in place of ∂L/∂w (Bengio et al., arXiv 1308.3432); the
signs are those of its nearest values, and the coordinates take their own steps. Optional, after the
main phase, which has no such copy.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from bitwright.arith.multibit import Bases, nearest
from bitwright.multibit.net import Multibit
from bitwright.multibit.quadratic import Moments
from bitwright.multibit.steps import LossAware


class StraightThrough:
    """An optimizer of a :class:`Multibit`: call :meth:`step` after `backward`.

    Args:
        net: what is trained.
        rate: of the copy, relative to the mean size of coordinates.
        coordinates_rate: of coordinates, likewise; None: the same.
        other_rate: of the parameters that are no bases.
        floats: weights by layer that the copy begins with; None: what the bases stand for.
    """

    def __init__(
        self,
        net: Multibit,
        rate: float = 1e-2,
        *,
        coordinates_rate: float | None = None,
        other_rate: float = 1e-3,
        floats: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.net, self.rate, self._whole = net, rate, rate
        own = rate if coordinates_rate is None else coordinates_rate
        self.coordinates = LossAware(net, "coordinates", own, other_rate=other_rate)
        begun = {name: net[name].weight() for name in net.names} if floats is None else floats
        self.latent = {name: net[name].grouping.cut(begun[name].detach()).clone()
                       for name in net.names}  # fmt: skip
        self.moments = {name: Moments() for name in net.names}

    def anneal(self, left: float) -> None:
        """Set all rates to this share of what they were made with, from 0 to 1."""
        self.rate = self._whole * left
        self.coordinates.anneal(left)

    @torch.no_grad()
    def step(self) -> None:
        """Take the gradients of the last backward pass, move, and forget the rebuilt weights."""
        for name, leaf in self.net.leaves().items():
            assert leaf.grad is not None
            self.moments[name].add(self.net[name].grouping.cut(leaf.grad))
            model = self.moments[name].quadratic(self.rate * self.coordinates.size(name))
            self.latent[name] = model.target(self.latent[name])
        self.coordinates.step(turn=False)
        for name in self.net.names:
            layer = self.net[name]
            layer.become(Bases(nearest(self.latent[name], layer.alpha), layer.alpha))
        self.net.release()

    def state(self) -> dict[str, Tensor]:
        """Tensors by name that :meth:`restore` takes."""
        found = {f"latent:{name}:w": value for name, value in self.latent.items()}
        for name, moments in self.moments.items():
            found |= {f"copy:{name}:{key}": value for key, value in moments.state().items()}
        return found | self.coordinates.state()

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from there."""
        rest, copies = {}, dict[str, dict[str, Tensor]]()
        for name, value in state.items():
            part, owner, key = name.split(":")
            if part == "latent":
                self.latent[owner] = value.clone()
            elif part == "copy":
                copies.setdefault(owner, {})[key] = value
            else:
                rest[name] = value
        for owner, values in copies.items():
            self.moments[owner].restore(values)
        self.coordinates.restore(rest)
