"""`compress` as a function, `load`, and what a killed run leaves."""

from __future__ import annotations

import ast
import copy
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import bitwright
from bitwright import BitwrightError, Settings
from bitwright.pipeline.bench import Workbench
from bitwright.pipeline.budget import parse_budget
from bitwright.pipeline.calls import compress_call
from bitwright.report import from_json
from pipeline import tiny


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> bitwright.Result:
    """From rows alone: no labels, no test rows."""
    folder = tmp_path_factory.mktemp("made") / "run"
    return bitwright.compress(tiny.network(), tiny.rows(80), budget="3bit", out=folder)


def test_the_result(made: bitwright.Result):
    assert made.plan.method == "channels" and made.plan.cost <= 3 * tiny.WEIGHTS
    assert tuple(made.sensitivity.layers) == tiny.LAYERS
    assert made.verification.ok and made.verification.rows == 16
    assert made.judgement.metric is None and made.judgement.agreement is not None
    assert [row.name for row in made.rivals] == ["float", "uniform", "layers", "channels"]
    assert [row.name for row in made.rivals if row.chosen] == ["channels"]
    for name in ("model.onnx", "model.safetensors"):
        assert made.sizes[name] == (made.folder / name).stat().st_size
    for name in (*tiny.RESULTS, "verify.json", "timings.json", "summary.json", "report.html"):
        assert (made.folder / name).stat().st_size > 0
    assert not list(made.folder.glob("*.part"))
    assert json.loads((made.folder / "verify.json").read_text())["ok"] is True


def test_the_report_is_priced_as_the_plan_was(made: bitwright.Result):
    summary = from_json((made.folder / "summary.json").read_text())
    assert summary.chosen_loss == pytest.approx(made.plan.loss)
    (channels,) = (row for row in summary.frontiers if row.name == "channels")
    bits = made.plan.cost / tiny.WEIGHTS
    (loss,) = (v for b, v in channels.points if b == pytest.approx(bits))
    assert loss == pytest.approx(made.plan.loss), "the chosen plan stands on its frontier"
    assert summary.settings["budget"] == "3bit" and summary.settings["activations"] == "8"
    stages = json.loads((made.folder / "stages.json").read_text())
    assert summary.key == stages["export"]["key"] and summary.task
    found = bitwright.compare(made.folder, shutil.copytree(made.folder, f"{made.folder}-2"))
    assert found.differing == () and found.notes == () and all(r.finished for r in found.runs)


EVERY = Settings(
    budget=None, max_kl=np.float64(0.05), method="cw-hawq", score="trace", activations=None,
    epochs=2, order="hawq", seed=7, overrides={"0": {"min": np.int64(2)}, "ties": [["3", "7"]]},
    skip=("7",), evaluations=9, batch=2, processes=1, calibration_rows=77, max_bops="1.2G",
    max_latency="3ms", profile="it's.json", rounding="feedback", ranges="squared", equalize=0.5,
    granularity="channel", augment="flip", temperature=1e-3, rate=0.1 + 0.2, refit_head=True,
    accumulator=16, accumulator_kind="pairs", accumulator_mode="data", levels="multi-bit",
    device="cuda",
)  # fmt: skip


@pytest.mark.parametrize(
    "settings",
    [
        Settings(),
        Settings(budget=parse_budget("12.5%"), activations="auto", skip=["0", "3"]),  # type: ignore[arg-type]
        Settings(budget=None, max_drop=1),
        EVERY,
    ],
)
def test_the_call_in_the_report_asks_for_the_same(settings: Settings):
    """Python itself reads the line back: its literals are the settings."""
    line = compress_call(["model", "calibration", "out='it\\'s'"], settings)
    called = ast.parse(line, mode="eval").body
    assert isinstance(called, ast.Call) and ast.unparse(called.func) == "bitwright.compress"
    found = {str(k.arg): ast.literal_eval(k.value) for k in called.keywords}
    assert found.pop("out") == "it's"
    budget = found.pop("budget", None)
    assert Settings(budget=budget and parse_budget(budget), **found) == settings
    default = Settings()
    assert all(value != getattr(default, name) for name, value in found.items())
    if settings is EVERY:  # none was forgotten here either
        assert set(found) == {f.name for f in fields(Settings)} - {"budget", "max_drop"}


def test_the_report_tells_how_far_each_layer_moved(made: bitwright.Result):
    found = from_json((made.folder / "summary.json").read_text())
    assert 0 < found.error_rows <= 32
    errors = {row.name: row.output_error for row in found.layers}
    assert list(errors) == list(tiny.LAYERS)
    assert all(e is not None and 0 < e < 1 for e in errors.values()), errors


def test_the_report_of_a_call_says_how_it_was_called(made: bitwright.Result):
    text = (made.folder / "summary.json").read_text()
    wanted = f"bitwright.compress(model, calibration, out={str(made.folder)!r}, budget='3bit')"
    assert from_json(text).command == wanted


def test_what_is_loaded_answers_as_the_file_does(made: bitwright.Result):
    x = tiny.rows(50, 7)
    path = made.folder / "model.onnx"
    live = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (theirs,) = live.run(None, {live.get_inputs()[0].name: x.numpy()})
    for network in (
        bitwright.load(made.folder),
        bitwright.load(made.folder / "model.safetensors"),
        made.network(),
    ):
        np.testing.assert_array_equal(network(x).numpy(), theirs)


def test_load_of_nothing(tmp_path: Path):
    for path in (tmp_path / "gone", tmp_path):
        with pytest.raises(BitwrightError, match="there is no"):
            bitwright.load(path)
    (tmp_path / "model.safetensors").write_bytes(b"\0" * 99)
    with pytest.raises(BitwrightError, match="no checksum of bitwright"):
        bitwright.load(tmp_path)


def test_a_loader_does_as_well_and_the_caller_keeps_all(made: bitwright.Result, tmp_path: Path):
    x = tiny.rows(80)
    model = tiny.network().train()
    before = copy.deepcopy(model.state_dict())
    loader = DataLoader(TensorDataset(x, tiny.labels_of(x)), batch_size=30)
    seen: list[tuple[str, float]] = []
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    again = bitwright.compress(
        model, loader, out=tmp_path / "run", progress=lambda s, f: seen.append((s, f))
    )
    assert random.getstate() == states[0]
    assert all(np.array_equal(a, b) for a, b in zip(np.random.get_state(), states[1], strict=True))
    assert torch.equal(torch.get_rng_state(), states[2])
    assert all(m.training for m in model.modules())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    # labels change nothing but what is judged
    assert again.judgement.metric is not None
    assert tiny.digests(tmp_path / "run") == tiny.digests(made.folder)
    assert {s for s, _ in seen} >= {
        "preflight",
        "measure",
        "search",
        "quantize",
        "export",
        "report",
    }
    assert all(0 <= f <= 1 for _, f in seen)


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (None, "calibration rows"),
        ([], "empty"),
        (5, "int"),
        ("text", "str"),
        ([torch.zeros(3, 1, 8, 8), torch.zeros(3, 1, 9, 9)], "batch 1"),
        ([{"x": 1}], "batch 0"),
        (np.zeros((9, 1, 8, 8)), "float64"),
        (torch.zeros(9, 8), "does not take rows"),
    ],
)
def test_rows_that_are_none(rows: object, says: str, tmp_path: Path):
    with pytest.raises(BitwrightError, match=says):
        bitwright.compress(tiny.network(), rows, out=tmp_path / "run")  # type: ignore[arg-type]
    assert not (tmp_path / "run").exists()


def test_options_that_are_none(tmp_path: Path):
    with pytest.raises(BitwrightError, match="budgt"):
        bitwright.compress(tiny.network(), tiny.rows(9), out=tmp_path / "run", budgt="3bit")
    with pytest.raises(BitwrightError, match="feasible range"):
        bitwright.compress(tiny.network(), tiny.rows(9), out=tmp_path / "run", budget="0.9bit")
    assert not (tmp_path / "run").exists()


# ----------------------------------------------------------------------------------------- kill -9


def kill_when(words: list[str], ready: Callable[[], bool], wait_s: float) -> None:
    """Start `bitwright words…`, and kill it `wait_s` after it is `ready`."""
    process = subprocess.Popen(
        [sys.executable, "-m", "bitwright", *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    deadline = time.monotonic() + 120
    while not ready():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.005)
    time.sleep(wait_s)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="no SIGKILL")
def test_killed_runs_go_on_where_they_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    tiny.write(tmp_path)
    calls = []

    def counted(bench: Workbench, plan: bitwright.Plan) -> float:
        calls.append(plan)
        return evaluate(bench, plan)

    evaluate = Workbench.reward
    monkeypatch.setattr(Workbench, "reward", counted)
    options = tiny.given(tmp_path, method="cw-hawq", evaluations=12)
    killed, calm = tmp_path / "killed", tmp_path / "calm"
    assert tiny.call("compress", *options, "--out", str(calm)) == 0
    assert len(calls) == 12
    words = ["compress", *options, "--out", str(killed)]

    def log() -> bytes:
        return b"".join(p.read_bytes() for p in killed.glob("search-*.jsonl"))

    wait = random.Random(time.time_ns()).uniform(0, 0.3)  # any moment must do
    kill_when(words, (killed / "run.json").exists, wait)
    kill_when(words, (killed / "sensitivity.safetensors").exists, wait / 5)
    kill_when(words, lambda: log().count(b"\n") >= 3, 0)
    (killed / "plan.json").unlink(missing_ok=True)  # should the kill have come too late
    (path,) = killed.glob("search-*.jsonl")
    lines = path.read_bytes().splitlines(keepends=True)
    whole = sum(line.endswith(b"\n") for line in lines) - 1
    path.write_bytes(b"".join(lines[:whole]) + lines[whole][:20])
    calls.clear()
    assert tiny.call("compress", *options, "--out", str(killed)) == 0
    assert len(calls) == 12 - whole
    assert tiny.digests(killed) == tiny.digests(calm)
    assert path.read_bytes() == (calm / path.name).read_bytes()
