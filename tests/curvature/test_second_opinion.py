"""Our operators beside hessian-eigenthings', where it is installed (`pip install --no-deps`)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import bitwright
from bitwright.curvature import hutchinson
from bitwright.curvature.hessian import Hessian
from bitwright.curvature.spectrum import top_eigenvalues, whole

peer: Any = pytest.importorskip("hessian_eigenthings")

CE = nn.CrossEntropyLoss()


def made() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Conv2d(4, 6, 2), nn.GELU(), nn.Flatten(), nn.Linear(24, 3)
    )
    return model.double().eval(), torch.randn(12, 1, 5, 5).double(), torch.arange(12) % 3


def matrices(name: str, param: nn.Parameter) -> bool:
    return param.ndim > 1


def test_products():
    model, x, y = made()
    ours, size = whole(Hessian(model, (x, y), CE, chunk=5))
    batches = list(zip(x.split(6), y.split(6), strict=True))
    theirs = peer.HessianOperator(model, batches, peer.supervised_loss(CE), param_filter=matrices)
    assert size == theirs.size
    v = torch.randn(size, generator=torch.Generator().manual_seed(1)).double()
    torch.testing.assert_close(ours(v), theirs.matvec(v), rtol=1e-9, atol=1e-12)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(1.01 * ours(v), theirs.matvec(v), rtol=1e-9, atol=1e-12)


def block(model: nn.Module, x: Tensor, y: Tensor, name: str) -> Any:
    loss = peer.supervised_loss(CE)
    return peer.HessianOperator(model, [(x, y)], loss, param_filter=peer.match_names(name))


def test_largest_eigenvalues():
    model, x, y = made()
    for name, value in top_eigenvalues(Hessian(model, (x, y), CE), tolerance=1e-7).items():
        operator = block(model, x, y, name)
        found = peer.lanczos(operator, k=1, max_iter=30, which="LA", seed=0)
        assert value == pytest.approx(float(found.eigenvalues[0]), rel=1e-5), name


def test_random_signs_are_within_four_standard_errors():
    model, x, y = made()
    ours = hutchinson(model, (x, y), CE, blocks="channel", probes=100).layers
    for name, e in ours.items():
        theirs = peer.trace(
            block(model, x, y, f"{name}.weight"), num_matvecs=400, method="hutchinson", seed=1
        )
        # the channels' probes do not meet: their errors add up as squares
        error = math.hypot(float(np.sqrt(np.square(e.stderr_probe).sum())), theirs.stderr)
        assert abs(e.value.sum() - theirs.estimate) <= 4 * error, name


def test_gauss_newton():
    model, x, y = made()
    operator = peer.GGNOperator(
        model, [(x, y)], peer.supervised_forward, peer.supervised_loss_of_output(CE),
        param_filter=matrices,
    )  # fmt: skip
    unit = torch.eye(operator.size, dtype=torch.float64)
    diagonal = torch.stack([operator.matvec(e)[i] for i, e in enumerate(unit)]).detach()
    found = bitwright.traces(model, (x, y), CE, tolerance=0).layers
    weights = {n: p for n, p in model.named_parameters() if p.ndim > 1}
    parts = diagonal.split([w.numel() for w in weights.values()])
    for (name, weight), part in zip(weights.items(), parts, strict=True):
        traces = part.reshape(len(weight), -1).sum(1).numpy()
        np.testing.assert_allclose(found[name.removesuffix(".weight")].value, traces, rtol=1e-9)
