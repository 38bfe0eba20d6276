"""A clip behind any operation is stored once and fused; the file as it is gives the same."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import bitwright
from bitwright.deploy import Verification
from bitwright.network import build, outputs
from mutants import mutated

X = torch.randn(96, 3, 12, 12, generator=torch.Generator().manual_seed(0))


class Product(nn.Module):
    """Of two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) * self.b(x)


class Joined(Product):
    """Two convolutions side by side."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.a(x), self.b(x)[:, :4]], 1)[:, 2:10]


class Twice(nn.Module):
    """What is pooled and clipped is read by somebody else, too."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        return torch.relu(torch.max_pool2d(y, 2)) + torch.max_pool2d(y, 2)


FORMS: dict[str, Callable[[], list[nn.Module]]] = {
    "product": lambda: [Product(), nn.ReLU()],
    "joined": lambda: [Joined(), nn.ReLU()],
    "max pool": lambda: [nn.MaxPool2d(2), nn.ReLU()],
    "padding": lambda: [nn.ZeroPad2d(1), nn.Hardtanh(-0.2, 0.6)],
    "padding, max pool": lambda: [nn.ZeroPad2d(1), nn.MaxPool2d(2), nn.ReLU()],
    "average pool": lambda: [nn.AvgPool2d(2), nn.ReLU6()],
    "shuffle": lambda: [nn.ChannelShuffle(2), nn.ReLU()],
    "tanh": lambda: [nn.Tanh(), nn.ReLU()],
    "two clips": lambda: [nn.ReLU(), nn.ReLU6()],
    "both sides": lambda: [nn.Hardtanh(-0.05, 0.3)],
    "both sides, pooled": lambda: [nn.AvgPool2d(2), nn.Hardtanh(-0.3, 0.05)],
    "read twice": lambda: [Twice()],
}


def network(form: str) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), *FORMS[form](), nn.Conv2d(8, 8, 3), nn.AdaptiveAvgPool2d(1), nn.ReLU(),
        nn.Flatten(), nn.Linear(8, 5),
    ).eval()  # fmt: skip


def verified(form: str, folder: Path) -> Verification:
    return bitwright.compress(
        network(form), X[32:], budget="5bit", test=X[:32], out=folder / form
    ).verification


@pytest.mark.parametrize("form", FORMS)
def test_a_clip_behind_anything_is_stored_once(form: str, tmp_path: Path):
    check = verified(form, tmp_path)
    assert check.ok and check.equal == check.tensors and not check.why
    assert check.qlinear_convolutions == check.convolutions
    assert check.changed == 0


@pytest.mark.parametrize("form", FORMS)
def test_clipping_first_changes_no_bit(form: str):
    model = network(form)
    with torch.no_grad():
        assert torch.equal(outputs(build(model, X).module, X), model(X))


def test_a_file_that_the_optimizer_changes_is_not_verified(tmp_path: Path):
    """A clip on both sides, left out where what it clips is stored: two grids become a third."""
    with mutated("deploy.onnx_file", 'source.op_type != "DequantizeLinear"', "True"):
        check = verified("both sides", tmp_path)
    assert check.equal == check.tensors and check.same_class_given == 1
    assert check.changed > 1 and not check.ok
    assert check.why == f"{check.changed} of 32 rows answered otherwise by the file as it is"


@pytest.mark.parametrize(
    ("clip", "moves"),
    [
        (nn.Hardtanh(0.1, 1.0), False),  # padding would be 0.1
        (nn.Hardtanh(-1.0, -0.5), False),
        (nn.Hardtanh(-1.0, math.inf), True),
    ],
)
def test_clips_that_move_zero_stay_behind_the_padding(clip: nn.Module, moves: bool):
    model = nn.Sequential(nn.ZeroPad2d(1), clip, nn.Conv2d(3, 4, 3)).eval()
    module = build(model, X).module
    names = [n.name for n in module.graph.nodes if n.op == "call_function"]
    assert (names[0].startswith(("hardtanh", "clamp"))) is moves
    with torch.no_grad():
        assert torch.equal(outputs(module, X), model(X))
