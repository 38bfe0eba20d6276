"""`prepare`, a loop of one's own, `convert`: against what the file computes, and closed forms."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import bitwright
import pair
from bitwright import train
from bitwright.arith.grid import Grid
from bitwright.errors import BitwrightError
from bitwright.pipeline import Run, Settings
from bitwright.pipeline.budget import parse_budget
from bitwright.quantize import simulate
from mutants import mutant
from pipeline import tiny

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run at 2 bits."""
    place = tmp_path_factory.mktemp("trainable") / "run"
    x, test = tiny.rows(80), tiny.rows(40, 100)
    task = bitwright.Task(tiny.network(), x, tiny.labels_of(x), test, tiny.labels_of(test))
    _ = Run(task, Settings(budget=parse_budget("2bit")), place).onnx
    return place


def trained(
    net: bitwright.Trainable, steps: int, state: dict[str, Any] | None = None
) -> dict[str, Any]:
    """A loop of the user's own: Adam, all rows, KL to the float model."""
    x = tiny.rows(80)
    with torch.no_grad():
        target = tiny.network()(x)
    optimizer = torch.optim.Adam(net.groups(3e-3))
    if state:
        net.load_state_dict(state["net"])
        optimizer.load_state_dict(state["optimizer"])
    for _ in range(steps):
        optimizer.zero_grad()
        train.divergence(target, net(x)).backward()
        optimizer.step()
    return {"net": net.state_dict(), "optimizer": optimizer.state_dict()}


@pytest.mark.parametrize("model", [None, tiny.network()])
def test_it_starts_as_what_the_file_computes(folder: Path, model: nn.Module | None):
    net, file = bitwright.prepare(folder, model), bitwright.load(folder)
    x = tiny.rows(40, 5)
    with torch.no_grad():
        assert torch.allclose(net(x), simulate(file.quantized, x), atol=1e-5)
    again = net.quantized()
    for name, layer in file.quantized.layers.items():
        assert torch.equal(again.layers[name].codes, layer.codes)
        assert torch.equal(again.layers[name].grid.scale, layer.grid.scale)
    names = {name for name, _ in net.named_parameters()}
    assert len(names) == 13 and all(p.requires_grad for p in net.parameters())


def test_latent_weights_start_from_the_float_ones(folder: Path):
    with_model, without = bitwright.prepare(folder, tiny.network()), bitwright.prepare(folder)
    float_weight = tiny.network()[3].weight.detach().reshape(12, 72)
    for net, close in ((with_model, True), (without, False)):
        ratio = net.rows[1].weight / float_weight
        inside = (ratio - ratio.median(1, keepdim=True).values).abs() < 1e-4
        assert (inside.float().mean() > 0.5) == close


def gradients_are_straight_through(straight: Callable[..., Tensor]) -> None:
    torch.manual_seed(0)
    bits = torch.tensor([1, 2, 3, 4, 8])
    grid = Grid(bits, torch.full((5,), 0.1), torch.tensor([1, 3, 8, 16, 255]))
    weight = (0.3 * torch.randn(5, 40)).requires_grad_(True)
    log_step = grid.scale.log().requires_grad_(True)
    seen = torch.randn(5, 40)
    found = straight(weight, log_step, grid)
    half, top = grid.zero[:, None] / 2, (2**bits - 1)[:, None]
    scaled = weight.detach() / 0.1 + half
    code = scaled.round().clamp(min=torch.zeros_like(top), max=top)
    assert torch.allclose(found, (code - half) * 0.1, atol=1e-6)
    (found * seen).sum().backward()
    inside = (scaled > 0) & (scaled < top)
    assert torch.allclose(weight.grad, seen * inside, atol=1e-6)
    # LSQ (arXiv 1902.08153, eq. 3), with the step's logarithm and 1/√n for its gradient's scale
    by_step = torch.where(inside, code - scaled, code - half)
    wanted = (seen * by_step).sum(1) * 0.1 / math.sqrt(40)
    assert torch.allclose(log_step.grad, wanted, atol=1e-5)


def test_gradients_are_straight_through_and_lsqs():
    gradients_are_straight_through(train.straight.straight_weights)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("levels = scaled + (at - scaled).detach()\n    return (levels - half) * step",
         "levels = at\n    return (levels - half) * step"),
        ("damp = 1 / math.sqrt(weight.shape[1])", "damp = 1.0"),
        (".clamp(min=torch.zeros_like(top), max=top)", ".clamp(min=torch.zeros_like(top))"),
        ("half = grid.zero[:, None] / 2", "half = grid.zero[:, None] // 2"),
    ],
)  # fmt: skip
def test_other_gradients_are_seen(old: str, new: str):
    with pytest.raises((AssertionError, RuntimeError, TypeError)):
        gradients_are_straight_through(mutant("train.straight", old, new).straight_weights)


def steps_of_values_are_lsqs(straight: Callable[..., Tensor]) -> None:
    torch.manual_seed(0)
    whole = torch.zeros(50), torch.full((50,), 15.0)
    channels = torch.randint(0, 6, (50,)).float(), torch.randint(5, 16, (50,)).float()
    for limits in (None, channels):
        x = (2 * torch.randn(3, 50)).requires_grad_(True)
        step = torch.tensor(0.1, requires_grad=True)
        seen = torch.randn(3, 50)
        found = straight(x, step, 5, 15, limits)
        scaled = x.detach() / 0.1 + 5
        low, high = limits or whole
        code = scaled.round().clamp(low, high)
        assert torch.allclose(found, (code - 5) * 0.1, atol=1e-6)
        (found * seen).sum().backward()
        inside = (scaled > low) & (scaled < high)
        assert torch.allclose(x.grad, seen * inside, atol=1e-6)
        wanted = (seen * torch.where(inside, code - scaled, code - 5)).sum() / math.sqrt(50 * 15)
        assert torch.allclose(step.grad, wanted, atol=1e-5)


def test_steps_of_activations_are_learned():
    steps_of_values_are_lsqs(train.straight.straight_values)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("q - v, q - ctx.zero", "q - v, q"),
        ("gradient * inside, to_step", "gradient, to_step"),
        ("math.sqrt(v[0].numel() * ctx.top)", "math.sqrt(v.numel() * ctx.top)"),
        (".round().clamp_(low, high)", ".round()"),
        ("(v <= ctx.limits[1])", "(v <= ctx.top)"),
    ],
)
def test_other_steps_are_seen(old: str, new: str):
    with pytest.raises(AssertionError):
        steps_of_values_are_lsqs(mutant("train.straight", old, new).straight_values)


def test_a_loop_of_ones_own_and_back_into_files(folder: Path, tmp_path: Path):
    net, x = bitwright.prepare(folder, tiny.network()), tiny.rows(80)
    with torch.no_grad():
        target = tiny.network()(x)
        before = float(train.divergence(target, net(x)))
    trained(net, 40)
    file = bitwright.convert(net, tmp_path / "tuned")
    with torch.no_grad():
        after = float(train.divergence(target, file(x)))
    assert after < 0.5 * before
    origin = bitwright.load(folder).quantized
    for name, layer in file.quantized.layers.items():
        assert torch.equal(layer.grid.bits, origin.layers[name].grid.bits)
        assert torch.equal(layer.grid.zero, origin.layers[name].grid.zero)
    session = onnxruntime.InferenceSession(tmp_path / "tuned" / "model.onnx")
    (name,) = (i.name for i in session.get_inputs())
    (answers,) = session.run(None, {name: x.numpy()})
    assert np.abs(answers - file(x).detach().numpy()).max() < 1e-4
    again = bitwright.load(tmp_path / "tuned")
    assert torch.equal(again(x), file(x))


def test_stopped_and_gone_on_is_the_same(folder: Path, tmp_path: Path):
    straight, first, second = (bitwright.prepare(folder, tiny.network()) for _ in range(3))
    trained(straight, 12)
    torch.save(trained(first, 5), tmp_path / "state.pt")
    trained(second, 7, torch.load(tmp_path / "state.pt", weights_only=True))
    for net, name in ((straight, "a"), (second, "b")):
        bitwright.convert(net, tmp_path / name)
    for file in ("model.safetensors", "model.onnx"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def _process(rank: int, folder: Path, place: Path) -> None:
    net = bitwright.prepare(folder, tiny.network())
    x = tiny.rows(80)[40 * rank : 40 * (rank + 1)]
    parallel = DistributedDataParallel(net)
    with torch.no_grad():
        target = tiny.network()(x)
    train.divergence(target, parallel(x)).backward()
    if rank == 0:
        torch.save([p.grad for p in net.parameters()], place / "gradients.pt")


def test_two_processes_have_the_gradient_of_all_rows(folder: Path, tmp_path: Path):
    pair.run(_process, folder, tmp_path)
    net, x = bitwright.prepare(folder, tiny.network()), tiny.rows(80)
    with torch.no_grad():
        target = tiny.network()(x)
    train.divergence(target, net(x)).backward()
    for mine, both in zip(
        net.parameters(), torch.load(tmp_path / "gradients.pt", weights_only=True), strict=True
    ):
        assert isinstance(mine.grad, Tensor)
        assert torch.allclose(mine.grad, both, rtol=1e-3, atol=1e-5 * float(both.abs().max()))


def test_what_cannot_be(folder: Path, tmp_path: Path):
    with pytest.raises(BitwrightError, match=r"there is no .*model\.safetensors"):
        bitwright.prepare(tmp_path)
    other = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(512, 4))
    with pytest.raises(BitwrightError, match="the model is not the one"):
        bitwright.prepare(folder, other)
    net = bitwright.prepare(folder)
    with torch.no_grad():
        net.rows[0].bias[0] = math.nan
    with pytest.raises(BitwrightError, match=r"rows\.0\.bias is not finite: the training diverged"):
        bitwright.convert(net, tmp_path / "out")
    assert not (tmp_path / "out").exists()
