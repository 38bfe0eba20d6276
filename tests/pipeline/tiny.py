"""A network of a thousand weights, eighty rows of 8×8, and the command line in this process."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bitwright import Task, cli
from bitwright.curvature import make_key
from bitwright.pipeline import measured as stages

MODEL = """
import torch
from torch import nn


def build(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, 12, 3, stride=2, padding=1), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 4),
        )
        with torch.no_grad():
            model[1](model[0](torch.randn(64, 1, 8, 8)))
            model[-1].weight *= 12
    return model.eval()


def network():
    return build()


def other():
    return build(1)
"""

LAYERS = ("0", "3", "7")
#: weights of `MODEL` that get widths
WEIGHTS = 8 * 9 + 12 * 72 + 4 * 12
#: files that must be the same bytes for the same seed
RESULTS = ("sensitivity.safetensors", "plan.json", "model.safetensors", "model.onnx")


def network(seed: int = 0) -> nn.Module:
    """The model of `MODEL`."""
    scope: dict[str, Any] = {}
    exec(MODEL, scope)
    found: nn.Module = scope["build"](seed)
    return found


def rows(count: int = 80, seed: int = 0) -> Tensor:
    """Rows [count, 1, 8, 8]: noise with a mean of its own for each."""
    generator = torch.Generator().manual_seed(seed)
    means = 2 * torch.randn(count, 1, 1, 1, generator=generator)
    return torch.randn(count, 1, 8, 8, generator=generator) + means


def labels_of(x: Tensor) -> Tensor:
    """What the model itself answers, so that it is right on every row."""
    with torch.no_grad():
        found: Tensor = network()(x).argmax(1)
    return found


def arrays(seed: int = 0) -> dict[str, np.ndarray]:
    """Eighty calibration rows and forty test rows, with labels."""
    x, test = rows(80, seed), rows(40, seed + 100)
    return {
        "train_x": x.numpy(),
        "train_y": labels_of(x).numpy(),
        "test_x": test.numpy(),
        "test_y": labels_of(test).numpy(),
    }


def task(**changes: Any) -> Task:
    """The model, eighty calibration rows and forty test rows, with labels."""
    x, test = rows(80), rows(40, 100)
    return replace(Task(network(), x, labels_of(x), test, labels_of(test)), **changes)


def write(folder: Path) -> None:
    """`net.py` and `data.npz` in `folder`."""
    (folder / "net.py").write_text(MODEL)
    np.savez(folder / "data.npz", **arrays())


def ran(folder: Path, command: str) -> Path:
    """`folder` with what `write` makes, and with a `run` that `command` has made of it."""
    write(folder)
    assert call(command, *given(folder, out=folder / "run"), "--quiet") == 0
    return folder


def given(place: Path, **changes: Any) -> list[str]:
    """`--model … --data …` of the files `write` made, with other options added or replaced."""
    options = {"model": f"{place}/net.py:network", "data": f"npz:{place}/data.npz", **changes}
    words = []
    for name, value in options.items():
        if value is not None:
            words += [f"--{name.replace('_', '-')}", str(value)]
    return words


@contextmanager
def quickly() -> Iterator[None]:
    """Preflight once for each network, and one thread: two fight over a busy machine's cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")  # for processes started here
        patch.setattr(stages, "preflight", Remembered(stages.preflight))
        yield
    torch.set_num_threads(threads)


class Remembered:
    """`preflight` that does its work once for each network; three seconds saved each time."""

    def __init__(self, real: Any) -> None:
        self.real = real
        self.known: dict[str, tuple[Any, bytes]] = {}

    def __call__(self, model: nn.Module, network: Any, x: Tensor, path: Path, rows: int) -> Any:
        key = make_key(*(v.numpy() for v in model.state_dict().values()), network.skipped)
        if key not in self.known:
            found = self.real(model, network, x, path, rows)
            self.known[key] = found, path.read_bytes()
        found, content = self.known[key]
        path.write_bytes(content)
        return found


def call(*words: str) -> int:
    """Exit status of `bitwright words…`, run in this process."""
    before = sys.argv
    sys.argv = ["bitwright", *words]
    try:
        cli.main()
    except SystemExit as end:
        code = end.code
        return code if isinstance(code, int) else 0 if code is None else 1
    finally:
        sys.argv = before
    return 0


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line that `bitwright words…` refuses its input with."""
    capsys.readouterr()
    code = call(*words)
    out, err = capsys.readouterr()
    assert code == 2, (code, out, err)
    assert err.startswith("bitwright: ") and err.endswith("\n") and err.count("\n") == 1, err
    assert "Traceback" not in out + err
    return err


def digests(folder: Path, names: Iterable[str] = RESULTS) -> dict[str, str]:
    """SHA-256 of files."""
    return {n: hashlib.sha256((folder / n).read_bytes()).hexdigest() for n in names}
