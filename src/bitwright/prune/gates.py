"""What removing a unit by itself would lose: `½ E[⟨u, −w⟩²]`, by gates on what reads its channels.

A unit is removed by zeros in the columns w of everything that reads its channels. With a gate m = 1
on each of these inputs, `∂/∂m = ⟨u, w⟩` for the backward pass u of a sample's direction
(:mod:`bitwright.curvature.gauss_newton`): the gradient of a gate, squared and summed as a trace is,
gives `wᵀ G w` of the Gauss-Newton matrix G, and half of that is the loss of the unit's removal to
second order, whatever is coupled in it. One number a sample, unit and direction: no gradient of a
weight is formed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from bitwright.curvature import Estimate, divergence
from bitwright.curvature.gauss_newton import measure
from bitwright.curvature.layout import Layout
from bitwright.curvature.losses import OutputHessian, flatten, output_hessian
from bitwright.curvature.subjects import Pass, Subject
from bitwright.errors import BitwrightError
from bitwright.network import join
from bitwright.prune.groups import Group


def removal(
    model: nn.Module,
    groups: Sequence[Group],
    x: Tensor,
    *,
    kind: str = "kl",
    class_axis: int = 1,
    tolerance: float = 0.1,
    effort: float = 2.0,
    chunk: int = 64,
    seed: int = 0,
) -> dict[str, Estimate]:
    """`E[⟨u, −w⟩²]` of every unit, twice the predicted loss of its removal.

    Args:
        model: in evaluation mode; left as it is.
        groups: of :func:`bitwright.prune.coupled`; x: [n, ...] rows.
        kind, class_axis, tolerance, effort, chunk, seed: as for the traces, which cost as much.

    Returns:
        Group name -> :class:`bitwright.Estimate` over its units.

    Raises:
        BitwrightError: a layer's input has its samples where they cannot be told apart.
    """
    divergence.check(kind)
    subject = _Gated(model, groups, x, kind, class_axis)
    with torch.no_grad():
        outputs = torch.cat([join(model(rows)) for rows in x.split(128)])
    block, _ = output_hessian(kind, outputs, None, class_axis)
    found, _ = measure(
        subject,
        OutputHessian((block,)),
        {f"edge:{g.name}": g.units for g in groups},
        tolerance,
        effort,
        chunk,
        seed,
        lambda f: None,
    )
    return {g.name: found[f"edge:{g.name}"] for g in groups}


class _Gated:
    """A model whose units have gates, as a subject of :func:`measure`."""

    def __init__(
        self, model: nn.Module, groups: Sequence[Group], x: Tensor, kind: str, class_axis: int
    ) -> None:
        self.model, self.groups, self.x = model, groups, x
        self.kind, self.class_axis = kind, class_axis
        self.weights: Mapping[str, tuple[int, ...]] = {}

    def precise(self) -> Subject | None:
        """Float32 is enough for scores."""
        return None

    def forward(self, rows: Tensor) -> Iterator[tuple[Tensor, Pass]]:
        """One pass over all of them."""
        n = len(rows)
        gates = {g.name: torch.ones(n, g.units, requires_grad=True) for g in self.groups}
        with torch.enable_grad(), gated(self.model, self.groups, gates):
            outputs = flatten(join(self.model(self.x[rows])), self.kind, self.class_axis)
        edges = {name: (gate, 1, Layout()) for name, gate in gates.items()}
        yield torch.arange(n), Pass(outputs, {}, edges, {})


@contextmanager
def gated(
    model: nn.Module, groups: Sequence[Group], gates: Mapping[str, Tensor]
) -> Iterator[nn.Module]:
    """The model with the inputs of what reads each unit times the unit's gate of the sample.

    Args:
        model: hooked while the context lasts.
        groups: whose units have gates; gates: group name -> [n, units].
    """
    with ExitStack() as stack:
        for group in groups:
            for member in group.consumers:
                module = model.get_submodule(member.path)
                factor = _factor(module, member.channels)
                hook = module.register_forward_pre_hook(
                    _times(gates[group.name], factor, module, member.path)
                )
                stack.callback(hook.remove)
        yield model


def _factor(module: nn.Module, channels: tuple[tuple[int, ...], ...]) -> Tensor:
    """For each input channel the number of its unit, the number of units where it has none."""
    width = module.in_features if isinstance(module, nn.Linear) else module.in_channels
    place = torch.full((int(width),), len(channels))  # type: ignore[arg-type]
    for unit, some in enumerate(channels):
        place[list(some)] = unit
    return place


def _times(gate: Tensor, place: Tensor, module: nn.Module, path: str) -> Any:
    linear = isinstance(module, nn.Linear)

    def hook(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        x = inputs[0]
        n, lead = len(gate), x.shape[0]
        if lead % n or (not linear and x.ndim < 3):
            raise BitwrightError(
                f"layer {path!r} reads {tuple(x.shape)} for {n} rows, whose samples cannot be told "
                f"apart; leave it whole with --skip {path}"
            )
        one = torch.cat([gate, gate.new_ones(n, 1)], 1)[:, place]  # [n, channels]
        if lead != n:
            one = one.repeat_interleave(lead // n, 0)
        spread = (lead, *[1] * (x.ndim - 2), -1) if linear else (lead, -1, *[1] * (x.ndim - 2))
        return (x * one.to(x).reshape(spread), *inputs[1:])

    return hook


__all__ = ["gated", "removal"]
