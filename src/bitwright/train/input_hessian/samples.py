"""The losses of a batch's rows, as functions of their inputs alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from bitwright.curvature.divergence import KINDS
from bitwright.curvature.losses import known
from bitwright.errors import BitwrightError

#: a loss module of torch; a function of (outputs, targets) that gives a mean over rows, or a
#: number for each; or, for Gauss-Newton products, "kl" or "squared": to the model itself
Loss = nn.Module | Callable[[Tensor, Any], Tensor] | str


@dataclass(frozen=True)
class Pass:
    """One pass of the model over a batch, its graph alive.

    Attributes:
        x: [n, ...] what was read, with gradients.
        outputs: [n, ...] of the model.
        total: Σ f_i, f_i the losses of rows whose mean is the batch's loss; None for "kl" and
            "squared", which are 0 here.
    """

    x: Tensor
    outputs: Tensor
    total: Tensor | None

    def loss(self) -> Tensor:
        """Σ f_i, of losses that have a value.

        Raises:
            BitwrightError: "kl" and "squared" are 0, and so is their gradient.
        """
        if self.total is None:
            raise BitwrightError(
                "kl and squared, to the model itself, are 0 and have no gradient here; use the "
                "product 'gauss-newton', which is their whole Hessian, or a loss with targets"
            )
        return self.total


def through(model: nn.Module, loss: Loss, x: Tensor, y: Any = None) -> Pass:
    """Run the model on x; on a leaf of its own, unless x has a graph already.

    Raises:
        BitwrightError: rows of the batch depend on each other, or model or loss give anything but
            what :data:`Loss` says.
    """
    refuse_interaction(model)
    leaf = x if x.requires_grad else x.detach().requires_grad_()
    outputs = model(leaf)
    if not isinstance(outputs, Tensor) or outputs.shape[:1] != x.shape[:1]:
        raise BitwrightError(
            f"the model gives {_what(outputs)} for {len(x)} rows; wrap it so that it returns one "
            "tensor [n, ...]"
        )
    return Pass(leaf, outputs, _total(loss, outputs, y))


def _total(loss: Any, outputs: Tensor, y: Any) -> Tensor | None:
    if isinstance(loss, str):
        if loss in KINDS:
            return None
        raise BitwrightError(
            f"loss {loss!r} is unknown; give a loss module of torch, a function of (outputs, "
            f"targets), or one of {', '.join(KINDS)}"
        )
    value = loss(outputs, y)
    if not isinstance(value, Tensor) or (value.ndim and value.shape[:1] != outputs.shape[:1]):
        raise BitwrightError(
            f"the loss gives {_what(value)} for {len(outputs)} rows; it must give a mean over rows "
            "or a number for each row"
        )
    summed = value.ndim > 0 or (known(loss) and loss.reduction == "sum")
    return value.sum() if summed else value * len(outputs)


def refuse_interaction(model: nn.Module, twice: bool = False) -> None:
    """With batch statistics, a row's loss depends on others' inputs; masks drawn `twice` differ.

    Raises:
        BitwrightError: names the layer.
    """
    for name, part in model.named_modules():
        if part.training and isinstance(part, _BatchNorm):
            raise BitwrightError(
                f"layer {name!r} normalizes by the batch's own statistics, so that rows depend on "
                "each other; call .eval() on it, or use GroupNorm"
            )
        if twice and part.training and isinstance(part, _DropoutNd) and part.p > 0:
            raise BitwrightError(
                f"layer {name!r} drops other values in each of the two passes that 'difference' "
                "compares; call .eval() on it, or use another product"
            )


def _what(value: Any) -> str:
    return f"a tensor {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
