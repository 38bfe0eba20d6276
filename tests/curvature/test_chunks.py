"""What is multiplied at once is a matter of memory: any size of a block gives the same numbers."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bitwright import curvature
from bitwright.curvature import Sensitivity, forms, row_squares, visits
from bitwright.network import build
from mutants import mutated
from small import Fn

ROWS = 7


def twice(m: Fn, x: Tensor) -> Tensor:
    """An embedding used twice, a grouped convolution used twice, and a head."""
    y = m.table(x) + m.table((x + 1) % 5)
    y = torch.relu(m.block(torch.relu(m.block(y.mT))))
    return m.head(y.mean(2))


def made() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model = Fn(
        twice,
        table=nn.Embedding(5, 4),
        block=nn.Conv1d(4, 4, 3, padding=1, groups=2),
        head=nn.Linear(4, 3),
    ).double()
    with torch.no_grad():
        model.head.weight *= 6
        model.block.bias += 0.5
    return model.eval(), torch.randint(0, 5, (ROWS, 6))


def once() -> tuple[nn.Module, Tensor]:
    """Every layer used once, of many and of few positions."""
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.Tanh(), nn.Conv2d(3, 8, 3, groups=1), nn.Tanh(), nn.Flatten(),
        nn.Linear(8 * 4, 3),
    ).double()  # fmt: skip
    return model.eval(), torch.randn(ROWS, 2, 6, 6, dtype=torch.float64)


def off(found: Sensitivity, wanted: Sensitivity) -> list[str]:
    assert found.layers.keys() == wanted.layers.keys()
    return [
        n
        for n, e in found.layers.items()
        if not np.allclose(e.value, wanted.layers[n].value, rtol=1e-10, atol=1e-14)
        or not np.allclose(e.stderr_data, wanted.layers[n].stderr_data, rtol=1e-10, atol=1e-14)
    ]


SIZES = [
    (row_squares, "_BLOCK", 1),
    (row_squares, "_BLOCK", 1_000),
    (row_squares, "_LIMIT", 1),
    (row_squares, "_LIMIT", 60),
    (visits, "_AT_ONCE", 1),
    (visits, "_AT_ONCE", 4),
    (visits, "_MOST", 1),
    (visits, "_MOST", 2),
]


@pytest.mark.parametrize(("module", "name", "size"), SIZES)
@pytest.mark.parametrize("net", [once, twice])
def test_traces_do_not_depend_on_what_is_done_at_once(
    net: object, module: object, name: str, size: int, monkeypatch: pytest.MonkeyPatch
):
    model, x = once() if net is once else made()
    wanted = curvature.traces(model, x, tolerance=0.0, chunk=ROWS)
    assert all((e.value > 0).any() for e in wanted.layers.values())
    monkeypatch.setattr(module, name, size)
    assert off(curvature.traces(model, x, tolerance=0.0, chunk=ROWS), wanted) == []


def test_a_block_that_is_averaged_is_seen():
    model, x = made()
    wanted = curvature.traces(model, x, tolerance=0.0)
    old = "total.square_().sum(-1)"
    with mutated(
        "curvature.row_squares", old, f"{old}.mean(0, keepdim=True).expand(len(total), -1)"
    ):
        assert off(curvature.traces(model, x, tolerance=0.0), wanted)


@pytest.mark.parametrize("size", [1, 30, 100])
@pytest.mark.parametrize("net", [once, twice])
def test_forms_do_not_depend_on_what_is_done_at_once(
    net: object, size: int, monkeypatch: pytest.MonkeyPatch
):
    model, x = once() if net is once else made()
    network = build(model, x)
    generator = torch.Generator().manual_seed(1)
    changes = {
        la.name: torch.randn(la.rows, 2, la.fan_in + 1, generator=generator, dtype=torch.float64)
        for la in network.layers
    }
    wanted = forms.quadratic_forms(network, x, changes, tolerance=0.0, chunk=ROWS)
    monkeypatch.setattr(forms, "_LIMIT", size)
    found = forms.quadratic_forms(network, x, changes, tolerance=0.0, chunk=ROWS)
    for name, e in wanted.items():
        assert (e.value > 0).any()
        assert np.allclose(found[name].value, e.value, rtol=1e-10, atol=1e-14), name


@pytest.mark.parametrize("size", [1, 3, 100])
def test_probes_are_the_same_in_rounds_of_any_size(size: int, monkeypatch: pytest.MonkeyPatch):
    model, x = once()
    wanted = curvature.hutchinson(model, x, probes=7, chunk=3)
    monkeypatch.setattr(sys.modules["bitwright.curvature.hutchinson"], "_ROUND", size)
    assert off(curvature.hutchinson(model, x, probes=7, chunk=3), wanted) == []
