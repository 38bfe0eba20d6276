"""Coupled channels are cut together, and cutting equals zeros in the same places."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from bitwright.errors import BitwrightError
from bitwright.prune import coupled, masked, pruned
from bitwright.prune.edit import from_json, to_json
from prune.nets import Attention, Dense, Padded, Residual, made, rows

KINDS = [Residual, Dense, Attention]


def _edit(kind: type[nn.Module], step: int = 3):
    model, x = made(kind), rows(kind)
    coupling = coupled(model, x)
    return model, x, coupling, coupling.edit({g.name: [0, g.units - 1] for g in coupling.groups})


@pytest.mark.parametrize("kind", KINDS)
def test_pruned_equals_masked_in_float64(kind):
    model, x, _, edit = _edit(kind)
    model = model.double()
    x = x.double() if x.is_floating_point() else x
    small, zeros = pruned(model, edit), masked(model, edit)
    assert torch.allclose(small(x), zeros(x), rtol=1e-12, atol=1e-12)
    assert not torch.allclose(small(x), model(x), atol=1e-3)
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_a_cut_in_the_wrong_place_differs(kind):
    model, x, coupling, edit = _edit(kind)
    wrong = coupling.edit({g.name: [1, g.units - 1] for g in coupling.groups})
    assert not torch.allclose(pruned(model, edit)(x), masked(model, wrong)(x), atol=1e-4)


def test_groups_of_a_residual_network():
    model = made(Residual)
    found = coupled(model, rows(Residual))
    parts = {g.name: {(m.path, m.out) for m in g.members} for g in found.groups}
    assert parts == {
        "stem": {("stem", True), ("bn", True), ("conv1", False), ("short", False)},
        "conv1": {("conv1", True), ("bn1", True), ("conv2", False)},
        "conv2": {("conv2", True), ("bn2", True), ("short", True), ("head", False)},
    } or parts == {
        "stem": parts["stem"],
        "conv1": parts["conv1"],
        "short": {("conv2", True), ("bn2", True), ("short", True), ("head", False)},
    }
    assert dict(found.whole) == {"head": "its channels are the model's output"}


def test_units_of_grouped_convolutions_and_flattening():
    found = {g.name: g for g in coupled(made(Dense), rows(Dense)).groups}
    grouped = next(
        g for g in found.values() if any(m.path == "grouped" and m.out for m in g.members)
    )
    assert grouped.units == 3  # one channel of each of its two groups
    assert grouped.members[0].channels[0] == (0, 3)
    point = next(m for m in found["point"].members if m.path == "head")
    assert point.channels[1] == tuple(range(9, 18))


def test_heads_and_the_width_of_an_mlp():
    model = made(Attention)
    found = {g.kind: g for g in coupled(model, rows(Attention)).groups}
    assert found["heads"].units == 4 and found["channels"].name == "up"
    coupling = coupled(model, rows(Attention))
    edit = coupling.edit({found["heads"].name: [1, 2]})
    small = pruned(model, edit)
    assert small.heads == 2 and small.query.weight.shape == (8, 16)
    assert small.out.weight.shape == (16, 8) and model.heads == 4


def test_what_cannot_be_cut_is_named_and_can_be_left_whole():
    model, x = made(Padded), rows(Padded)
    with pytest.raises(BitwrightError, match=r"'stem'.*--skip stem"):
        coupled(model, x)
    with pytest.raises(BitwrightError, match="no channel of the model can be removed"):
        coupled(model, x, ["stem"])
    with pytest.raises(BitwrightError, match="--skip stemm matches no layer"):
        coupled(model, x, ["stemm"])


def test_a_model_that_cannot_be_traced_names_the_module():
    class Broken(nn.Module):
        def forward(self, x):
            raise RuntimeError("boom")

    model = made(Residual)
    model.bn1 = Broken()
    with pytest.raises(BitwrightError, match=r"module 'bn1' cannot be traced.*boom"):
        coupled(model, rows(Residual))


def test_skip_leaves_all_that_is_coupled():
    found = coupled(made(Residual), rows(Residual), ["short"])
    assert {g.name for g in found.groups} == {"stem", "conv1"}


def test_nothing_of_the_model_changes():
    model, x = made(Residual), rows(Residual)
    before = copy.deepcopy(model.state_dict())
    model.stem.weight.requires_grad_(False)
    coupling = coupled(model, x)
    pruned(model, coupling.edit({"conv1": [0]}))
    masked(model, coupling.edit({"conv1": [0]}))
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert not model.stem.weight.requires_grad and not model.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("kind", KINDS)
def test_an_edit_survives_json(kind):
    import json

    _, _, _, edit = _edit(kind)
    again = from_json(json.loads(json.dumps(to_json(edit))))
    assert again == edit


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("cuts", None),
        ("cuts", [{"path": "conv1", "out": 1, "channels": [0]}]),
        ("cuts", [{"path": "conv1", "out": True, "channels": [-1]}]),
        ("attributes", [["a", "b"]]),
        ("implants", [["a", "b", 1]]),
    ],
)
def test_a_damaged_description_is_refused(key, value):
    _, _, _, edit = _edit(Residual)
    with pytest.raises(BitwrightError, match="damaged"):
        from_json({**to_json(edit), key: value})


def test_an_edit_of_another_model_is_refused():
    model, _, _, edit = _edit(Residual)
    model.conv1 = nn.Conv2d(4, 3, 3)
    with pytest.raises(BitwrightError, match="conv1: channels"):
        pruned(model, edit)
    with pytest.raises(BitwrightError, match="no module"):
        pruned(made(Dense), edit)
