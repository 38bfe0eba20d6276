"""Warm starts of the input Hessian's norm, what it leaves alone and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import bitwright
from bitwright import train
from bitwright.errors import BitwrightError
from bitwright.pipeline import Run, Settings
from bitwright.pipeline.budget import parse_budget
from bitwright.train import Directions
from mutants import mutated
from pipeline import tiny
from small import one_thread  # noqa: F401
from train.hessian_cases import piecewise, rows, smooth

NORM = "train.input_hessian.operator_norm"


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
def test_a_visit_is_a_step_of_power_iteration(product: str):
    first, wanted = visits(product, 1)
    assert (first < 0.9 * wanted).any()
    last, _ = visits(product, 80)
    assert torch.allclose(last, wanted, rtol=2e-2)
    old = "register_hook(start.keep)" if product == "gauss-newton" else "start.keep(image)"
    with mutated(NORM, old, "clone()" if product == "gauss-newton" else "pass"):
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


# ------------------------------------------------------------------ quantized networks


def test_of_a_quantized_network_it_is_that_of_its_dequantized_weights(tmp_path: Path):
    """Activations in float, so that the network is piecewise linear; its latent weights learn."""
    with tiny.quickly():
        x = tiny.rows(80)
        task = bitwright.Task(tiny.network(), x, tiny.labels_of(x), x[:40], tiny.labels_of(x[:40]))
        found = Run(task, Settings(budget=parse_budget("3bit"), activations=None), tmp_path)
        net, folded = train.Trainable(found.quantized), found.quantized.network
    x, y = x[:4], tiny.labels_of(x[:4])
    y = torch.as_tensor(y)
    plain = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 12, 3, stride=2, padding=1),
        nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 4),
    )  # fmt: skip
    with torch.no_grad():
        for k, layer in zip((0, 2, 6), folded.layers, strict=True):
            stored = found.quantized.layers[layer.name]
            plain[k].weight.copy_(stored.matrix().reshape(layer.shape))
            plain[k].bias.copy_(stored.bias)
    loss = nn.CrossEntropyLoss()
    norms = bitwright.hessian_norm(net, loss, x, y, product="gauss-newton", iterations=50)
    wanted = bitwright.hessian_norm(plain, loss, x, y, product="hessian", iterations=50)
    assert torch.allclose(norms, wanted, rtol=1e-3)
    norms.sum().backward()
    latent = [p for n, p in net.named_parameters() if n.endswith("weight")]
    assert len(latent) == 3 and all(p.grad is not None and bool(p.grad.any()) for p in latent)
