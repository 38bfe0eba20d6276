"""Refits and implants against closed forms and dense least squares."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bitwright.curvature.divergence import per_sample
from bitwright.prune import compensated, coupled, load, pruned, save
from bitwright.prune.implant import Implanted
from bitwright.prune.least_squares import columns
from prune.nets import Attention, Dense, Residual, made, rows


def _pruned(kind, removed, implanted=None, rank=0):
    model, x = made(kind), rows(kind, 64)
    coupling = coupled(model, x)
    edit = coupling.edit(removed, implanted, rank=rank)
    return model, x, edit, pruned(model, edit)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(6, 4, 3, 2, 1, groups=2), (3, 6, 9, 7)),
        (nn.Conv1d(4, 5, 3, 1, 2, dilation=2), (2, 4, 11)),
        (nn.Conv3d(2, 3, (1, 2, 3), 1, 1), (2, 2, 4, 3, 3)),
        (nn.Linear(5, 4), (2, 3, 5)),
    ],
)
def test_columns_times_weights_are_the_outputs(layer, shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        y = layer(x)
        width = y.shape[-1] if isinstance(layer, nn.Linear) else y.shape[1]
        generator = torch.Generator().manual_seed(0)
        for a, wanted in columns(layer, x, y, torch.arange(width), generator):
            weight = layer.weight.flatten(1).unflatten(0, (len(a), -1))
            bias = layer.bias.unflatten(0, (len(a), -1))
            assert torch.allclose(a @ weight.mT + bias[:, None], wanted, atol=1e-5)


def test_a_channel_that_repeats_another_costs_nothing():
    """conv2 reads channel 1 where it read 1 and 3: exact, but for the ridge."""
    model, x = made(Residual), rows(Residual, 64)
    for tensor in (*model.conv1.parameters(), *model.bn1.parameters(), *model.bn1.buffers()):
        if tensor.ndim:
            tensor.data[3] = tensor.data[1]
    coupling = coupled(model, x)
    edit = coupling.edit({"conv1": [3]})
    small = pruned(model, edit)
    with torch.no_grad():
        plain = float((small(x) - model(x)).abs().max())
        added = compensated(model, small, edit, x, damping=1e-9)
        error = float((small(x) - model(x)).abs().max())
    assert error < 1e-4 < 0.01 < plain and added.biases == ("conv2",)


def test_the_refit_is_dense_least_squares():
    model, x, edit, small = _pruned(Residual, {"conv1": [0, 2]})
    seen = []
    hook = small.conv2.register_forward_pre_hook(lambda m, i: seen.append(i[0].detach()))
    small(x)
    hook.remove()
    a = torch.nn.functional.unfold(seen[0], 3, padding=1).mT.flatten(0, 1).double()
    hook = model.conv2.register_forward_hook(lambda m, i, o: seen.append(o.detach()))
    model(x)
    hook.remove()
    y = seen[1].flatten(2).mT.flatten(0, 1).double()
    one = torch.cat([a, torch.ones(len(a), 1, dtype=torch.float64)], 1)
    w = torch.linalg.pinv(one) @ y
    compensated(model, small, edit, x, damping=1e-12)
    with torch.no_grad():
        found = a @ small.conv2.weight.flatten(1).double().T + small.conv2.bias
    assert torch.allclose(found, one @ w, atol=1e-3)
    assert not torch.allclose(1.01 * found, one @ w, atol=1e-3)


@pytest.mark.parametrize("kind", [Residual, Dense, Attention])
def test_refits_lower_the_divergence(kind):
    model = made(kind)
    groups = coupled(model, rows(kind)).groups
    removed = {g.name: range(g.units // 3 or 1) for g in groups}
    model, x, edit, small = _pruned(kind, removed)
    with torch.no_grad():
        plain = float(per_sample(model(x), small(x), "kl").mean())
        before = {k: v.clone() for k, v in model.state_dict().items()}
        compensated(model, small, edit, x)
        after = float(per_sample(model(x), small(x), "kl").mean())
    assert after < 0.8 * plain
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_implants_stand_for_their_channels(rank):
    """Kept channels are the model's own, in their order; implants start from least squares."""
    model, x, edit, small = _pruned(Residual, {"conv1": [0]}, {"conv1": [2, 4]}, rank)
    conv = small.conv1
    assert isinstance(conv, Implanted)
    with torch.no_grad():
        stem = torch.relu(model.bn(model.stem(x)))
        wanted = model.conv1(stem)
        assert torch.allclose(conv(stem)[:, :3], wanted[:, [1, 3, 5]], atol=1e-5)
        assert float(conv(stem)[:, 3:].abs().max()) == 0
        compensated(model, small, edit, x)
        left = (conv(stem)[:, 3:] - wanted[:, [2, 4]]).square().mean((0, 2, 3))
        spread = wanted[:, [2, 4]].var((0, 2, 3))
    assert (left < spread).all()
    if rank == 2:  # the rank of two filters: exact, but for the ridge
        assert (left < 1e-3 * spread).all()


def test_an_implant_of_zeros_is_removal():
    model, x, _, small = _pruned(Residual, {}, {"conv1": [2, 4]})
    gates = coupled(model, x).edit({"conv1": [2, 4]})
    norm = small.bn1
    with torch.no_grad():  # what batch-norm makes of zero is not zero
        norm.weight[-2:] = norm.bias[-2:] = 0
        assert torch.allclose(small(x), pruned(model, gates)(x), atol=1e-5)


def test_rank_one_is_the_best_of_its_rank():
    """Against a descent on the same objective: the closed form is not beaten."""
    model, x, edit, small = _pruned(Residual, {}, {"conv1": [1, 2, 4]}, 1)
    compensated(model, small, edit, x)
    conv = small.conv1.small
    with torch.no_grad():
        stem = torch.relu(model.bn(model.stem(x)))
        wanted = model.conv1(stem)[:, [1, 2, 4]]
        found = float((conv(stem) - wanted).square().mean())
    trained = pruned(model, edit).conv1.small
    for p in trained.parameters():
        p.data.normal_(generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.Adam(trained.parameters(), 0.02)
    for _ in range(300):
        loss = (trained(stem) - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert found <= 1.02 * float(loss.detach())


@pytest.mark.parametrize("kind", [Residual, Dense, Attention])
def test_files_give_the_module_back(kind, tmp_path):
    groups = coupled(made(kind), rows(kind)).groups
    implants = {"conv1": [3]} if kind is Residual else None
    model, x, edit, small = _pruned(kind, {g.name: [0] for g in groups}, implants)
    edit = compensated(model, small, edit, x)
    save(small, edit, tmp_path / "pruned.safetensors")
    again = load(made(kind, seed=9), tmp_path / "pruned.safetensors")
    with torch.no_grad():
        assert torch.equal(again(x), small(x))
