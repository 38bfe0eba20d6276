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
from bitwright.errors import BitwrightError
from bitwright.train import Directions, input_hessian
from bitwright.train.input_hessian import Difference
from mutants import mutated
from small import Fn, one_thread  # noqa: F401

PRODUCTS = "train.input_hessian.products"
NORM = "train.input_hessian.operator_norm"


def piecewise() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.LeakyReLU(0.1), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 8),
        nn.ReLU(), nn.Linear(8, 4),
    ).double()  # fmt: skip


def smooth() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, stride=2), nn.Tanh(), nn.Flatten(), nn.Linear(12, 6), nn.Softplus(),
        nn.Linear(6, 4),
    ).double()  # fmt: skip


def rows(n: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(n, 1, 6, 6, dtype=torch.double, generator=generator)
    return x, torch.randint(4, (n,), generator=generator)


def one_hot(outputs: Tensor, y: Tensor) -> Tensor:
    return F.one_hot(y, 4).to(outputs)


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
    return float(((found - wanted) / wanted).abs().max())


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
    with mutated(NORM, "** operator.power", ""):
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


# ------------------------------------------------------------------ warm starts


def visits(product: str, times: int) -> tuple[Tensor, Tensor]:
    """Norms at the last of several visits without iterations, and after many iterations."""
    model = smooth() if product == "difference" else piecewise()
    loss, (x, y) = nn.CrossEntropyLoss(), rows()
    kept, index = Directions(20, seed=1), torch.tensor([3, 19, 0, 7, 8, 11])
    found = torch.zeros(())
    for _ in range(times):
        found = bitwright.hessian_norm(
            model, loss, x, y, iterations=0, product=product, start=kept[index]
        )
        found.mean().backward()
    wanted = bitwright.hessian_norm(model, loss, x, y, iterations=150, product=product)
    return found.detach(), wanted.detach()


@pytest.mark.parametrize("product", ["hessian", "gauss-newton", "difference"])
def test_the_backward_pass_is_a_step_of_power_iteration(product: str):
    first, wanted = visits(product, 1)
    assert (first < 0.9 * wanted).any()
    last, _ = visits(product, 80)
    assert torch.allclose(last, wanted, rtol=2e-2)
    with mutated(NORM, "register_hook(start.keep)", "clone()"):
        last, _ = visits(product, 80)
        assert torch.allclose(last, first)  # nothing was learned


def test_one_backward_pass_is_one_step():
    model, loss, (x, y) = piecewise(), nn.CrossEntropyLoss(), rows()
    index = torch.arange(6)
    a, b = Directions(6), Directions(6)
    first = bitwright.hessian_norm(
        model, loss, x, y, iterations=0, product="gauss-newton", start=a[index]
    )
    (
        first * torch.arange(6)
    ).sum().backward()  # the weight of a row does not matter, unless it is 0
    with torch.no_grad():
        bitwright.hessian_norm(
            model, loss, x, y, iterations=1, product="gauss-newton", start=b[index]
        )
    assert a.vectors is not None and b.vectors is not None
    assert torch.allclose(a.vectors[1:], b.vectors[1:], atol=1e-5)
    assert not torch.allclose(a.vectors[0], b.vectors[0], atol=1e-2)


def test_a_row_is_what_it_is_alone():
    model, loss, (x, y) = smooth(), nn.CrossEntropyLoss(), rows()
    together = bitwright.hessian_norm(model, loss, x, y, iterations=300)
    alone = [
        bitwright.hessian_norm(model, loss, x[i : i + 1], y[i : i + 1], iterations=300)
        for i in range(6)
    ]
    assert torch.allclose(together, torch.cat(alone), rtol=1e-6)


# ------------------------------------------------------------------ manners


@pytest.mark.parametrize("product", ["hessian", "gauss-newton", "difference"])
def test_the_model_is_left_alone(product: str):
    model, (x, y) = piecewise(), rows()
    with torch.no_grad():
        found = bitwright.hessian_norm(model, nn.CrossEntropyLoss(), x, y, product=product)
    assert not found.requires_grad and not x.requires_grad
    assert all(p.grad is None for p in model.parameters())
    value, norms = train.loss_and_hessian_norm(model, nn.CrossEntropyLoss(), x, y, product=product)
    assert torch.allclose(norms, found)
    assert torch.equal(value, nn.CrossEntropyLoss()(model(x), y))


@pytest.mark.parametrize("product", ["hessian", "gauss-newton"])
def test_rows_that_are_very_sure_have_finite_gradients(product: str):
    model = nn.Linear(3, 4)
    nn.init.constant_(model.weight, 0.0)
    with torch.no_grad():
        model.bias.copy_(torch.tensor([400.0, 0.0, -400.0, 5.0]))
    kept = Directions(2)
    found = bitwright.hessian_norm(
        model, nn.CrossEntropyLoss(), torch.ones(2, 3), torch.zeros(2, dtype=torch.long),
        product=product, start=kept[torch.arange(2)],
    )  # fmt: skip
    found.sum().backward()
    assert found.tolist() == [0.0, 0.0]
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters())  # type: ignore[union-attr]
    assert kept.vectors is not None and bool(kept.vectors.isfinite().all())


def test_a_loss_that_is_linear_in_the_input_has_no_curvature():
    x, y = torch.randn(3, 5), torch.randn(3, 2)
    found = bitwright.hessian_norm(nn.Linear(5, 2), lambda z, t: (z * t).sum(1).mean(), x, y)
    assert found.tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"product": "newton"}, "'newton' is unknown; use one of hessian"),
        ({"iterations": -1}, "iterations must be 0 or more, not -1"),
        ({"loss": "hinge"}, "loss 'hinge' is unknown"),
        ({"loss": "kl"}, "use the product 'gauss-newton'"),
        ({"loss": F.cross_entropy, "product": "gauss-newton"}, "no positive semi-definite"),
        ({"loss": lambda z, y: z.sum(0)}, r"a tensor \[4\] for 6 rows"),
        ({"model": nn.Flatten(0)}, r"gives a tensor \[216\] for 6 rows"),
        ({"model": nn.Sequential(nn.BatchNorm2d(1), piecewise())}, "'0' normalizes by the batch's"),
        (
            {"model": nn.Sequential(nn.Dropout(), piecewise()), "product": "difference"},
            "'0' drops other values",
        ),
        ({"start": Directions(9)[torch.arange(5)]}, r"start has the shape \[5\] for 6 rows"),
    ],
)
def test_what_is_refused(change: dict[str, Any], says: str):
    x, y = rows()
    given = {"model": piecewise(), "loss": nn.CrossEntropyLoss(), "x": x, "y": y} | change
    with pytest.raises(BitwrightError, match=says):
        bitwright.hessian_norm(**given)


def test_directions_are_of_one_product():
    x, y = rows()
    kept = Directions(6)[torch.arange(6)]
    bitwright.hessian_norm(piecewise(), nn.CrossEntropyLoss(), x, y, start=kept)
    with pytest.raises(BitwrightError, match="hold 36 numbers a row and the product wants 4"):
        bitwright.hessian_norm(
            piecewise(), nn.CrossEntropyLoss(), x, y, product="gauss-newton", start=kept
        )
    with pytest.raises(BitwrightError, match="probes must be 1 or more"):
        train.frobenius_squared(
            piecewise(), nn.CrossEntropyLoss(), x, y, generator=torch.Generator(), probes=0
        )
