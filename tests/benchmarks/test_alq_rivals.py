"""Uniform rivals of multi-bit weights: gradients, steps, batches, and the file that is counted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import alq_rivals
import pytest
import torch
from alq_networks import Case, answers, softened
from torch import Tensor

from bitwright import multibit
from bitwright.quantize import simulate
from multibit.nets import rows, small


def case(change: object = None) -> Case:
    x, y = rows(384)
    arrays = {"train_x": x, "train_y": y, "test_x": x[:32], "test_y": y[:32]}
    return Case("small", small(), arrays, change or (lambda x, generator: x))  # type: ignore[arg-type]


def test_gradients_are_those_of_the_rounded_weight_with_codes_held():
    """LSQ's: the step's by differences of ŵ − w inside, where codes and w/s stand still."""
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(3, 40, generator=generator).double().requires_grad_()
    s = torch.tensor([0.5, 0.9, 0.2]).double().requires_grad_()
    middle, top = torch.tensor([1.5, 2.0, 1.0]).double(), 3
    upstream = torch.randn(3, 40, generator=generator).double()
    found = alq_rivals.Rounding.apply(w, s, middle, top, False)
    v = (w / s[:, None] + middle[:, None]).detach()
    brute = torch.tensor([[min(range(4), key=lambda q, a=float(a): abs(q - a)) for a in row]
                          for row in v])  # fmt: skip
    assert torch.equal(found, ((brute - middle[:, None]) * s[:, None]).detach())
    by_w, by_s = torch.autograd.grad(found, (w, s), upstream)
    inside = (v >= 0) & (v <= top)
    assert 0 < int(inside.sum()) < inside.numel(), "both kinds of weights are there"
    assert torch.equal(by_w, upstream * inside)
    by_hand = []
    for r in range(3):
        total = 0.0
        for j in range(40):
            held = v[r, j] if inside[r, j] else middle[r]
            total += float(upstream[r, j] * (brute[r, j] - held))
        by_hand.append(total / (40 * 3) ** 0.5)
    assert by_s.tolist() == pytest.approx(by_hand, rel=1e-12)
    (all_w,) = torch.autograd.grad(alq_rivals.Rounding.apply(w, s, middle, top, True), w, upstream)
    assert torch.equal(all_w, upstream)


def test_the_straight_through_step_of_one_bit_is_the_mean_size():
    weight = torch.randn(5, 30, generator=torch.Generator().manual_seed(1))
    rounded = alq_rivals.Rounded(weight, 1, "straight-through", True)
    found = rounded(weight)
    wanted = weight.sign() * weight.abs().mean(1, keepdim=True)
    assert torch.allclose(found, wanted, rtol=1e-6)
    two = alq_rivals.Rounded(weight, 2, "straight-through", True)
    held = two.step.clone()
    two.eval()(2 * weight)
    assert torch.equal(two.step, held), "judging changes nothing"
    before = (two(weight) - weight).square().sum(1)
    assert ((two(weight) - weight).square().sum(1) <= before + 1e-6).all()


def test_batches_are_those_that_multi_bit_weights_are_trained_with():
    def seen(train: object) -> list[Tensor]:
        batches: list[Tensor] = []

        def change(x: Tensor, generator: torch.Generator) -> Tensor:
            moved = x + torch.randn(x.shape, generator=generator)
            batches.append(moved)
            return moved

        train(case(change))  # type: ignore[operator]
        return batches

    def ours(given: Case) -> None:
        x = given.arrays["train_x"]
        net = multibit.prepare(given.model, x, size=16, most=2)
        recipe = multibit.Recipe(
            bits=2.5, loops=1, bases=0, coordinates=0, straight=0, final=1, seed=5
        )
        multibit.train(net, x, None, recipe, loss=softened, teacher=given.model,
                       augment=given.augment)  # fmt: skip

    def theirs(given: Case) -> None:
        alq_rivals.train(alq_rivals.student(given, 2, "learned"), given, 2, 5)

    first, second = seen(ours), seen(theirs)
    assert len(first) == len(second) == 6
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("method", alq_rivals.METHODS)
@pytest.mark.parametrize("bits", [1, 2])
def test_the_stored_network_answers_as_the_trained_one(method: str, bits: int):
    given = case()
    model = alq_rivals.student(given, bits, method)
    start = {k: v.clone() for k, v in model.state_dict().items()}
    history = alq_rivals.train(model, given, 4, 0)
    assert history[-1] < history[0], "it learns"
    assert any(not torch.equal(v, start[k]) for k, v in model.state_dict().items() if "orig" in k)
    stored = alq_rivals.stored(model, given)
    wanted = answers(model, given.arrays["test_x"])
    found = simulate(stored, given.arrays["test_x"])
    assert float((found - wanted).abs().max() / wanted.abs().max()) < 5e-3, "float16 steps"
    for layer in stored.layers.values():
        assert int(layer.codes.max()) <= 2**bits - 1 and bool((layer.grid.bits == bits).all())


def test_a_stopped_training_goes_on_to_the_same_weights(tmp_path: Path):
    given = case()
    whole = alq_rivals.student(given, 2, "learned")
    wanted = alq_rivals.train(whole, given, 3, 0)
    path = tmp_path / "training.safetensors"
    calls = []

    def stopping(x: Tensor, generator: torch.Generator) -> Tensor:
        calls.append(len(x))
        if len(calls) == 5:
            raise KeyboardInterrupt
        return x

    with pytest.raises(KeyboardInterrupt):
        stopped = alq_rivals.student(given, 2, "learned")
        alq_rivals.train(stopped, replace(given, augment=stopping), 3, 0, checkpoint=path)
    model = alq_rivals.student(given, 2, "learned")
    assert alq_rivals.train(model, given, 3, 0, checkpoint=path) == wanted
    for a, b in zip(model.state_dict().values(), whole.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_an_unknown_method_is_refused():
    with pytest.raises(ValueError, match="straight-through or learned"):
        alq_rivals.student(case(), 2, "other")
