"""The command line: every stage, and one line for every kind of bad input."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import bitwright
from bitwright.cli.memory import remember
from bitwright.curvature import processes
from bitwright.pipeline import METHODS, ROUNDINGS
from bitwright.pipeline import measured as stages
from bitwright.quantize import SCORES
from pipeline import tiny
from pipeline.tiny import call, given, refused

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `net.py`, `data.npz` and a finished `run`."""
    return tiny.ran(tmp_path_factory.mktemp("cli"), "compress")


@pytest.fixture
def finished(place: Path, tmp_path: Path) -> Path:
    """A copy of the finished run."""
    return shutil.copytree(place / "run", tmp_path / "run")


def content(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


# ------------------------------------------------------------------------------------- all stages


def test_the_public_names():
    assert bitwright.__all__ == [
        "BitwrightError",
        "Data",
        "Estimate",
        "IntegerNetwork",
        "Plan",
        "Problem",
        "Result",
        "Sensitivity",
        "Settings",
        "Task",
        "Trainable",
        "Verification",
        "__version__",
        "compare",
        "compress",
        "convert",
        "hessian_norm",
        "load",
        "load_pruned",
        "prepare",
        "prune",
        "saga",
        "traces",
    ]
    assert len(bitwright.__all__) <= 25
    assert all(hasattr(bitwright, name) for name in bitwright.__all__)


@pytest.mark.slow
def test_stages_one_by_one_remember_the_options(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "run [1]"
    files = {
        "measure": "sensitivity.safetensors",
        "search": "plan.json",
        "quantize": "quantized.safetensors",
        "finetune": "model.safetensors",
        "export": "model.onnx",
        "verify": "verify.json",
    }
    assert call("preflight", *given(place, budget="2.5bit", out=out)) == 0
    assert (out / "float.onnx").is_file()
    for stage, file in files.items():
        assert not (out / file).exists()
        capsys.readouterr()
        assert call(stage, "--out", str(out), "--quiet") == 0, stage
        assert (out / file).is_file()
        printed = capsys.readouterr().out
        assert stage == "verify" or str(out / file) in printed, printed
    assert not (out / "report.html").exists()
    assert call("evaluate", "--out", str(out), "--quiet") == 0
    assert call("report", "--out", str(out), "--quiet") == 0
    assert (out / "report.html").is_file()
    printed = capsys.readouterr().out
    assert "channels" in printed and "5 of 5 integer tensors equal" in printed
    # what is typed comes before what is remembered
    assert call("search", "--out", str(out), "--budget", "4bit", "--quiet") == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert 3.9 < float(printed.split(" bits, ")[1].split()[0]) <= 4
    assert call("search", "--out", str(out), "--max-kl", "10", "--quiet") == 0
    assert "1.0000 a weight" in " ".join(capsys.readouterr().out.split())


def test_refit_head_goes_on_from_a_finished_run(finished: Path, capsys: pytest.CaptureFixture[str]):
    options = json.loads((finished / "run.json").read_text())
    del options["refit_head"], options["hmac"]  # a run that is older than the option
    remember(finished / "run.json", options)
    before = content(finished)
    capsys.readouterr()
    assert call("refit-head", "--out", str(finished), "--quiet") == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert printed.startswith("head '7' ") and "20 held-out calibration rows" in printed
    after = content(finished)
    assert after["tuned.safetensors"] == before["model.safetensors"] != after["model.safetensors"]
    # remembered by what follows, until it is taken back
    assert call("verify", "--out", str(finished), "--quiet") == 0
    assert content(finished)["model.onnx"] == after["model.onnx"]
    assert call("export", "--out", str(finished), "--no-refit-head", "--quiet") == 0
    for name in ("model.safetensors", "model.onnx"):
        assert content(finished)[name] == before[name]


def test_progress_is_plain_lines_or_nothing(place: Path, capsys: pytest.CaptureFixture[str]):
    from bitwright.console import Bars

    for quiet in (False, True):
        with Bars(quiet) as bars:
            bars.begun["measure"] = bars.told["measure"] = 0.0
            bars.print("[note]")
            bars.update("measure", 0.5)
            bars.begun["measure"] = 0.0
            bars.update("measure", 1.0)
            bars.update("measure", 1.0)
        out, err = capsys.readouterr()
        assert not err and "\x1b" not in out and "\r" not in out
        lines = out.splitlines()
        if quiet:
            assert not lines
        else:
            assert lines[0] == "[note]" and lines[1].startswith("measure: 50%, about ")
            assert lines[2].startswith("measure: done in ") and len(lines) == 3


def test_control_c_says_how_to_go_on(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(stages, "build", interrupt)
    assert call("compress", *given(place, out=tmp_path / "run")) == 130
    assert capsys.readouterr().err == "bitwright: interrupted; the same command continues\n"


# -------------------------------------------------------------------------------------- bad input


def npz(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], dict[str, Any]]:
    """Options with a data file that `change` has spoilt."""

    def make(folder: Path) -> dict[str, Any]:
        arrays: dict[str, Any] = tiny.arrays()
        change(arrays)
        np.savez(folder / "bad.npz", **arrays)
        return {"data": f"npz:{folder}/bad.npz"}

    return make


def code(text: str, **options: str) -> Callable[[Path], dict[str, Any]]:
    """Options naming things in a file with the model's source and `text`."""

    def make(folder: Path) -> dict[str, Any]:
        (folder / "bad.py").write_text(tiny.MODEL + text)
        return {k: v.replace("@", f"{folder}/bad.py:") for k, v in options.items()}

    return make


def overrides(text: str) -> Callable[[Path], dict[str, Any]]:
    def make(folder: Path) -> dict[str, Any]:
        (folder / "bad.yaml").write_text(text)
        return {"overrides": folder / "bad.yaml"}

    return make


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("owned",)


def weights(kind: str) -> Callable[[Path], dict[str, Any]]:
    def make(folder: Path) -> dict[str, Any]:
        state = tiny.network().state_dict()
        path = folder / f"w.{'safetensors' if kind != 'evil' else 'pt'}"
        if kind == "evil":
            path.write_bytes(pickle.dumps({"state_dict": Evil()}))
        else:
            if kind == "shape":
                state["7.weight"] = torch.zeros(4, 13)
            else:
                state["7.weight"][0, 0] = torch.nan
            save_file(state, path)
        return {"weights": path}

    return make


BAD: dict[str, tuple[Any, tuple[str, ...]]] = {
    "model file missing": ({"model": "gone.py:network"}, ("gone.py",)),
    "factory missing": (code("", model="@netwrok"), ("did you mean network",)),
    "factory raises": (
        code("\ndef bad():\n    raise OSError('no\\nway')\n", model="@bad"),
        ("OSError", "no"),
    ),
    "not a module": (code("\ndef bad():\n    return 3\n", model="@bad"), ("int", "Module")),
    "weights missing": ({"weights": "gone.pt"}, ("gone.pt",)),
    "weights of another shape": (weights("shape"), ("7.weight", "(4, 13)", "(4, 12)")),
    "weights with NaN": (weights("nan"), ("7.weight", "NaN")),
    "malicious pickle": (weights("evil"), ("refuses to run code",)),
    "data missing": ({"data": "npz:gone.npz"}, ("gone.npz",)),
    "data spec": ({"data": "gone"}, ("npz:PATH",)),
    "no data": ({"data": None}, ("--data",)),
    "objects": (npz(lambda a: a.update(train_x=np.array([{}] * 80))), ("train_x", "objects")),
    "bytes": (npz(lambda a: a.update(train_x=np.zeros((80, 1, 8, 8), np.uint8))), ("float32",)),
    "NaN": (npz(lambda a: np.put(a["train_x"], 64 * 5, np.nan)), ("train_x", "row 5")),
    "label": (npz(lambda a: np.put(a["train_y"], 7, 4)), ("label 4", "row 7", "0 to 3")),
    "lengths": (npz(lambda a: a.update(train_y=a["train_y"][:-1])), ("80", "79")),
    "leak": (npz(lambda a: np.copyto(a["test_x"][3], a["train_x"][9])), ("row 9", "row 3")),
    "one row": (npz(lambda a: a.update(train_x=a["train_x"][:1], train_y=a["train_y"][:1])), ()),
    "empty loader": (code("\nrows = []\n", data="@rows"), ("empty",)),
    "shape": (
        npz(lambda a: a.update(train_x=a["train_x"][:, :, 0], test_x=a["test_x"][:, :, 0])),
        ("(1, 8)",),
    ),
    "control flow": (
        code(
            """
class Bad(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = build()

    def forward(self, x):
        return self.net(x) if x.sum() > 1000 else self.net(-x)
""",
            model="@Bad",
        ),
        ("cannot trace", "Bad"),
    ),
    "layer type": (
        code(
            """
def bad():
    return nn.Sequential(nn.ConvTranspose2d(1, 1, 3), *build(), nn.Identity()).eval()
""",
            model="@bad",
        ),
        ("conv_transpose2d", "--skip 0"),
    ),
    "half a bit": ({"budget": "0.5bit"}, ("1.000 to 8.000 a weight",)),
    "1KB": ({"budget": "1KB"}, ("1,000 bytes", "between 2,")),
    "0.1%": ({"budget": "0.1%"}, ("5 bytes", "between 2,")),
    "budget": ({"budget": "three"}, ("'three'", "3bit")),
    "no budget": ({"budget": "0bit"}, ("3bit",)),
    "method": ({"method": "magic"}, ("'magic'", "cw-hawq")),
    "two goals": ({"budget": "3bit", "max_kl": 0.1}, ("--budget and --max-kl",)),
    "max-kl": ({"max_kl": "nan"}, ("--max-kl",)),
    "max-kl below zero": ({"max_kl": -1}, ("--max-kl",)),
    "epochs": ({"epochs": -1}, ("--epochs",)),
    "order": ({"order": "rising"}, ("'rising'", "all, hawq")),
    "seed": ({"seed": -1}, ("seed",)),
    "rows": ({"calibration_rows": 0}, ("--calibration-rows",)),
    "evaluations": ({"evaluations": 1}, ("--evaluations",)),
    "activations": ({"activations": "9"}, ("2 to 8, auto or float",)),
    "device": ({"device": "tpu"}, ("--device", "cpu or cuda", "'tpu'")),
    "skip": ({"skip": "nothing."}, ("nothing.",)),
    "task and model": ({"task": "x.py:task"}, ("not both",)),
    "max-drop without labels": (
        lambda folder: {"max_drop": 1, **npz(lambda a: a.pop("train_y"))(folder)},
        ("--max-drop", "labels"),
    ),
    "overrides missing": ({"overrides": "gone.yaml"}, ("gone.yaml",)),
    "overrides no YAML": (overrides("a: [b"), ("not YAML",)),
    "overrides list": (overrides("- 0\n- 3\n"), ("map",)),
    "override of nothing": (overrides("nothing: 4"), ("'nothing' matches no layer", "0, 3, 7")),
    "pattern of nothing": (overrides("'re:x.*': 4"), ("'re:x.*' matches no layer",)),
    "pattern": (overrides("'re:(': 4"), ("no regular expression",)),
    "bits": (overrides("'0': 9"), ("min 9", "1 to 8")),
    "bounds": (overrides("'0': {min: five}"), ("min and max",)),
    "bounds of what": (overrides("'0': [1]"), ("min and max",)),
    "ties": (overrides("ties: 3"), ("ties",)),
    "ties of nothing": (overrides("ties: [['0', nothing]]"), ("'nothing'",)),
    "ties that part": (overrides("{'0': 8, '3': 2, ties: [['0', '3']]}"), ("0, 3", "common")),
    "budget under overrides": (overrides("'3': 8"), ("a weight",)),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_one_line(
    what: str,
    place: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.chdir(tmp_path)
    changes, says = BAD[what]
    out = tmp_path / "out"
    options = given(place, **{**(changes(tmp_path) if callable(changes) else changes), "out": out})
    line = refused(capsys, "compress", *options)
    for part in says:
        assert part in line
    assert not out.exists()
    assert not (tmp_path / "owned").exists()


OWN = """
from dataclasses import replace

from bitwright import allocate
from bitwright.pipeline.methods import METHODS, Method
from bitwright.pipeline.roundings import ROUNDINGS
from bitwright.quantize.scores import SCORES


def solve(bench, problem):
    return replace(allocate.layers(problem, bench.layer_ties()), method="own")


METHODS["own"] = Method("Own", "Layers by another name.", solve)
SCORES["own"] = SCORES["trace"]
ROUNDINGS["own"] = ROUNDINGS["nearest"]


def rows():
    open("owned", "w").close()
    return torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Options of a file with a method and a score of one's own, as docs/extending.md has them."""
    for roster in (METHODS, SCORES, ROUNDINGS):
        monkeypatch.setitem(roster, "own", None)  # so that it is gone afterwards
        del roster["own"]
    (tmp_path / "own.py").write_text(tiny.MODEL + OWN)
    monkeypatch.chdir(tmp_path)
    return {"model": "own.py:network", "data": "own.py:rows"}


@pytest.mark.parametrize("option", ["method", "score", "rounding"])
def test_names_of_ones_own_are_known_once_the_file_is_imported(
    own: dict[str, str], option: str, place: Path, tmp_path: Path
):
    own["data"] = f"npz:{place}/data.npz"
    assert call("search", *given(place, **own, **{option: "own"}, out=tmp_path / "run")) == 0
    assert json.loads((tmp_path / "run" / "run.json").read_text())[option] == "own"
    found = json.loads((tmp_path / "run" / "plan.json").read_text())["method"]
    assert found == ("own" if option == "method" else "channels")


@pytest.mark.parametrize("option", ["method", "score", "rounding"])
def test_a_wrong_name_is_refused_before_rows_are_made(
    own: dict[str, str], option: str, place: Path, capsys: pytest.CaptureFixture[str]
):
    line = refused(capsys, "search", *given(place, **own, **{option: "owns"}, out="run"))
    assert f"{option} 'owns' is unknown" in line and ", own" in line  # with the file's own
    assert not Path("owned").exists() and not Path("run").exists()


def test_bad_input_leaves_a_folder_as_it_is(
    finished: Path, place: Path, capsys: pytest.CaptureFixture[str]
):
    before = content(finished)
    refused(capsys, "compress", *given(place, budget="0.5bit", out=finished))
    assert content(finished) == before


def test_a_file_in_the_way(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    way = tmp_path / "way"
    way.write_text("mine")
    assert "in the way" in refused(capsys, "preflight", *given(place, out=way))
    assert str(way) in refused(capsys, "preflight", *given(place, out=way / "run"))
    assert way.read_text() == "mine"


def test_a_stage_without_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert "--model" in refused(capsys, "search", "--out", str(tmp_path / "gone"))
    assert not (tmp_path / "gone").exists()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "3",
        "{}",
        '{"model": "x"}',
        "[" * 100_000,
        "\udcff",
        '"epochs": "1"',
        '"seed": null',
        '"skip": "abc"',
        '"skip": [1]',
        '"model": 3',
        '"method": null',
        '"order": null',
        '"max_kl": "x"',
    ],
)
def test_damaged_options(text: str, finished: Path, capsys: pytest.CaptureFixture[str]):
    import json

    path = finished / "run.json"
    if text.startswith('"'):
        text = json.dumps({**json.loads(path.read_text()), **json.loads("{" + text + "}")})
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    assert "--model" in refused(capsys, "search", "--out", str(finished))


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"schema": 9}',
        b'{"schema": 1, "bits": {"0": [1e999]}, "method": "channels", "budget_bits": 9}',
        b'{"schema": 1, "bits": {"0": [3]}, "method": "channels", "budget_bits": 9}',
        b'{"schema": 1, "bits": {}, "method": "channels", "budget_bits": 1e999}',
    ],
)
def test_a_damaged_plan(text: bytes, finished: Path, capsys: pytest.CaptureFixture[str]):
    (finished / "plan.json").write_bytes(text)
    line = refused(capsys, "search", "--out", str(finished))
    assert "plan.json" in line and "delete it to search again" in line


def test_an_edited_plan_is_taken(finished: Path, capsys: pytest.CaptureFixture[str]):
    import json

    path = finished / "plan.json"
    plan = json.loads(path.read_text())
    plan["bits"]["7"] = [1, 1, 1, 1]
    path.write_text(json.dumps(plan))
    assert call("quantize", "--out", str(finished)) == 0
    stored = bitwright.deploy.artefact.load(finished / "quantized.safetensors").quantized
    assert stored.layers["7"].grid.bits.tolist() == [1, 1, 1, 1]
    plan["method"] = "float"
    path.write_text(json.dumps(plan))
    assert "'float'" in refused(capsys, "quantize", "--out", str(finished))


@pytest.mark.parametrize("harm", ["cut", "flip", "gone"])
def test_damaged_intermediate_files_are_made_again(harm: str, finished: Path, place: Path):
    names = ("sensitivity.safetensors", "quantized.safetensors", "model.safetensors", "model.onnx")
    for name in names:
        path = finished / name
        data = bytearray(path.read_bytes())
        if harm == "gone":
            path.unlink()
        else:
            data[len(data) // 2] ^= 255
            path.write_bytes(data if harm == "flip" else data[: len(data) // 2])
    for name in ("timings.json", "verify.json", "summary.json", "float.onnx"):
        (finished / name).write_bytes(b"\xff" if harm == "cut" else b'{"measure": [1]}')
    assert call("verify", "--out", str(finished)) == 0
    assert tiny.digests(finished) == tiny.digests(place / "run")


@pytest.mark.parametrize("text", [b"", b"\xff", b"[]", b'{"measure": [1], "search": {"key": 3}}'])
def test_damaged_records_mean_another_run(text: bytes, finished: Path, place: Path):
    (finished / "stages.json").write_bytes(text)
    assert call("search", "--out", str(finished)) == 0
    names = ("sensitivity.safetensors", "plan.json")
    assert tiny.digests(finished, names) == tiny.digests(place / "run", names)


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("search", "2 processes (torchrun) can only `measure` and `finetune`"),
        ("finetune", "holds no quantized network that 2 processes could fine-tune"),
    ],
)
def test_what_several_processes_cannot_do(
    command: str,
    says: str,
    place: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    @contextmanager
    def two() -> Iterator[processes.Group]:
        yield processes.Group(0, 2)

    monkeypatch.setattr(processes, "started", two)
    assert says in refused(capsys, command, *given(place, out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()
