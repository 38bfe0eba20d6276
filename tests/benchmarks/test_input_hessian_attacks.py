"""Attacks against a closed form: of a linear network, the distance from the nearest boundary."""

from __future__ import annotations

import importlib

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("art")
attacks = importlib.import_module("input_hessian_attacks")


def linear() -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """Network, grey images, classes, and L2 distance from the nearest boundary."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    x = torch.full((6, 1, 28, 28), 0.5) + 0.1 * torch.rand(6, 1, 28, 28)
    z, w = net(x).detach(), net[1].weight.detach()
    y = z.argmax(1)
    gaps = z.gather(1, y[:, None]) - z
    slopes = (w[y][:, None] - w[None]).norm(dim=2)
    away = torch.where(gaps > 0, gaps / slopes, torch.inf).amin(1)
    return net, x, y, away


def test_the_smallest_attack_is_the_distance_from_the_boundary():
    net, x, y, away = linear()
    radii = tuple(float(away.min()) * 1.15**k for k in range(24))
    found = attacks.smallest(net, x, y, radii, 40)
    assert bool((found >= away * (1 - 1e-3)).all())
    assert bool((found <= away * 1.1).all())


def test_rows_within_the_radius_survive_and_others_do_not():
    net, x, y, away = linear()
    alive, _ = attacks.survivors(net, x, y, "L2", float(away.median()) * 1.05, 40)
    assert torch.equal(alive, away > away.median() * 1.05)
    right, _ = attacks.survivors(net, x, (y + 1) % 10, "L2", 1e-3, 2)
    assert not right.any()


def test_an_attack_is_shortened_to_the_boundary():
    net, x, y, away = linear()
    w = net[1].weight.detach()
    z = net(x).detach()
    gaps = z.gather(1, y[:, None]) - z
    slopes = (w[y][:, None] - w[None]).norm(dim=2)
    other = torch.where(gaps > 0, gaps / slopes, torch.inf).argmin(1)
    step = (w[other] - w[y]).reshape(-1, 1, 28, 28)
    step = step / step.flatten(1).norm(dim=1)[:, None, None, None]
    found = attacks.shortened(net, x, x + 3 * away.max() * step, y)
    assert torch.allclose(found, away, rtol=5e-3)
