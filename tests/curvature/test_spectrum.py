"""Hessian products, Lanczos and densities against dense float64 matrices."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

import bitwright
from bitwright.curvature.hessian import Hessian
from bitwright.curvature.spectrum import (
    block,
    density,
    lanczos,
    top_eigenvalues,
    whole,
)
from bitwright.errors import BitwrightError
from small import Fn


def hinge(outputs: Tensor, targets: Tensor) -> Tensor:
    """A loss of somebody's own, smooth and not convex in the weights."""
    return torch.tanh(outputs.gather(1, targets[:, None])).mean()


WEIGHTED = nn.CrossEntropyLoss(torch.tensor([1.0, 4.0, 0.2]).double(), ignore_index=1)
LOSSES: dict[str, Any] = {
    "kl": "kl", "squared": "squared", "cross-entropy": nn.CrossEntropyLoss(),
    "weighted": WEIGHTED, "own": hinge,
}  # fmt: skip


def made() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    model = Fn(
        lambda m, x: m.head(torch.tanh(m.a(x, x, x, need_weights=False)[0]).mean(1)),
        a=nn.MultiheadAttention(4, 2, batch_first=True), head=nn.Linear(4, 3),
    )  # fmt: skip
    return model.double().eval(), torch.randn(6, 3, 4).double(), torch.tensor([0, 1, 2, 2, 1, 0])


def dense(model: nn.Module, x: Tensor, y: Tensor, loss: Any, names: list[str]) -> Tensor:
    """The whole Hessian in the named weights, side by side."""
    state = dict(model.named_parameters())
    shapes = [state[n].shape for n in names]
    reference = model(x).detach()

    def f(flat: Tensor) -> Tensor:
        parts = flat.split([s.numel() for s in shapes])
        changed = {n: p.reshape(s) for n, p, s in zip(names, parts, shapes, strict=True)}
        out = functional_call(model, changed, (x,))
        if loss == "kl":
            p = reference.softmax(1)
            return (p * (reference.log_softmax(1) - out.log_softmax(1))).sum() / len(x)
        if loss == "squared":
            return 0.5 * (out - reference).square().sum() / len(x)
        return loss(out, y)

    flat = torch.cat([state[n].detach().flatten() for n in names])
    with sdpa_kernel(SDPBackend.MATH):
        return torch.autograd.functional.hessian(f, flat)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("chunk", [2, 100])
def test_products(name: str, chunk: int):
    """Chunks of unequal weight, ignored targets, fused attention: one dense Hessian."""
    model, x, y = made()
    hessian = Hessian(model, (x, y), LOSSES[name], chunk=chunk)
    assert list(hessian.weights) == ["a.in_proj_weight", "a.out_proj.weight", "head.weight"]
    true = dense(model, x, y, LOSSES[name], list(hessian.weights))
    product, size = whole(hessian)
    assert size == len(true)
    generator = torch.Generator().manual_seed(1)
    v = torch.randn(size, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(product(v), true @ v, rtol=1e-9, atol=1e-12)
    start = 48
    part = true[start : start + 16, start : start + 16]
    torch.testing.assert_close(
        block(hessian, "a.out_proj.weight")(v[:16]), part @ v[:16], rtol=1e-9, atol=1e-12
    )
    both = hessian.products([{"head.weight": v[:12].reshape(3, 4)}, {}])
    assert not any(t.any() for t in both[1].values())
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("name", [n for n in LOSSES if n != "own"])
@pytest.mark.parametrize("chunk", [2, 100])
def test_products_of_the_gauss_newton_matrix(name: str, chunk: int):
    """`Jᵀ Λ J` with the dense Jacobian and the dense Hessian of the loss in the outputs."""
    model, x, y = made()
    loss = LOSSES[name]
    hessian = Hessian(model, (x, y), loss, kind="gauss-newton", chunk=chunk)
    state = dict(model.named_parameters())
    at = tuple(state[n].detach() for n in hessian.weights)
    with sdpa_kernel(SDPBackend.MATH):
        jacobian = torch.autograd.functional.jacobian(
            lambda *w: functional_call(model, dict(zip(hessian.weights, w, strict=True)), (x,)), at
        )
    j = torch.cat([part.flatten(2) for part in jacobian], 2).flatten(0, 1)
    reference = model(x).detach()

    def value(outputs: Tensor) -> Tensor:
        if name == "kl":
            p = reference.softmax(1)
            return -(p * outputs.log_softmax(1)).sum() / len(x)
        return 0.5 * (outputs - reference).square().sum() / len(x) if loss == "squared" else loss(
            outputs, y
        )  # fmt: skip

    inner = torch.autograd.functional.hessian(value, reference).reshape(18, 18)
    true = j.mT @ inner @ j
    product, size = whole(hessian)
    v = torch.randn(size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.testing.assert_close(product(v), true @ v, rtol=1e-9, atol=1e-12)


def test_no_gauss_newton_matrix_of_a_loss_without_one():
    model, x, y = made()
    with pytest.raises(BitwrightError, match="'hinge' has no positive semi-definite"):
        Hessian(model, (x, y), hinge, kind="gauss-newton")
    with pytest.raises(ValueError, match="kind 'fisher' is unknown"):
        Hessian(model, (x, y), kind="fisher")


def test_channels_of_products():
    model = nn.ConvTranspose1d(4, 6, 2, groups=2).double()
    hessian = Hessian(model, torch.randn(3, 4, 5).double(), "squared")
    z = torch.arange(4 * 3 * 2).reshape(4, 3, 2).double()
    wanted = [z[2 * g : 2 * g + 2, c].sum() for g in range(2) for c in range(3)]
    assert hessian.by_channel("weight", z).tolist() == wanted
    linear = Hessian(nn.Linear(3, 2).double(), torch.randn(3, 3).double(), "squared")
    z = torch.arange(6).reshape(2, 3).double()
    assert linear.by_channel("weight", z).tolist() == [3, 12]


def test_channels_of_a_square_weight_that_multiplies_from_the_right():
    """The shape does not tell which axis counts the outputs; the operation does."""
    torch.manual_seed(0)
    weight = torch.randn(3, 3)
    model = Fn(lambda m, x: torch.addmm(m.b, x, m.w), w=weight, b=torch.zeros(3)).double()
    x = torch.randn(4, 3).double()
    hessian = Hessian(model, (x, torch.tensor([0, 1, 2, 1])), nn.CrossEntropyLoss())
    assert hessian.by_channel("w", torch.arange(9).reshape(3, 3).double()).tolist() == [9, 12, 15]
    assert hessian.mask("w", 1).tolist() == [[0, 1, 0]] * 3
    found = bitwright.curvature.hutchinson(model, x, blocks="channel", probes=200)
    exact = bitwright.traces(model, x, tolerance=0)
    error = np.abs(found.layers["w"].value - exact.layers["w"].value)
    assert (error <= 4.5 * found.layers["w"].stderr_probe).all()


def symmetric(size: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(size, size, generator=generator, dtype=torch.float64)
    values = torch.linspace(-1, 1, size, dtype=torch.float64) ** 3 * 10
    q = torch.linalg.qr(a).Q
    return q @ torch.diag(values) @ q.mT


def test_lanczos_is_eigh_when_it_runs_to_the_end():
    a = symmetric(12)
    start = torch.randn(12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    values, weights = lanczos(lambda v: a @ v, start, 50)
    true, vectors = torch.linalg.eigh(a)
    np.testing.assert_allclose(values, true.numpy(), atol=1e-9)
    shares = (vectors.mT @ start).square() / start.square().sum()
    np.testing.assert_allclose(weights, shares.numpy(), atol=1e-9)


def test_lanczos_stops_where_the_space_ends():
    a = torch.diag(torch.tensor([3.0, 3.0, 1.0, 1.0, 1.0]).double())
    values, weights = lanczos(lambda v: a @ v, torch.ones(5, dtype=torch.float64), 5)
    np.testing.assert_allclose(values, [1, 3], atol=1e-12)
    np.testing.assert_allclose(weights, [0.6, 0.4], atol=1e-12)


def test_top_eigenvalues_of_every_weight():
    model, x, y = made()
    loss = nn.CrossEntropyLoss()
    found = top_eigenvalues(Hessian(model, (x, y), loss), tolerance=1e-6, steps=60)
    names = list(found)
    true = dense(model, x, y, loss, names)
    place = 0
    for name in names:
        size = dict(model.named_parameters())[name].numel()
        part = true[place : place + size, place : place + size]
        place += size
        assert found[name] == pytest.approx(float(torch.linalg.eigvalsh(part)[-1]), rel=1e-5)
    again = top_eigenvalues(Hessian(model, (x, y), loss), tolerance=1e-6, steps=60)
    assert again == found
    calls = []
    hessian = Hessian(model, (x, y), loss)
    products = hessian.products
    hessian.products = lambda *a: calls.append(a) or products(*a)  # type: ignore[method-assign]
    top_eigenvalues(hessian, tolerance=10.0)
    assert len(calls) == 4 * len(names)  # two changes of λ, from the second step on
    short = top_eigenvalues(Hessian(model, (x, y), loss), steps=2)
    assert all(short[n] <= found[n] * (1 + 1e-9) for n in names) and short != found


def test_the_density_has_the_moments_of_the_spectrum():
    a = symmetric(200)
    found = density(lambda v: a @ v, 200, steps=25, starts=30)
    true = torch.linalg.eigvalsh(a).numpy()
    assert found.weights.sum() == pytest.approx(1)
    for power in (1, 2, 4):
        moment = (found.values**power * found.weights).sum()
        spread = 4 * np.sqrt(2 * (true ** (2 * power)).mean() / (200 * 30))
        assert abs(moment - (true**power).mean()) <= spread, power
    assert found.trace == pytest.approx(true.sum(), abs=4 * np.sqrt(2 * (true**2).sum() / 30))
    grid = np.linspace(-12, 12, 2001)
    curve = found.on(grid, 0.3)
    assert (curve * (grid[1] - grid[0])).sum() == pytest.approx(1, abs=1e-3)
    assert grid[np.argmax(curve)] == pytest.approx(0, abs=0.5)  # most eigenvalues are near zero


def test_the_hessian_of_a_relu_networks_squared_loss_is_gauss_newton():
    """Piecewise linear: the products of H agree with the Gauss-Newton traces at the minimum."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    x = torch.randn(5, 3).double()
    hessian = Hessian(model, x, "squared")
    product, size = whole(hessian)
    trace = sum(float(product(e)[i]) for i, e in enumerate(torch.eye(size).double()))

    found = bitwright.traces(model, x, "squared", tolerance=0)
    assert sum(e.value.sum() for e in found.layers.values()) == pytest.approx(trace, rel=1e-9)
