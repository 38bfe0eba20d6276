"""Loss-aware steps on bases and on coordinates (ALQ, sec. 4.4 and 4.5): no straight-through rule.

Both minimize the quadratic model of :mod:`bitwright.multibit.quadratic` over what a weight can be:

- *coordinates*: `α ← α − g_α / H_α`, `g_α = B g`;
- *bases*: `w* = ŵ − g/H`; every weight takes the nearest of its 2ᴵ values, then
  `α = (B H Bᵀ)⁻¹ B H w*`. The model, `½ Σ H (w − w*)²` up to a constant, grows in neither.

A sign only turns where `|g/H|` passes half the gap of two values: nothing is remembered between
steps but the statistics, so that no float copy of a weight exists. Rates of bases are relative to
the mean size of a layer's weights, ours: with AMSGrad's usual 1e-3 hardly a sign would ever turn.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from bitwright.arith.multibit import Bases, coordinates, nearest, projected, tidied, values
from bitwright.multibit.net import Multibit
from bitwright.multibit.prune import prune
from bitwright.multibit.quadratic import BETAS, Moments, Quadratic

DOMAINS = ("coordinates", "bases")
#: steps before bases move, and coordinates go, in a long stage: AMSGrad's first steps are signs of
#: gradients alone, each as long as the rate lets them be
SETTLE = 10


class LossAware:
    """An optimizer of a :class:`Multibit` in one domain: call :meth:`step` after `backward`.

    Args:
        net: what is trained; its biases and batch-norm by AMSGrad itself.
        domain: `coordinates` or `bases`.
        rate: η; of coordinates and of bases relative to the mean size of a layer's weights.
        other_rate: of the parameters that are no bases.
        settle: steps of statistics before bases move.
        curvature: H by layer in place of AMSGrad's, of the coordinates' shape or the weights'; see
            :func:`bitwright.multibit.gauss_newton.curvatures`. Then rate 1 is
            a damped Newton step, `−g / (H + H̄)`.
    """

    def __init__(
        self,
        net: Multibit,
        domain: str = "coordinates",
        rate: float = 1e-2,
        *,
        other_rate: float = 1e-3,
        settle: int = SETTLE,
        curvature: Mapping[str, Tensor] | None = None,
    ) -> None:
        if domain not in DOMAINS:
            raise ValueError(f"domain {domain!r} is unknown; use {' or '.join(DOMAINS)}")
        self.net, self.domain, self.rate, self.curvature = net, domain, rate, curvature
        self._whole, self.settle = (rate, other_rate), settle
        self.moments = {name: Moments() for name in net.names}
        others = net.others()
        self.others = (
            torch.optim.Adam(others, other_rate, betas=BETAS, amsgrad=True) if others else None
        )

    def models(self) -> dict[str, Quadratic]:
        """The quadratic model of every layer, from the gradients so far."""
        found = {}
        for name, moments in self.moments.items():
            given = None if self.curvature is None else self.curvature[name]
            rate = self.rate if given is not None else self.rate * self.size(name)
            found[name] = moments.quadratic(rate, given)
        return found

    def size(self, name: str) -> float:
        """Mean size of the coordinates that are there: of a weight, about."""
        alpha = self.net[name].alpha
        return max(float(alpha.sum() / (alpha > 0).sum().clamp(min=1)), 1e-12)

    def anneal(self, left: float) -> None:
        """Set all rates to this share of what they were made with, from 0 to 1."""
        self.rate = self._whole[0] * left
        if self.others is not None:
            for group in self.others.param_groups:
                group["lr"] = self._whole[1] * left

    @property
    def steps(self) -> int:
        """Taken so far."""
        return max(m.steps for m in self.moments.values())

    @torch.no_grad()
    def step(self, *, turn: bool = True) -> None:
        """Take the gradients of the last backward pass, move, and forget the rebuilt weights.

        Args:
            turn: whether a coordinate that passes zero, its signs turned over, has statistics that
                turn with it; not where the caller chooses signs anew.
        """
        for name, leaf in self.net.leaves().items():
            layer = self.net[name]
            assert leaf.grad is not None
            gradient = layer.grouping.cut(leaf.grad)
            if self.domain == "coordinates":
                gradient = projected(gradient, layer.codes, layer.alpha.shape[1])
            self.moments[name].add(gradient)
        settled = self.domain == "coordinates" or self.steps > self.settle
        for name, model in (self.models() if settled else {}).items():
            layer = self.net[name]
            if self.domain == "bases":
                layer.become(_bases(layer.bases(), model))
                continue
            moved = torch.where(layer.alpha > 0, model.target(layer.alpha), 0)
            if turn:
                self.moments[name].turn(moved < 0)
            layer.become(tidied(Bases(layer.codes, moved)))
        self.net.release()
        if self.others is not None:
            self.others.step()
            self.others.zero_grad()

    @torch.no_grad()
    def prune(
        self,
        spare_bits: float,
        share: float = 1.0,
        curvature: Mapping[str, Tensor] | None = None,
    ) -> int:
        """Remove the least important coordinates by the statistics so far; how many are gone.

        Args:
            spare_bits, share: see :func:`bitwright.multibit.prune.least`.
            curvature: H of the coordinates in the place of AMSGrad's. The model is then
                `½ (H + H̄) α²`: without the gradient, the noise of a few steps, which a curvature
                of the loss itself does not outweigh as √v̂/η does; and with H̄, the mean of a layer,
                since large changes move what tiny curvatures say nothing of.

        Raises:
            ValueError: in the domain of bases, or before the first step.
        """
        if self.domain != "coordinates" or not all(m.steps for m in self.moments.values()):
            raise ValueError("pruning takes statistics of coordinates: take a step of them first")
        if curvature is None:
            models = self.models()
        else:
            models = {name: self._damped(name, given) for name, given in curvature.items()}
        return prune(self.net, models, spare_bits, share)

    def _damped(self, name: str, given: Tensor) -> Quadratic:
        mean = given[self.net[name].alpha > 0].mean()
        return Quadratic(torch.zeros_like(given), given + mean)

    def state(self) -> dict[str, Tensor]:
        """Tensors by name that :meth:`restore` takes."""
        found = {
            f"moments:{name}:{key}": value
            for name, moments in self.moments.items()
            for key, value in moments.state().items()
        }
        if self.others is not None:
            for i, values_ in self.others.state_dict()["state"].items():
                found |= {f"others:{i}:{key}": torch.as_tensor(v) for key, v in values_.items()}
        return found

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from there."""
        parts: dict[str, dict[str, dict[str, Tensor]]] = {"moments": {}, "others": {}}
        for name, value in state.items():
            part, owner, key = name.split(":")
            parts[part].setdefault(owner, {})[key] = value
        for name, moments in self.moments.items():
            moments.restore(parts["moments"][name])
        if self.others is not None:
            held = {int(i): dict(values_) for i, values_ in parts["others"].items()}
            groups = self.others.state_dict()["param_groups"]
            self.others.load_state_dict({"state": held, "param_groups": groups})


def _bases(bases: Bases, model: Quadratic) -> Bases:
    target = model.target(values(bases))
    held = Bases(nearest(target, bases.alpha), bases.alpha)
    return coordinates(held, target, model.curvature)
