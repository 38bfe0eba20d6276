"""What people type in Python, and the one line that answers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import bitwright
from bitwright.checkpoint import load_model
from bitwright.cli.tables import with_error
from bitwright.pipeline import Run, Settings, search
from bitwright.pipeline.methods import METHODS
from bitwright.task import Task
from small import refused

X = torch.randn(24, 3, 6, 6, generator=torch.Generator().manual_seed(0))
Y = torch.arange(24) % 4


def net() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 4)).eval()


MISTAKES: dict[str, tuple[Callable[[Path], Any], tuple[str, ...]]] = {
    "budget": (lambda p: bitwright.compress(net(), X, budget=3, out=p),  # type: ignore[arg-type]
               ("budget 3 is not like 3bit",)),
    "option": (lambda p: bitwright.compress(net(), X, out=p, metod="layers"),
               ("compress has no option 'metod'; did you mean 'method'?",)),
    "drop": (lambda p: bitwright.compress(net(), X, out=p, max_drop=1.0),
             ("needs labels", "calibration=(x, y)")),
    "a file": (lambda p: bitwright.compress(net(), X, out=__file__), ("a file is in the way",)),
    "keep": (lambda p: bitwright.prune(net(), X, keep=0.8, out=p),  # type: ignore[arg-type]
             ("0.8",)),
    "layout": (lambda p: bitwright.traces(net(), X.permute(0, 2, 3, 1)),
               ("Sequential does not take a batch of (3, 6, 6, 3)", "as the model takes them")),
    "bytes": (lambda p: bitwright.traces(net(), X.byte()), ("torch.uint8",)),
    "float labels": (lambda p: bitwright.traces(net(), (X, Y.float()), nn.CrossEntropyLoss()),
                     ("targets are torch.float32 of shape (24,)", "class numbers")),
    "labels beyond": (lambda p: bitwright.traces(net(), (X, Y + 3), nn.CrossEntropyLoss()),
                      ("label 4 is out of range: the outputs have 4 classes",)),
    "no run": (lambda p: bitwright.compare([p / "a", p / "b"]), ("there is no folder",)),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_one_line_answers(name: str, tmp_path: Path):
    act, parts = MISTAKES[name]
    with refused(*parts):
        act(tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("broken", ["none", "over"])
def test_an_allocator_that_errs_is_named(
    broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    method = METHODS["layers"]

    def solve(bench: Any, problem: Any) -> Any:
        if broken == "none":
            return None
        return bitwright.allocate.make_plan(problem, np.full(len(problem.names), 7), "mine")

    monkeypatch.setitem(METHODS, "layers", type(method)(**{**vars(method), "solve": solve}))
    run = Run(Task(net(), X), Settings(method="layers"), tmp_path)
    with refused("the method layers gives", "not a plan" if broken == "none" else "exceeds"):
        search.solve(run.bench, "layers", 1000)


def test_arrays_pairs_and_loaders_are_rows(tmp_path: Path):
    from bitwright.pipeline.tasks import task_of

    loader = DataLoader(TensorDataset(X, Y), batch_size=8)
    plain = task_of(net(), X, (X + 1, Y), 0, "compress")
    for calibration in ((X, Y), [X, Y], (X.numpy(), Y.numpy()), loader):
        found = task_of(net(), calibration, [X + 1, Y], 0, "compress")
        assert torch.equal(found.calibration, X) and found.calibration_labels is not None
        assert torch.equal(found.calibration_labels, Y)
        assert found.test is not None and plain.test is not None
        assert torch.equal(found.test, plain.test)
    batches = task_of(net(), [X[:8], X[8:16]], None, 0, "compress")
    assert torch.equal(batches.calibration, X[:16]) and batches.calibration_labels is None
    theirs, ours = (bitwright.traces(net(), data, effort=0.1) for data in (X.numpy(), X))
    assert theirs.layers["0"].value.tolist() == ours.layers["0"].value.tolist()


def test_weights_nobody_loads_are_the_same_in_every_process(tmp_path: Path):
    (tmp_path / "own.py").write_text("from torch import nn\ndef net(): return nn.Linear(3, 2)\n")
    first = load_model(f"{tmp_path}/own.py:net")
    torch.manual_seed(5)
    drawn = torch.randn(3)
    torch.manual_seed(5)
    again = load_model(f"{tmp_path}/own.py:net")
    assert torch.equal(first.get_parameter("weight"), again.get_parameter("weight"))
    assert torch.equal(drawn, torch.randn(3))  # and the caller's numbers are the caller's


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [(0.0111, 0.0013, "0.0111 ± 0.0013"), (1.41e-4, 1.2e-5, "0.000141 ± 0.000012"),
     (0.0, 0.0, "0.0000 ± 0.0000"), (3.5, 0.4, "3.5000 ± 0.4000"),
     (2e-11, 1e-12, "0.000000000 ± 0.000000000")],
)  # fmt: skip
def test_errors_have_two_figures(value: float, error: float, text: str):
    assert with_error(value, error) == text
