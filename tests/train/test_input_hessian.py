"""The input Hessian's norms against dense eigenvalues, closed forms and finite differences."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

import bitwright
from bitwright import train
from bitwright.train import input_hessian
from bitwright.train.input_hessian import Difference
from mutants import mutated
from small import Fn, one_thread  # noqa: F401
from train.hessian_cases import piecewise, rows, smooth

PRODUCTS = "train.input_hessian.products"
NORM = "train.input_hessian.operator_norm"


#: loss, what it makes of the classes, and factor of the mean over rows
LOSSES: dict[str, tuple[Any, Callable[[Tensor], Any]]] = {
    "cross-entropy": (nn.CrossEntropyLoss(), lambda y: y),
    "weighted, smoothed": (
        nn.CrossEntropyLoss(
            weight=torch.tensor([1.0, 2.0, 0.5, 3.0], dtype=torch.double), label_smoothing=0.1
        ),
        lambda y: y,
    ),
    "sum": (nn.CrossEntropyLoss(reduction="sum"), lambda y: y),
    "each": (nn.CrossEntropyLoss(reduction="none"), lambda y: y),
    "mse": (nn.MSELoss(), lambda y: F.one_hot(y, 4).double()),
    "bce": (nn.BCEWithLogitsLoss(), lambda y: F.one_hot(y, 4).double()),
}


def dense(model: nn.Module, loss: Any, x: Tensor, y: Any) -> Tensor:
    """∂²f_i/∂x_i² of each row [n, d, d], f_i the row's share of n times the batch's mean loss."""
    n = len(x)
    factor = 1.0 if getattr(loss, "reduction", "mean") in ("sum", "none") else float(n)

    def hessian(i: int) -> Tensor:
        def f(row: Tensor) -> Tensor:
            batch = torch.cat([x[:i], row[None], x[i + 1 :]])
            value = loss(model(batch), y)
            assert isinstance(value, Tensor)
            return value.sum() * factor

        found = torch.autograd.functional.hessian(f, x[i])
        assert isinstance(found, Tensor)
        return found.reshape(x[i].numel(), -1)

    return torch.stack([hessian(i) for i in range(n)])


def error(model: nn.Module, name: str, product: Any) -> float:
    """Largest relative error of the norms against dense eigenvalues."""
    loss, targets = LOSSES[name]
    x, y = rows()
    y = targets(y)
    wanted = torch.linalg.eigvalsh(dense(model, loss, x, y)).abs().amax(1)
    found = bitwright.hessian_norm(model, loss, x, y, iterations=150, product=product)
    return float(((found - wanted) / wanted).detach().abs().max())


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("product", ["hessian", "gauss-newton"])
def test_norms_are_the_dense_eigenvalues(name: str, product: str):
    assert error(piecewise(), name, product) <= 1e-4


@pytest.mark.parametrize("name", LOSSES)
def test_norms_of_smooth_networks_are_the_dense_eigenvalues(name: str):
    assert error(smooth(), name, "hessian") <= 1e-4
    assert error(smooth(), name, Difference(1e-6)) <= 1e-4


def test_wrong_products_are_seen():
    assert error(smooth(), "cross-entropy", "gauss-newton") > 1e-2  # z is curved too
    assert error(smooth(), "cross-entropy", Difference(0.3)) > 1e-3
    with mutated(PRODUCTS, "/ math.sqrt(divisor)", ""):
        assert error(piecewise(), "mse", fresh("gauss-newton")) > 1e-2
    with mutated(NORM, ".square().sum(1)", ".square().sum(1).sqrt()"):
        assert error(piecewise(), "cross-entropy", "gauss-newton") > 1e-2
    with mutated("train.input_hessian.samples", "else value * len(outputs)", "else value"):
        assert error(smooth(), "cross-entropy", "hessian") > 1e-2


def test_functions_are_losses_as_well():
    x, y = rows()
    a = bitwright.hessian_norm(smooth(), nn.CrossEntropyLoss(), x, y)
    assert torch.allclose(a, bitwright.hessian_norm(smooth(), F.cross_entropy, x, y))


def test_kl_to_the_model_itself_is_the_cross_entropy_without_labels():
    x, y = rows()
    with_labels = bitwright.hessian_norm(
        piecewise(), nn.CrossEntropyLoss(), x, y, product="gauss-newton"
    )
    assert torch.allclose(
        bitwright.hessian_norm(piecewise(), "kl", x, product="gauss-newton"), with_labels
    )


def tiny(middle: nn.Module) -> nn.Sequential:
    torch.manual_seed(4)
    return nn.Sequential(nn.Linear(3, 4), middle, nn.Linear(4, 3)).double()


def by_weights(model: nn.Sequential, product: Any) -> tuple[Callable[..., Tensor], list[Tensor]]:
    """Norms as a function of the model's weights."""
    names = [name for name, _ in model.named_parameters()]
    weights = [p.detach().clone().requires_grad_() for p in model.parameters()]
    x = torch.randn(2, 3, dtype=torch.double, generator=torch.Generator().manual_seed(5))
    y, loss = torch.tensor([0, 2]), nn.CrossEntropyLoss()
    iterations = 30 if isinstance(model[1], nn.ReLU) else 150

    def norms(*values: Tensor) -> Tensor:
        given = dict(zip(names, values, strict=True))
        net = Fn(lambda me, a: functional_call(me.net, given, (a,)), net=model)
        return bitwright.hessian_norm(net, loss, x, y, iterations=iterations, product=product)

    return norms, weights


GRADIENTS = {"gauss-newton": nn.ReLU(), "hessian": nn.Tanh(), "difference": nn.Tanh()}


def gradients_hold(product: str) -> bool:
    norms, weights = by_weights(tiny(GRADIENTS[product]), fresh(product))
    # differences are symmetric, and so stationary at the maximum, only as far as their step is 0
    rtol = 1e-2 if product == "difference" else 1e-5
    return torch.autograd.gradcheck(
        norms, weights, rtol=rtol, atol=1e-7, fast_mode=True, raise_exception=False
    )


@pytest.mark.parametrize("product", GRADIENTS)
def test_gradients_in_the_weights_are_those_of_differences(product: str):
    assert gradients_hold(product)


@pytest.mark.parametrize(
    ("product", "old", "new"),
    [
        ("gauss-newton", "block.random(v) / ",
         "(block.random(v) + (lambda s: s.detach() - s)(block.random(v.detach()))) / "),
        ("hessian", "product.flatten(1)\n\n        return Operator(image, torch.empty_like(slope)",
         "0.5 * product.flatten(1) + 0.5 * product.flatten(1).detach()\n\n"
         "        return Operator(image, torch.empty_like(slope)"),
        ("difference", "here if graph else here.detach()", "here.detach()"),
    ],
)  # fmt: skip
def test_a_gradient_that_lacks_a_part_is_seen(product: str, old: str, new: str):
    with mutated(PRODUCTS, old, new):
        assert not gradients_hold(product)


def fresh(product: str) -> Any:
    """Of the class that stands in the package now."""
    if product == "difference":
        return input_hessian.Difference(1e-4)
    return input_hessian.Exact() if product == "hessian" else input_hessian.GaussNewton()


def linear() -> tuple[nn.Linear, Tensor, Tensor, Tensor]:
    """Two classes: the model, rows, labels, and p (1 − p) of each row with gradients."""
    torch.manual_seed(3)
    model = nn.Linear(5, 2).double()
    x, y = torch.randn(7, 5, dtype=torch.double), torch.tensor([0, 1, 0, 1, 1, 0, 1])
    p = model(x).softmax(1)
    return model, x, y, p[:, 0] * p[:, 1]


@pytest.mark.parametrize("product", ["hessian", "gauss-newton", Difference(1e-5)])
def test_two_linear_classes_in_closed_form(product: Any):
    model, x, y, spread = linear()
    slope = model.weight[1] - model.weight[0]
    wanted = spread * slope.square().sum()  # p (1 − p) ‖w₁ − w₀‖², its gradient by autograd
    found = bitwright.hessian_norm(
        model, nn.CrossEntropyLoss(), x, y, iterations=1, product=product
    )
    assert torch.allclose(found, wanted, rtol=1e-4)
    for a, b in zip(
        torch.autograd.grad(found.sum(), list(model.parameters())),
        torch.autograd.grad(wanted.sum(), list(model.parameters())),
        strict=True,
    ):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-8)


def test_gradient_norm_of_two_linear_classes_in_closed_form():
    model, x, y, _ = linear()
    wrong = 1 - model(x).softmax(1).gather(1, y[:, None])[:, 0]
    wanted = wrong * (model.weight[1] - model.weight[0]).norm()
    found = train.gradient_norm(model, nn.CrossEntropyLoss(), x, y)
    assert torch.allclose(found, wanted)
    assert torch.allclose(
        torch.autograd.grad(found.sum(), model.weight)[0],
        torch.autograd.grad(wanted.sum(), model.weight)[0],
    )
    with torch.no_grad():
        assert not train.gradient_norm(model, nn.CrossEntropyLoss(), x, y).requires_grad


@pytest.mark.parametrize("wrong", [1.0, 1.1])
def test_frobenius_is_unbiased(wrong: float):
    model, (x, y) = smooth(), rows()
    loss, generator = nn.CrossEntropyLoss(), torch.Generator().manual_seed(0)
    each = torch.stack([
        train.frobenius_squared(model, loss, x, y, generator=generator).detach()
        for _ in range(400)
    ])  # fmt: skip
    wanted = dense(model, loss, x, y).square().sum((1, 2)) * wrong
    stderr = each.mean(1).std() / math.sqrt(len(each))
    right = bool((each.mean() - wanted.mean()).abs() <= 4 * stderr)
    assert right == (wrong == 1.0)
    several = train.frobenius_squared(
        model, loss, x, y, generator=torch.Generator().manual_seed(0), probes=400
    )
    assert torch.allclose(several, each.mean(0)) and several.requires_grad
