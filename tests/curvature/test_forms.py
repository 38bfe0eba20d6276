"""Quadratic forms and squared gradients of channels against dense float64 matrices."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev

from bitwright import curvature
from bitwright.curvature import fisher, forms
from bitwright.network import Layer, Network, build
from mutants import mutated
from small import Fn


def twice(m: Fn, x: Tensor) -> Tensor:
    y = torch.relu(m.block(torch.relu(m.stem(x))))
    return m.head(torch.relu(m.block(y)).mean((2, 3)))


def made(rows: int = 7) -> tuple[Network, Tensor]:
    """Grouped and strided convolutions, one used twice, and a head; float64."""
    torch.manual_seed(0)
    model = Fn(
        twice,
        stem=nn.Conv2d(2, 4, 3, stride=2, padding=1),
        block=nn.Conv2d(4, 4, 3, padding=1, groups=2),
        head=nn.Linear(4, 3),
    ).double()
    x = torch.randn(rows, 2, 6, 6, dtype=torch.float64)
    with torch.no_grad():
        model.head.weight *= 6
        for part in (model.stem, model.block):
            part.bias += 0.5  # no dead units
    return build(model.eval(), x), x


def jacobian(network: Network, layer: Layer, x: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs [n, K] and their Jacobian in weights and bias, [n, K, rows, fan_in + 1]."""

    def f(weight: Tensor, bias: Tensor) -> Tensor:
        return functional_call(network.module, {layer.weight: weight, layer.bias: bias}, (x,))

    weight, bias = network.tensor(layer.weight), network.tensor(layer.bias)
    by_weight, by_bias = jacrev(f, (0, 1))(weight, bias)
    found = f(weight, bias)
    return found, torch.cat(
        [by_weight.reshape(*found.shape, layer.rows, layer.fan_in), by_bias[..., None]], -1
    )


def dense(network: Network, x: Tensor, changes: dict[str, Tensor], kind: str) -> dict[str, Tensor]:
    """`dᵀ G_c d` from the dense Jacobian."""
    result = {}
    for layer in network.layers:
        found, j = jacobian(network, layer, x)
        p = found.softmax(1)
        hessian = torch.diag_embed(p) - p[:, :, None] * p[:, None] if kind == "kl" else None
        moved = torch.einsum("nacf,ckf->nack", j, changes[layer.name])
        bent = moved if hessian is None else torch.einsum("nab,nbck->nack", hessian, moved)
        result[layer.name] = (moved * bent).sum(1).mean(0)
    return result


def wrong(kind: str = "kl", tolerance: float = 0.0, seed: int = 0, rows: int = 7) -> list[str]:
    """Layers whose forms are not the dense ones, up to four standard errors."""
    network, x = made(rows)
    generator = torch.Generator().manual_seed(1)
    changes = {
        la.name: torch.randn(la.rows, 3, la.fan_in + 1, generator=generator, dtype=torch.float64)
        for la in network.layers
    }
    found = forms.quadratic_forms(
        network, x, changes, kind=kind, tolerance=tolerance, chunk=3, seed=seed
    )
    truth = dense(network, x, changes, kind)
    assert {la.name for la in network.layers} == found.keys() == {"stem", "block", "head"}
    assert all(bool((t > 1e-5).all()) for t in truth.values())
    allowed = {n: 4 * e.stderr_probe + 1e-9 * e.value for n, e in found.items()}
    assert tolerance or not any(e.stderr_probe.any() for e in found.values())
    return [n for n, t in truth.items() if (np.abs(found[n].value - t.numpy()) > allowed[n]).any()]


@pytest.mark.parametrize("kind", ["kl", "squared"])
def test_forms_are_those_of_the_dense_gauss_newton_block(kind: str):
    assert wrong(kind) == []


@pytest.mark.parametrize("seed", range(3))
def test_few_directions_are_within_their_errors(seed: int):
    assert wrong(tolerance=0.2, seed=seed, rows=40) == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (".square_()", ".square_().mul_(1.01)"),
        ("each += g[some]", "each -= g[some]"),
        ("own += _inner(changes", "own[:] = _inner(changes"),
    ],
)
def test_a_wrong_form_is_seen(old: str, new: str):
    with mutated("curvature.forms", old, new):
        assert wrong()


def test_layers_not_asked_for_are_left_out():
    network, x = made()
    found = forms.quadratic_forms(network, x, {"head": torch.zeros(3, 2, 5)}, tolerance=0)
    assert list(found) == ["head"] and not found["head"].value.any()


def test_the_data_error_is_that_of_the_mean_over_samples():
    network, x = made(40)
    change = {"head": torch.randn(3, 1, 5, dtype=torch.float64)}
    found = forms.quadratic_forms(network, x, change, tolerance=0)["head"]
    each = [
        forms.quadratic_forms(network, x[i : i + 1], change, tolerance=0)["head"].value
        for i in range(40)
    ]
    assert np.allclose(found.value, np.mean(each, 0))
    assert np.allclose(found.stderr_data, np.std(each, 0, ddof=1) / 40**0.5)


# ------------------------------------------------------------------------- empirical Fisher


@pytest.mark.parametrize("kind", ["kl", "squared"])
def test_the_empirical_fisher_is_the_mean_of_squared_gradients(kind: str):
    network, x = made()
    labels = torch.arange(7) % 3 if kind == "kl" else torch.randn(7, 3).double()
    found = fisher.empirical_fisher(network, x, labels, kind=kind, chunk=3)
    loss = nn.CrossEntropyLoss() if kind == "kl" else lambda y, t: 0.5 * (y - t).square().sum()
    for layer in network.layers:
        weight = network.tensor(layer.weight).clone().requires_grad_()
        squares = []
        for i in range(7):
            y = functional_call(network.module, {layer.weight: weight}, (x[i : i + 1],))
            (g,) = torch.autograd.grad(loss(y, labels[i : i + 1]), weight)
            squares.append(g.reshape(layer.rows, -1).square().sum(1))
        truth = torch.stack(squares)
        estimate = found.layers[layer.name]
        assert np.allclose(estimate.value, truth.mean(0))
        assert np.allclose(estimate.stderr_data, truth.std(0) / 7**0.5)
        assert not estimate.stderr_probe.any() and estimate.samples == 7


def test_labels_from_the_model_itself_give_the_gauss_newton_trace():
    """`E_y[g gᵀ] = Λ` over the model's own labels: every label, weighted by its probability."""
    network, x = made()
    with torch.no_grad():
        p = network.module(x).softmax(1)
    total = {la.name: np.zeros(la.rows) for la in network.layers}
    for i in range(7):
        for c in range(3):
            one = fisher.empirical_fisher(network, x[i : i + 1], torch.tensor([c]))
            for name, t in total.items():
                t += float(p[i, c]) * one.layers[name].value / 7
    truth = curvature.gauss_newton(network, x, tolerance=0, edges=False)
    for name, t in total.items():
        assert np.allclose(t, truth.layers[name].value)
