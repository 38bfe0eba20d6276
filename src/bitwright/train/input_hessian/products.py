"""Products with the input Hessian of every row of a batch at once, differentiable in the weights.

A batch's rows do not interact, so that the derivative of the sum of their losses f_i holds each
row's own. Each product is an operator A with ‖H‖ = ‖A‖ or ‖A‖²:

- `Exact`: A = H = ∂²f/∂x², by double backward (Pearlmutter, Neural Computation 6, 1994). Holds for
  any loss and any network that can be differentiated twice; a penalty on it differentiates thrice.
- `Difference`: A v = (∇f(x + h v) − ∇f(x)) / h: two gradients, one order less. A step that reaches
  across kinks measures how gradients turn over that distance (CURE, Moosavi-Dezfooli et al., arXiv
  1811.09716, takes it for a fixed direction).
- `GaussNewton`: A = Jᵀ S with J = ∂z/∂x and Λ = S Sᵀ the loss's Hessian in the outputs z. Where z
  is piecewise linear in x, H = JᵀΛJ almost everywhere; for "kl" it is so in every network. Then

      ‖H‖ = max over unit ε of ‖Jᵀ S ε‖²

  and with ε held at the maximum the gradient of that is the whole gradient (Danskin), of no higher
  order than that of an input gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from bitwright.curvature.losses import flatten, form, output_hessian
from bitwright.errors import BitwrightError
from bitwright.train.input_hessian.samples import Loss, Pass, refuse_interaction, through


@dataclass(frozen=True)
class Operator:
    """A of every row.

    Attributes:
        image: (v [n, d], whether its graph is wanted) -> A v [n, m].
        like: [n, d], an empty v.
        power: of ‖A‖ that is the norm of the Hessian: 1 where A is H itself, 2 where H = A Aᵀ.
    """

    image: Callable[[Tensor, bool], Tensor]
    like: Tensor
    power: int

    def turned(self, v: Tensor) -> Tensor:
        """A v for a symmetric A, else Aᵀ A v: the next step of power iteration, without a graph."""
        if self.power == 1:
            return self.image(v, False)
        leaf = v.detach().requires_grad_()
        (found,) = torch.autograd.grad(0.5 * self.image(leaf, True).square().sum(), leaf)
        return found


class Product(Protocol):
    """Makes the operator of a batch that has passed through the model."""

    def operator(self, found: Pass, model: nn.Module, loss: Loss, y: Any) -> Operator:
        """Of each row of the batch."""
        ...


@dataclass(frozen=True)
class Exact:
    """The Hessian itself, by double backward."""

    def operator(self, found: Pass, model: nn.Module, loss: Loss, y: Any) -> Operator:
        """See :class:`Product`."""
        (slope,) = torch.autograd.grad(
            found.loss(), found.x, create_graph=True, materialize_grads=True
        )

        def image(v: Tensor, graph: bool) -> Tensor:
            if not slope.requires_grad:  # a loss that is linear in the input
                return torch.zeros_like(v)
            (product,) = torch.autograd.grad(
                slope, found.x, v.reshape(slope.shape),
                create_graph=graph, retain_graph=True, materialize_grads=True,
            )  # fmt: skip
            return product.flatten(1)

        return Operator(image, torch.empty_like(slope).flatten(1), 1)


@dataclass(frozen=True)
class Difference:
    """Gradients at x and at x + h v, v of length 1.

    Attributes:
        step: h, in units of the input.
    """

    step: float = 1e-2

    def operator(self, found: Pass, model: nn.Module, loss: Loss, y: Any) -> Operator:
        """See :class:`Product`."""
        refuse_interaction(model, twice=True)
        (here,) = torch.autograd.grad(found.loss(), found.x, create_graph=True)

        def image(v: Tensor, graph: bool) -> Tensor:
            moved = through(model, loss, found.x.detach() + self.step * v.reshape(here.shape), y)
            (there,) = torch.autograd.grad(moved.loss(), moved.x, create_graph=graph)
            return ((there - (here if graph else here.detach())) / self.step).flatten(1)

        return Operator(image, torch.empty_like(here).flatten(1), 1)


@dataclass(frozen=True)
class GaussNewton:
    """Jᵀ S of a loss whose Λ is known; see :mod:`bitwright.curvature.losses`.

    Attributes:
        class_axis: of the classes in the outputs, for softmax losses.
    """

    class_axis: int = 1

    def operator(self, found: Pass, model: nn.Module, loss: Loss, y: Any) -> Operator:
        """See :class:`Product`."""
        block, divisor = output_hessian(loss, found.outputs, y, self.class_axis)
        outputs = flatten(found.outputs, form(loss), self.class_axis)

        def image(v: Tensor, graph: bool) -> Tensor:
            seeds = block.random(v) / math.sqrt(divisor)
            (product,) = torch.autograd.grad(
                outputs, found.x, seeds, create_graph=graph, retain_graph=True
            )
            return product.flatten(1)

        return Operator(image, torch.empty_like(outputs), 2)


#: by name
PRODUCTS: dict[str, Product] = {
    "hessian": Exact(),
    "difference": Difference(),
    "gauss-newton": GaussNewton(),
}


def named(product: str | Product) -> Product:
    """A product by its name.

    Raises:
        BitwrightError: an unknown name.
    """
    if not isinstance(product, str):
        return product
    if product not in PRODUCTS:
        raise BitwrightError(f"product {product!r} is unknown; use one of {', '.join(PRODUCTS)}")
    return PRODUCTS[product]
