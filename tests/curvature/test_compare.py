"""The Hessian beside its Gauss-Newton matrix, against both dense."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import bitwright
from bitwright.curvature import compare
from bitwright.curvature.compare import told
from bitwright.curvature.hessian import Hessian
from bitwright.curvature.spectrum import block
from bitwright.errors import BitwrightError

LOSS = nn.CrossEntropyLoss()


def made() -> tuple[nn.Module, tuple[torch.Tensor, torch.Tensor]]:
    torch.manual_seed(0)
    parts = [nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)]
    return nn.Sequential(*parts).double(), (torch.randn(8, 3).double(), torch.arange(8) % 3)


def test_sizes_are_ratios_of_frobenius_norms():
    model, data = made()
    runs = [compare(model, data, LOSS, seed=s) for s in range(60)]
    dense = {kind: Hessian(model, data, LOSS, kind=kind) for kind in ("hessian", "gauss-newton")}
    for name in ("0", "2"):
        eye = torch.eye(dense["hessian"].weights[f"{name}.weight"].numel()).double()
        h, g = (torch.stack([block(d, f"{name}.weight")(e) for e in eye]) for d in dense.values())
        found = np.array([r[name].size for r in runs])
        ratio = float((h - g).norm() / g.norm())
        assert np.median(found) == pytest.approx(ratio, rel=0.3, abs=1e-9)
        traces = np.array([r[name].trace for r in runs])
        true = float((h - g).trace() / g.trace())
        assert abs(np.median(traces) - true) <= 4 * traces.std() / np.sqrt(len(runs)) + 0.05


def test_it_says_where_they_differ():
    """The last layer is linear in its weights, and so is what comes before a ReLU."""
    model, data = made()
    found = compare(model, data, LOSS)
    assert list(found) == ["0", "2", "4"]
    assert found["0"].size > 0.1 and found["2"].size < 1e-9 and found["4"].size < 1e-9
    assert told(found).startswith("0 by ") and "2" not in told(found).split()
    measured = bitwright.traces(model, data, LOSS, kind="auto")
    assert measured.details["hessian_differs"] == told(found)
    assert "hessian_differs" not in bitwright.traces(model, data, LOSS).details


def test_the_divergence_to_the_model_itself_has_one_hessian():
    model, (x, _) = made()
    found = compare(model, iter([x[:5], x[5:]]), "kl")
    assert max(abs(d.size) for d in found.values()) < 1e-9
    assert told(found) == ""
    once = bitwright.traces(model, iter([x[:5], x[5:]]), kind="auto")  # read once, used twice
    assert once.details["hessian_differs"] == ""


def test_a_layer_that_does_not_count():
    model, (x, y) = made()
    with torch.no_grad():
        model[4].weight.zero_()
    found = compare(model, (x, y), LOSS)
    assert found["0"].size == 0 and found["4"].size < 1e-9


def test_refusals():
    model, data = made()
    with pytest.raises(BitwrightError, match="sum of heads is not compared"):
        compare(model, data, [LOSS, LOSS])
    with pytest.raises(BitwrightError, match="kind 'fisher' is unknown"):
        bitwright.traces(model, data, LOSS, kind="fisher")
