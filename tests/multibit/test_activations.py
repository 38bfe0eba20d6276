"""Activations as binary bases: values, gradients, the graph, and the files in the runtime."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bitwright.errors import BitwrightError
from bitwright.multibit import Recipe, artefact, convert, prepare, train
from bitwright.multibit.activations import Activations, chains, fit, levels
from bitwright.multibit.files import disagreement
from bitwright.multibit.net import Multibit
from bitwright.multibit.stored import stored
from bitwright.network import outputs
from bitwright.network.ops import aten
from multibit.nets import rows, small

RECIPE = Recipe(bits=1.5, loops=1, straight=1, final=1, batch=16)


def net_of(count: int = 2) -> Multibit:
    return prepare(small(), rows()[0], size=16, most=3, activation_bases=count)


def by_hand(x: float, alpha: Tensor, at_zero: bool) -> tuple[float, tuple[int, ...]]:
    """The nearest value of all signs, and what it changes by with each coordinate."""
    low = 0 if at_zero else -1
    every = list(itertools.product((low, 2 if at_zero else 1), repeat=len(alpha)))
    found = [float(sum(b * a for b, a in zip(bits, alpha.tolist(), strict=True))) for bits in every]
    best = min(range(len(every)), key=lambda i: abs(found[i] - x))
    return found[best], every[best]


@pytest.mark.parametrize("at_zero", [False, True])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_values_and_gradients_are_those_of_the_nearest_signs(count: int, at_zero: bool):
    generator = torch.Generator().manual_seed(count)
    alpha = torch.rand(count, generator=generator).double() + 0.1
    x = 3 * torch.randn(200, generator=generator).double()
    x.requires_grad_()
    layer = Activations(alpha, at_zero).double()
    upstream = torch.randn(200, generator=generator).double()
    found = layer(x)
    (found * upstream).sum().backward()
    wanted = [by_hand(v, alpha, at_zero) for v in x.tolist()]
    assert torch.allclose(
        found, torch.tensor([v for v, _ in wanted], dtype=torch.float64), rtol=1e-12
    )
    slopes = torch.tensor([b for _, b in wanted]).double()
    by_alpha = (upstream[:, None] * slopes).sum(0) * alpha  # of the logarithm
    assert layer.log_alpha.grad is not None and x.grad is not None
    assert torch.allclose(layer.log_alpha.grad, by_alpha, rtol=1e-9)
    ends = levels(alpha, at_zero)
    inside = (x >= ends.min()) & (x <= ends.max())
    assert 0 < int(inside.sum()) < 200
    assert torch.equal(x.grad, upstream * inside)


def test_fitting_comes_near_the_best_coordinates_of_a_fine_search():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4000, generator=generator)
    for at_zero, given in ((False, x), (True, x.relu())):
        steps = torch.arange(0.05, 1.6, 0.05).tolist()

        def error(alpha: Tensor, given: Tensor = given, at_zero: bool = at_zero) -> float:
            near = (given[:, None] - levels(alpha, at_zero)).abs().amin(1)
            return float(near.square().mean())

        best = min(error(torch.tensor([a, b])) for a in steps for b in steps if b >= a)
        assert error(fit(given, 2, at_zero)) <= 1.01 * best
        assert error(fit(given, 3, at_zero)) < error(fit(given, 2, at_zero)) < error(
            fit(given, 1, at_zero))  # fmt: skip


def test_the_input_of_the_network_stays_float_and_zero_stays_zero_behind_a_relu():
    net = net_of()
    assert set(net.activations()) == {"conv2", "fc1", "fc2"}
    assert all(each.at_zero for each in net.activations().values())
    for each in net.activations().values():
        assert float(each(torch.zeros(1)).detach()) == 0.0
    assert not prepare(small(), rows()[0], size=16, most=3).activations()


def test_hooks_last_for_a_pass_only():
    net = net_of()
    net(rows()[0])
    assert not any(m._forward_pre_hooks for m in net.modules())


def test_the_stored_graph_computes_what_the_net_computes():
    net = net_of().eval()
    for name in net.names:  # float16 and batch-norm change nothing that crosses a middle
        net[name].alpha.copy_(net[name].alpha.half().float())
    held = stored(net)
    assert len(chains(held.network)) == 3
    x = rows()[0]
    with torch.no_grad():
        wanted = net(x)
    off = (outputs(held.network.module, x) - wanted).abs().amax(1) / wanted.abs().max()
    assert float((off < 1e-3).float().mean()) > 0.8 and float(off.median()) < 1e-3
    for cut in chains(held.network):
        values = outputs_at(held.network.module, x, cut.last)
        assert set(values.flatten().tolist()) <= set(cut.values)
        assert len(set(values.flatten().tolist())) > 2


def outputs_at(module: nn.Module, x: Tensor, node: object) -> Tensor:
    from bitwright.network import run

    seen = {}

    def call(each: object, args: tuple[object, ...], kwargs: dict[str, object]) -> object:
        value = each.target(*args, **kwargs)  # type: ignore[attr-defined]
        if each is node:
            seen["value"] = value
        return value

    run(module, x, call)  # type: ignore[arg-type]
    return seen["value"]


def test_files_hold_the_bases_and_the_runtime_has_the_same_values(tmp_path: Path):
    net = net_of()
    train(net, *rows(64), RECIPE)
    found = convert(net, tmp_path)
    x = rows(200, seed=5)[0]
    assert disagreement(found, tmp_path / "model.onnx", x) <= 1e-5
    again = artefact.load(tmp_path / "model.safetensors")
    assert torch.equal(outputs(again.network.module, x), outputs(stored(net).network.module, x))
    # values that are not the file's, and values that are not the nearest, are found
    cut = chains(again.network)[1]
    cut.last.args = (*cut.last.args[:2], cut.values[-1] * 1.01)
    assert disagreement(again, tmp_path / "model.onnx", x) == float("inf")
    moved = artefact.load(tmp_path / "model.safetensors")
    above = chains(moved.network)[1].last.args[1]
    above.args = (above.args[0], above.args[1] * 1.2)
    assert above.target is aten.gt.Scalar
    assert disagreement(moved, tmp_path / "model.onnx", x) > 1e-3


def test_training_moves_the_coordinates_and_goes_on_where_it_stopped(tmp_path: Path):
    x, y = rows(64)
    whole = net_of()
    start = {k: v.clone() for k, v in whole.state_dict().items() if "log_alpha" in k}
    wanted = train(whole, x, y, RECIPE)
    assert start and all(not torch.equal(v, whole.state_dict()[k]) for k, v in start.items())

    def stopping(line: dict[str, object]) -> None:
        if line["epoch"] == 3:
            raise KeyboardInterrupt

    path = tmp_path / "training.safetensors"
    with pytest.raises(KeyboardInterrupt):
        train(net_of(), x, y, RECIPE, checkpoint=path, progress=stopping)
    net = net_of()
    assert train(net, x, y, replace(RECIPE), checkpoint=path) == wanted
    for a, b in zip(net.state_dict().values(), whole.state_dict().values(), strict=True):
        assert torch.equal(a, b)


class Functional(nn.Module):
    """Its second weight is not called as a module."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.second = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(torch.relu(self.first(x)), self.second.weight, self.second.bias)


def test_what_cannot_have_bases_is_refused():
    with pytest.raises(BitwrightError, match="1 to 4 bases, not 5"):
        net_of(5)
    with pytest.raises(BitwrightError, match="layer 'second' is not called as"):
        prepare(Functional(), torch.randn(8, 6), activation_bases=2)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_is_refused_by_the_layer_that_reads_it(value: float):
    x = rows()[0].clone()
    x[2, 0, 3, 3] = value
    with pytest.raises(BitwrightError, match="layer 'conv2' reads NaN or infinite numbers"):
        prepare(small(), x, activation_bases=2)
    fit(torch.tensor([1.0, value, 2.0]), 2, False)  # it ends
