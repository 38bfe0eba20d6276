"""Fine-tuning one layer after another: the order, the stages, and what is float meanwhile."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bitwright import train
from bitwright.network import build, run
from bitwright.quantize import Quantized, correct, float_outputs, round_weights, weight_tables
from bitwright.train import Recipe
from mutants import mutated
from small import one_thread  # noqa: F401

#: the function of the same name hides it
finetuning = importlib.import_module("bitwright.train.finetune")
training = importlib.import_module("bitwright.train.trainable")

BITS = (4, 2, 3, 2)


def made(rows: int = 160, seed: int = 0) -> tuple[Quantized, Tensor]:
    """Four layers whose curvature, size and width put them in an order of neither alone."""
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 6, 3, stride=2, padding=1),
        nn.ReLU(), nn.Flatten(), nn.Linear(54, 5), nn.Tanh(), nn.Linear(5, 3),
    ).eval()  # fmt: skip
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) / max(p[0].numel(), 4) ** 0.5)
        model[0].weight *= 0.5
        model[-1].weight *= 4
    x = torch.randn(rows, 1, 6, 6, generator=generator)
    network = build(model, x)
    widths = {la.name: np.full(la.rows, b) for la, b in zip(network.layers, BITS, strict=True)}
    layers = round_weights(network, weight_tables(network), widths)
    return correct(network, layers, {}, x, float_outputs(network, x)), x


def omegas(quantized: Quantized, x: Tensor) -> dict[str, tuple[float, float]]:
    """λ from the dense Hessian of the KL, float64, and ‖Q(W) − W‖², layer by layer."""
    network = quantized.network
    own = {n: p.double() for n, p in network.module.named_parameters()}
    x = x.double()
    reference = run(network.module, x, constants=own).log_softmax(1)
    found = {}
    for layer in network.layers:

        def kl(w: Tensor, name: str = layer.weight) -> Tensor:
            y = run(network.module, x, constants={**own, name: w}).log_softmax(1)
            return (reference.exp() * (reference - y)).sum() / len(x)

        weight = own[layer.weight]
        size = weight.numel()
        dense = torch.autograd.functional.hessian(kl, weight).reshape(size, size)
        top = float(torch.linalg.eigvalsh(dense)[-1])
        change = quantized.layers[layer.name].matrix().double() - weight.reshape(layer.rows, -1)
        found[layer.name] = top, float(change.square().sum())
    return found


def order_is_by_falling_omega() -> None:
    for seed in range(3):
        quantized, x = made(seed=seed)
        known = omegas(quantized, x[:128])
        order = train.hawq_order(quantized, x)
        assert sorted(order) == sorted(known)
        values = [float(np.prod(known[name])) for name in order]
        # λ is known to a hundredth
        assert all(b <= 1.03 * a for a, b in pairwise(values)), known
        assert values[0] > 2 * values[-1]


def test_the_order_is_by_falling_omega():
    order_is_by_falling_omega()


@pytest.mark.parametrize(
    ("module", "old", "new"),
    [
        ("allocate.hawq", "argsort(-omega", "argsort(omega"),
        ("train.order", "np.array([values[n] for n in names])", "np.ones(len(names))"),
        ("train.order", "np.array(errors)", "np.ones(len(names))"),
    ],
)
def test_another_order_is_seen(module: str, old: str, new: str):
    with pytest.raises(AssertionError), mutated(module, old, new):
        order_is_by_falling_omega()


@pytest.mark.parametrize("layers", [1, 2, 7, 53])
@pytest.mark.parametrize("steps", [0, 1, 9, 26, 60, 1000])
def test_stages_are_even_and_hold_every_layer(layers: int, steps: int):
    names = [f"layer{i}" for i in range(layers)]
    found = train.stages(names, steps)
    assert [n for entered in found.values() for n in entered] == names
    assert min(found) == 0 and all(found.values())
    lengths = np.diff([*found, steps])
    assert len(found) == 1 or min(lengths) >= train.order.STAGE_STEPS
    assert max(lengths) - min(lengths) <= 1
    sizes = [len(entered) for entered in found.values()]
    assert max(sizes) - min(sizes) <= 1
    if steps >= layers * train.order.STAGE_STEPS:
        assert sizes == [1] * layers


@pytest.fixture
def spied(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, list[Any]]]:
    """What every training step ran with and answered, and every candidate that was judged."""
    seen: dict[str, list[Any]] = {"steps": [], "judged": []}
    real_run, real_simulate = training.run, finetuning.simulate

    def spy(module: Any, x: Tensor, *rest: Any, constants: Any, **more: Any) -> Any:
        answer = real_run(module, x, *rest, constants=constants, **more)
        given = {n: v.detach().clone() for n, v in constants.items()}
        seen["steps"].append((x, given, answer.detach().clone()))
        return answer

    def judged(candidate: Quantized, x: Tensor) -> Tensor:
        seen["judged"].append(candidate)
        return real_simulate(candidate, x)

    monkeypatch.setattr(training, "run", spy)
    monkeypatch.setattr(finetuning, "simulate", judged)
    yield seen


def test_layers_to_come_are_float(spied: dict[str, list[Any]]):
    """4 epochs of 8 steps for 4 layers: a layer an epoch."""
    quantized, x = made()
    network = quantized.network
    before = {n: p.clone() for n, p in network.module.named_parameters()}
    order = ["5", "0", "7", "2"]
    train.finetune(quantized, x, Recipe(4, batch=17), order=order)
    layers = {la.name: la for la in network.layers}
    assert len(spied["steps"]) == 4 * 8
    for number, (rows, given, answer) in enumerate(spied["steps"]):
        reached = [layers[name] for name in order[: number // 8 + 1]]
        assert set(given) == {n for la in reached for n in (la.weight, la.bias)}
        for la in reached:  # on its grid
            row = given[la.weight].reshape(la.rows, -1)[0]
            assert len(row.unique()) <= 2 ** BITS[network.layers.index(la)]
        again = run(network.module, rows, constants={**before, **given})
        assert torch.equal(answer, again)
    assert all(torch.equal(p, before[n]) for n, p in network.module.named_parameters())
    first = spied["steps"][0][1]
    stored = quantized.layers["5"]
    assert torch.allclose(first[layers["5"].weight], stored.matrix(), rtol=1e-5)
    for number, candidate in enumerate(spied["judged"]):
        for place, name in enumerate(order):
            same = torch.equal(candidate.layers[name].bias, quantized.layers[name].bias)
            assert same == (place >= number), (number, name)


def test_one_stage_is_all_at_once():
    quantized, x = made()
    names = [la.name for la in quantized.network.layers]
    once, history = train.finetune(quantized, x, Recipe(3, rate=3e-3))
    short, same = train.finetune(quantized, x, Recipe(3, rate=3e-3), order=names[::-1])
    assert train.stages(names, 3 * 2) == {0: names} and same == history
    for name in names:
        assert torch.equal(once.layers[name].codes, short.layers[name].codes)


def test_the_same_seed_gives_the_same_numbers():
    quantized, x = made()
    order = train.hawq_order(quantized, x)
    assert order == train.hawq_order(quantized, x)
    recipe = Recipe(6, batch=17, rate=3e-3)
    one, history = train.finetune(quantized, x, recipe, order=order)
    two, again = train.finetune(quantized, x, recipe, order=order)
    other, _ = train.finetune(quantized, x, replace(recipe, seed=1), order=order)
    assert history == again and min(history) < 0.8 * history[0]
    for name, layer in one.layers.items():
        assert torch.equal(layer.codes, two.layers[name].codes)
        assert torch.equal(layer.grid.scale, two.layers[name].grid.scale)
        assert torch.equal(layer.bias, two.layers[name].bias)
    assert any(not torch.equal(la.bias, other.layers[n].bias) for n, la in one.layers.items())
