"""Two gloo processes with unequal parts of the data give one process's numbers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import bitwright
import pair
from bitwright import curvature
from bitwright.curvature import processes
from bitwright.curvature.hessian import Hessian
from bitwright.curvature.spectrum import top_eigenvalues

LOSS = nn.CrossEntropyLoss(torch.tensor([1.0, 6.0, 0.3]).double(), ignore_index=-1)
CASES: dict[str, tuple[Any, dict[str, float]]] = {
    "exact, kl": ("kl", {"tolerance": 0}),
    "exact, weighted": (LOSS, {"tolerance": 0}),
    "by chance": ("kl", {"tolerance": 0.2, "effort": 0.5}),
    "random signs": ("squared", {"tolerance": 0.3, "effort": 6}),
}


def made(case: str) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    outputs = 120 if case == "random signs" else 3
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, outputs)).double()
    x = torch.randn(11, 4, dtype=torch.float64)
    y = torch.randint(0, 3, (11,))
    y[4] = -1
    return model, 2 * x, y


def flat(found: bitwright.Sensitivity) -> np.ndarray:
    groups = [*found.layers.values(), *found.edges.values()]
    return np.stack(
        [np.concatenate([getattr(e, part) for e in groups])
         for part in ("value", "stderr_probe", "stderr_data")]
    )  # fmt: skip


def row_mean(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(outputs, targets.clamp(min=0))


PRODUCTS = {"products, kl": "kl", "products, weighted": LOSS, "products, any": row_mean}


def products(loss: Any, rows: slice) -> tuple[np.ndarray, np.ndarray]:
    """Hutchinson's traces, whose passes are the same in two processes, and eigenvalues."""
    model, x, y = made("")
    data = x[rows] if loss == "kl" else (x[rows], y[rows])
    drawn = curvature.hutchinson(model, data, loss, blocks="layer", probes=9, chunk=3)
    return flat(drawn), np.array([*top_eigenvalues(Hessian(model, data, loss)).values()])


def worker(rank: int, folder: str) -> None:
    rows = slice(0, 3) if rank == 0 else slice(3, 11)
    for case, (loss, options) in CASES.items():
        model, x, y = made(case)
        data = (x[rows], y[rows]) if loss is LOSS else x[rows]
        found = bitwright.traces(model, data, loss, chunk=2, **options)
        np.savez(f"{folder}/{case} {rank}.npz", flat(found), str(found.details))
    for case, loss in PRODUCTS.items():
        np.savez(f"{folder}/{case} {rank}.npz", *products(loss, rows))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("processes")
    pair.run(worker, str(place))
    return place


@pytest.mark.parametrize("case", CASES)
def test_two_processes_agree_with_one(case: str, folder: Path):
    loss, options = CASES[case]
    model, x, y = made(case)
    one = bitwright.traces(model, (x, y) if loss is LOSS else x, loss, **options)
    files = [np.load(folder / f"{case} {rank}.npz") for rank in range(2)]
    assert (files[0]["arr_0"] == files[1]["arr_0"]).all()  # to the last bit
    assert str(files[0]["arr_1"]) == str(files[1]["arr_1"])
    two, whole = files[0]["arr_0"], flat(one)
    np.testing.assert_allclose(two[:2], whole[:2], rtol=1e-9, atol=1e-12 * whole.max())
    np.testing.assert_allclose(two[2], whole[2], rtol=1e-6, atol=1e-9 * whole.max())
    assert one.details["backward_rows"] > 0
    part = flat(bitwright.traces(model, (x[:3], y[:3]) if loss is LOSS else x[:3], loss, **options))
    assert not np.allclose(part[0], whole[0], rtol=1e-3)  # a part is not the whole


@pytest.mark.parametrize("case", PRODUCTS)
def test_products_of_two_processes_agree_with_one(case: str, folder: Path):
    files = [np.load(folder / f"{case} {rank}.npz") for rank in range(2)]
    one, part = products(PRODUCTS[case], slice(0, 11)), products(PRODUCTS[case], slice(0, 3))
    for key, whole, some in zip(("arr_0", "arr_1"), one, part, strict=True):
        assert (files[0][key] == files[1][key]).all()
        np.testing.assert_allclose(files[0][key], whole, rtol=1e-9, atol=1e-12 * whole.max())
        assert not np.allclose(some, whole, rtol=1e-3)


def test_alone_a_group_is_this_process():
    group = processes.group()
    t = torch.arange(4.0)
    assert (group.rank, group.size) == (0, 1)
    assert group.total(t) is not t and torch.equal(group.total(t), t)
    assert torch.equal(group.shard(t), t) and torch.equal(group.joined(t), t)


def command(out: Path, *before: str) -> subprocess.CompletedProcess[str]:
    arguments = ["measure", "--model", "demo", "--data", "demo", "--calibration-rows", "41"]
    return subprocess.run(
        [*before, "-m", "bitwright", *arguments, "--out", str(out), "--quiet"],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


@pytest.mark.slow
def test_torchrun_measures_what_one_process_does(tmp_path: Path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    two = command(tmp_path / "two", *torchrun, "--nproc-per-node", "2")
    assert two.returncode == 0, two.stderr
    assert two.stdout.count("Hessian trace") == 1
    one = command(tmp_path / "one", sys.executable)
    assert one.returncode == 0, one.stderr
    a, b = (curvature.load(tmp_path / name / "sensitivity.safetensors") for name in ("one", "two"))
    assert (
        a.key == b.key and a.layers.keys() == b.layers.keys() and a.edges.keys() == b.edges.keys()
    )
    np.testing.assert_allclose(flat(a)[0], flat(b)[0], rtol=1e-4, atol=1e-9)
    again = command(tmp_path / "two", *torchrun, "--nproc-per-node", "2")  # nothing left to do
    assert again.returncode == 0, again.stderr
