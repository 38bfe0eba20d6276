"""Fine-tuning: a killed training goes on to the same bytes; random changes of images."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from bitwright import train
from bitwright.errors import BitwrightError
from bitwright.network import build, outputs
from bitwright.quantize import (
    Quantized,
    calibrate,
    correct,
    float_outputs,
    round_weights,
    simulate,
    weight_tables,
)
from bitwright.train import Recipe, augment, distil, resume
from pipeline import tiny

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture(scope="module")
def quantized() -> Quantized:
    """2 bits of weights, 3 of activations; one of them below a ReLU6."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.ReLU6(), nn.Conv2d(6, 4, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(144, 4),
    ).eval()  # fmt: skip
    x = tiny.rows(80)
    network = build(model, x)
    bits = {la.name: torch.full((la.rows,), 2).numpy() for la in network.layers}
    layers = round_weights(network, weight_tables(network), bits)
    edges = calibrate(network, x, bits=3)
    return correct(network, layers, edges, x, float_outputs(network, x))


def same(a: Quantized, b: Quantized) -> bool:
    return a.edges == b.edges and all(
        torch.equal(la.codes, b.layers[n].codes)
        and torch.equal(la.grid.scale, b.layers[n].grid.scale)
        and torch.equal(la.bias, b.layers[n].bias)
        for n, la in a.layers.items()
    )


RECIPE = Recipe(4, batch=17, rate=3e-3)


@pytest.mark.parametrize("order", [None, ["2", "5", "0"]])
def test_a_killed_training_goes_on_to_the_same(
    quantized: Quantized, tmp_path: Path, order: list[str] | None
):
    x, file = tiny.rows(80), tmp_path / "state.safetensors"
    changes = augment.parse("flip,crop1")
    whole, history = train.finetune(quantized, x, RECIPE, order=order, augment=changes)
    calls = 0

    def killed(fraction: float) -> None:
        nonlocal calls
        calls += 1
        if calls == 11:  # in the third epoch, of four steps
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train.finetune(
            quantized, x, RECIPE, order=order, augment=changes, checkpoint=file, progress=killed
        )
    assert file.exists() and not same(whole, quantized)
    again, continued = train.finetune(
        quantized, x, RECIPE, order=order, augment=changes, checkpoint=file
    )
    assert continued == history and same(again, whole)
    done, finished = train.finetune(
        quantized, x, RECIPE, order=order, augment=changes, checkpoint=file
    )
    assert finished == history and same(done, whole)


def test_it_gains_and_learns_steps_of_activations(quantized: Quantized):
    found, history = train.finetune(quantized, tiny.rows(80), replace(RECIPE, epochs=20))
    assert min(history) < 0.7 * history[0] and len(history) == 21
    moved = [found.edges[g].scale != grid.scale for g, grid in quantized.edges.items()]
    assert any(moved)
    for edge in found.network.edges:  # a fused clip stays below its ceiling
        grid = found.edges[edge.group]
        assert grid.scale * (grid.top - grid.zero) <= edge.ceiling
        assert (grid.zero, grid.bits) == (
            quantized.edges[edge.group].zero,
            quantized.edges[edge.group].bits,
        )


def test_a_step_cannot_pass_a_fused_clip(quantized: Quantized):
    net = train.Trainable(quantized)
    with torch.no_grad():
        for step in net.edges.values():
            step.log_ratio += 5
    for edge in quantized.network.edges:
        grid = net.quantized().edges[edge.group]
        top = grid.scale * (grid.top - grid.zero)
        assert (top <= 6) == (edge.ceiling == 6) and top <= edge.ceiling


def test_no_epochs_and_a_training_that_does_harm_change_nothing(quantized: Quantized):
    x = tiny.rows(80)
    none, history = train.finetune(quantized, x, replace(RECIPE, epochs=0))
    assert none is quantized and len(history) == 1
    worse, history = train.finetune(quantized, x, replace(RECIPE, epochs=2, rate=3.0))
    assert worse is quantized and not any(value < history[0] for value in history[1:])


def test_the_loss_is_softened(quantized: Quantized):
    x = tiny.rows(80)
    judge = x[-12:]
    with torch.no_grad():
        target, found = quantized.network.module(judge), train.Trainable(quantized)(judge)
    for t in (1.0, 4.0):
        _, history = train.finetune(quantized, x, replace(RECIPE, epochs=0, temperature=t))
        wanted = t * t * train.divergence(target / t, found / t)
        assert history[0] == pytest.approx(float(wanted), rel=2e-3)
    _, history = train.finetune(quantized, x, replace(RECIPE, epochs=0, kind="squared"))
    assert history[0] == pytest.approx(float((target - found).square().sum(1).mean() / 2), rel=1e-4)


def test_a_damaged_checkpoint_is_refused_in_a_line(quantized: Quantized, tmp_path: Path):
    x, file = tiny.rows(80), tmp_path / "state.safetensors"
    train.finetune(quantized, x, replace(RECIPE, epochs=1), checkpoint=file)
    tensors = load_file(file)
    name = next(n for n in tensors if n.startswith("now:rows.0"))
    for broken in (b"", b"\x08\0\0\0\0\0\0\0garbage!", file.read_bytes()[:-9]):
        file.write_bytes(broken)
        with pytest.raises(BitwrightError, match="cannot be gone on from"):
            train.finetune(quantized, x, RECIPE, checkpoint=file)
    resume.write(file, {**tensors, name: torch.zeros(2)}, '{"history": [1.0, 0.5], "steps": 4}')
    with pytest.raises(BitwrightError, match="cannot be gone on from"):
        train.finetune(quantized, x, RECIPE, checkpoint=file)


def image(n: int = 400) -> Tensor:
    return torch.arange(2 * 5 * 7.0).reshape(1, 2, 5, 7).expand(n, 2, 5, 7)


def test_mirrored_is_half_of_the_time():
    x = image()
    found = augment.parse("flip")(x, torch.Generator().manual_seed(0))
    turned = (found == x.flip(3)).flatten(1).all(1)
    assert torch.equal(found[~turned], x[~turned])
    assert abs(float(turned.double().mean()) - 0.5) < 4 * 0.5 / math.sqrt(400)


def test_shifted_by_every_amount_alike():
    x = image()
    found = augment.parse("crop2")(x, torch.Generator().manual_seed(0))
    padded = nn.functional.pad(x[:1], (2, 2, 2, 2), mode="reflect")[0]
    kinds = [padded[:, i : i + 5, j : j + 7] for i in range(5) for j in range(5)]
    counts = torch.stack([(found == kind).flatten(1).all(1) for kind in kinds]).sum(1)
    assert counts.sum() == 400  # each one is exactly one of them
    chi2 = float(((counts - 16.0).square() / 16).sum())
    assert chi2 < 24 + 4 * math.sqrt(48)


def test_mixed_lies_between_two():
    x = torch.rand(50, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    found = augment.parse("mixup")(x, torch.Generator().manual_seed(0))
    shares = []
    for i in range(50):
        fits = []
        for j in range(50):
            apart = (x[i] - x[j]).flatten()
            size = float(apart @ apart)
            share = float((found[i] - x[j]).flatten() @ apart) / size if size else 1.0
            fits.append((float((share * x[i] + (1 - share) * x[j] - found[i]).abs().max()), share))
        wrong, share = min(fits)
        assert wrong < 1e-5 and -1e-4 <= share <= 1 + 1e-4
        shares.append(share)
    assert abs(sum(shares) / 50 - 0.5) < 4 / (12 * 50) ** 0.5 + 1 / 50  # itself now and then


@pytest.mark.parametrize("text", ["", "crop", "crop0", "turn", "flip,,crop4", "crop-1"])
def test_unknown_changes_are_refused(text: str):
    with pytest.raises(BitwrightError, match="use flip, crop4, mixup or several"):
        augment.parse(text)


def test_rows_that_are_no_images_are_refused():
    with pytest.raises(BitwrightError, match=r"not rows of \(7,\)"):
        augment.parse("flip")(torch.zeros(3, 7), torch.Generator())


def test_the_mean_of_states_is_the_formulas():
    """Against the recurrence written out in float64; a wrong share of the newest is seen."""
    module = nn.Linear(3, 2).double()
    states = [torch.full((2, 3), float(v), dtype=torch.float64) for v in (1, 4, -2, 7)]
    wanted = module.weight.detach().clone()
    mean = distil.Mean(module, most=0.3)
    for t, state in enumerate(states):
        module.weight.data.copy_(state)
        mean.add(module, t)
        a = min(0.3, (1 + t) / (10 + t))
        wanted = a * wanted + (1 - a) * state
    assert torch.allclose(mean.values["weight"], wanted, rtol=1e-14)
    assert not torch.allclose(wanted, states[-1])
    with mean.inside(module):
        assert torch.equal(module.weight, mean.values["weight"])
    assert torch.equal(module.weight, states[-1])


@pytest.mark.parametrize("average", [0.0, 0.9])
def test_what_is_kept_is_the_mean(quantized: Quantized, average: float):
    """The held-out loss in the history is that of the network that comes back, not of the steps."""
    x, recipe = tiny.rows(80), replace(RECIPE, average=average)
    found, history = train.finetune(quantized, x, recipe)
    _, judge = recipe.split(x)
    target = outputs(quantized.network.module, judge)
    assert distil.loss_of(target, simulate(found, judge), recipe) == pytest.approx(min(history))
    other, _ = train.finetune(quantized, x, replace(recipe, average=0.2))
    assert not same(found, other)


def test_held_out_rows_are_changed_as_training_rows_are(quantized: Quantized):
    """The first loss is on mixed rows, drawn by the seed, and not on the rows themselves."""
    x, mixed = tiny.rows(80), augment.parse("mixup")
    recipe = replace(RECIPE, epochs=0)
    _, (plain,) = train.finetune(quantized, x, recipe)
    _, (changed,) = train.finetune(quantized, x, recipe, augment=mixed)
    rows = mixed(recipe.split(x)[1], torch.Generator().manual_seed(recipe.seed + 1))
    wanted = distil.loss_of(
        outputs(quantized.network.module, rows), simulate(quantized, rows), recipe
    )
    assert changed == pytest.approx(wanted, rel=1e-6)
    assert changed != pytest.approx(plain, rel=1e-3)
