"""Where the Hessian of a loss differs from its Gauss-Newton matrix: one product of each a layer.

`H = Jᵀ Λ J + Σ_k ∂L/∂y_k ∇² y_k`: the second part is left out by Gauss-Newton. It vanishes for the
divergence to the model itself (`∂L/∂y = 0`) and where the network is piecewise linear in a layer;
it is small where a trained network fits its labels. With random signs z on one layer's weights,
`E‖Az‖² = ‖A‖_F²`, so that one z tells the size of a difference of two matrices.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bitwright.curvature.batches import read
from bitwright.curvature.hessian import Hessian
from bitwright.errors import BitwrightError

#: a relative difference that is called one
DIFFERENT = 0.1


@dataclass(frozen=True)
class Difference:
    """Of the two matrices in one layer's block.

    Attributes:
        size: `‖(H − G) z‖ / ‖G z‖`, about the ratio of Frobenius norms; inf where G is zero.
        trace: `zᵀ(H − G) z / zᵀ G z`, about the relative difference of traces.
    """

    size: float
    trace: float


def compare(
    model: nn.Module,
    data: Any,
    loss: Any,
    *,
    class_axis: int = 1,
    select: Callable[[Any], Any] | None = None,
    chunk: int = 128,
    seed: int = 0,
) -> dict[str, Difference]:
    """How far the Hessian of the loss is from its Gauss-Newton matrix, layer by layer.

    Args:
        model, data, loss, class_axis, select: as for :func:`bitwright.traces`, one loss.
        chunk: rows in a pass.
        seed: of the signs.

    Returns:
        Weight name (without `.weight`) -> :class:`Difference`.

    Raises:
        BitwrightError: see :class:`~bitwright.curvature.hessian.Hessian`.

    Cost: two products of the Hessian a layer, each of that layer alone.
    """
    if isinstance(loss, Mapping | list | tuple):
        raise BitwrightError(
            "the Hessian of a sum of heads is not compared; give one loss, and with select= the "
            "outputs it sees"
        )
    batches = read(data)
    both = [
        Hessian(model, batches, loss, class_axis=class_axis, select=select, kind=kind, chunk=chunk)
        for kind in ("hessian", "gauss-newton")
    ]
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, weight in both[0].weights.items():
        z = torch.randint(0, 2, weight.shape, generator=generator).double() * 2 - 1
        h, g = (hessian.products([{name: z}], [name])[0][name] for hessian in both)
        found[name.removesuffix(".weight")] = Difference(
            _ratio((h - g).norm(), g.norm()), _ratio((z * (h - g)).sum(), (z * g).sum())
        )
    return found


def told(found: Mapping[str, Difference]) -> str:
    """The layers where the two differ by more than a tenth, largest first; empty if none does."""
    far = sorted((-d.size, n) for n, d in found.items() if d.size > DIFFERENT)
    return ", ".join(f"{name} by {-size:.0%}" for size, name in far)


def _ratio(part: Tensor, whole: Tensor) -> float:
    if not part:
        return 0.0
    return float(part / whole) if whole else float("inf")
