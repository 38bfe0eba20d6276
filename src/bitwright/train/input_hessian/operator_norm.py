"""Operator norm of the input Hessian by power iteration, as a penalty (arXiv 2009.06571).

The paper's abstract says that it trains with this norm; how is our reconstruction. For each row i

    ‖∂²f_i/∂x_i²‖ = max over unit v of ‖H_i v‖ ,        v ← H v / ‖H v‖

The maximizing v is held, so that the penalty's gradient is that of ‖H v‖ at a fixed v: at the
maximum this is the whole gradient, since the value does not change with v to first order.

The value's own `H v` is the next step of power iteration. Where H is taken apart as AᵀA, of smaller
vectors, the penalty's backward pass holds it: its gradient in v is `∂½‖A v‖²/∂v = AᵀA v`. With a
warm start it is kept for the row's next visit, and no step of its own is ever needed:
`iterations=0`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from bitwright.errors import BitwrightError
from bitwright.train.input_hessian.directions import Start, unit
from bitwright.train.input_hessian.products import Operator, Product, named
from bitwright.train.input_hessian.samples import Loss, through


def hessian_norm(
    model: nn.Module,
    loss: Loss,
    x: Tensor,
    y: Any = None,
    *,
    iterations: int = 10,
    product: str | Product = "hessian",
    start: Start | None = None,
) -> Tensor:
    """‖∂²f_i/∂x_i²‖ of each row, differentiable in the model's parameters.

    The f_i are the rows' losses whose mean is the loss of the batch.

    Args:
        model: of one tensor [n, ...] to one tensor [n, ...]; batch-norm in eval mode.
        loss: module of torch, or function of (outputs, y); for `gauss-newton` one whose Hessian
            in the outputs is known, "kl" and "squared" among them.
        x: [n, ...] inputs; y: what the loss takes.
        iterations: of power iteration before the value is taken. The value is a lower bound; its
            relative error falls as (λ₂/λ₁)^(2·iterations), at the latest as log(n)/iterations.
        product: `hessian`; `difference` of gradients; or `gauss-newton`, for networks piecewise
            linear in their input the same and cheapest. Or one of the classes of these, with
            options.
        start: `Directions(rows)[index]`, index the numbers of the batch's rows in the training
            data: goes on where the row's last visit ended. Then 0 iterations are enough: a visit
            makes a step by itself (in its backward pass, for `gauss-newton`).

    Returns:
        [n], in units of the loss by the input squared; without a graph under `torch.no_grad()`.

    Raises:
        BitwrightError: rows depend on each other (batch statistics), or an argument is wrong.

    Cost of a training step beside a plain one: see docs/decisions/0030-input-hessian.md.
    """
    with _differentiable() as wanted:
        found = through(model, loss, x, y)
        operator = named(product).operator(found, model, loss, y)
        return _norm(operator, iterations, start, wanted)


def loss_and_hessian_norm(
    model: nn.Module,
    loss: Loss,
    x: Tensor,
    y: Any = None,
    *,
    iterations: int = 10,
    product: str | Product = "hessian",
    start: Start | None = None,
) -> tuple[Tensor, Tensor]:
    """The batch's mean loss and :func:`hessian_norm`, from one pass through the model."""
    with _differentiable() as wanted:
        found = through(model, loss, x, y)
        operator = named(product).operator(found, model, loss, y)
        value = found.loss() / len(x)
        return value if wanted else value.detach(), _norm(operator, iterations, start, wanted)


@contextmanager
def _differentiable() -> Iterator[bool]:
    """Gradients on, attention by the kernel that has second ones; gives whether they were on."""
    wanted = torch.is_grad_enabled()
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        yield wanted


def _norm(operator: Operator, iterations: int, start: Start | None, wanted: bool) -> Tensor:
    if iterations < 0:
        raise BitwrightError(f"iterations must be 0 or more, not {iterations}")
    if start is None:
        generator = torch.Generator().manual_seed(0)
        drawn = torch.randn(operator.like.shape, generator=generator)
        v = unit(drawn.to(operator.like))
    else:
        v = start.draw(operator.like)
    for _ in range(iterations):
        turned = operator.turned(v)
        v = torch.where((turned != 0).any(1, keepdim=True), unit(turned), v).detach()
    if operator.power == 1:
        image = operator.image(v, wanted)
        if start is not None:
            start.keep(image)
        value = torch.linalg.vector_norm(image, dim=1)
    else:
        if start is not None and iterations:
            start.keep(v)
        if start is not None and wanted:
            v.requires_grad_().register_hook(start.keep)
        value = operator.image(v, wanted).square().sum(1)
    return value if wanted else value.detach()
