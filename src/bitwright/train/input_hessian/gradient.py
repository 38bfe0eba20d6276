"""Norm of the input gradient (Drucker and LeCun, IEEE Trans. Neural Networks 3, 1992, squared)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bitwright.train.input_hessian.samples import Loss, through


def gradient_norm(model: nn.Module, loss: Loss, x: Tensor, y: Any = None) -> Tensor:
    """‖∂f_i/∂x_i‖ of each row, differentiable in the model's parameters.

    Arguments as for :func:`bitwright.hessian_norm`.

    Returns:
        [n], in units of the loss by the input.

    Raises:
        BitwrightError: rows depend on each other (batch statistics), or an argument is wrong.
    """
    return loss_and_gradient_norm(model, loss, x, y)[1]


def loss_and_gradient_norm(
    model: nn.Module, loss: Loss, x: Tensor, y: Any = None
) -> tuple[Tensor, Tensor]:
    """The batch's mean loss and :func:`gradient_norm`, from one pass through the model."""
    wanted = torch.is_grad_enabled()
    with torch.enable_grad():
        found = through(model, loss, x, y)
        (slope,) = torch.autograd.grad(
            found.loss(), found.x, create_graph=wanted, retain_graph=True
        )
        value = found.loss() / len(x)
    return value if wanted else value.detach(), torch.linalg.vector_norm(slope.flatten(1), dim=1)
