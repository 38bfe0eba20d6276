"""Frobenius norm of the input Hessian, Hutchinson: `E ‖H v‖² = ‖H‖_F²` for random signs v.

(Hutchinson, Communications in Statistics 18, 1989; of H² here, by a product with H alone.) Beside
the operator norm it has no maximum to look for, but it weighs all directions, of which an attack
needs one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bitwright.errors import BitwrightError
from bitwright.train.input_hessian.products import Difference, Exact
from bitwright.train.input_hessian.samples import Loss, through


def frobenius_squared(
    model: nn.Module,
    loss: Loss,
    x: Tensor,
    y: Any = None,
    *,
    generator: torch.Generator,
    probes: int = 1,
    product: Exact | Difference | None = None,
) -> Tensor:
    """An unbiased estimate of `‖∂²f_i/∂x_i²‖_F²` of each row, differentiable in the parameters.

    Arguments as for :func:`bitwright.hessian_norm`, and

    Args:
        generator: of the signs, on the CPU.
        probes: averaged; the estimate's variance falls as 1/probes.
        product: `Exact()` unless given; `Difference(h)`.

    Returns:
        [n].

    Raises:
        BitwrightError: rows depend on each other (batch statistics), or an argument is wrong.
    """
    if probes < 1:
        raise BitwrightError(f"probes must be 1 or more, not {probes}")
    wanted = torch.is_grad_enabled()
    with torch.enable_grad():
        found = through(model, loss, x, y)
        operator = (product or Exact()).operator(found, model, loss, y)
        total = operator.like.new_zeros(len(x))
        for _ in range(probes):
            coins = torch.randint(0, 2, operator.like.shape, generator=generator)
            v = (2 * coins - 1).to(operator.like)
            total = total + operator.image(v, wanted).square().sum(1)
    return total / probes if wanted else total.detach() / probes
