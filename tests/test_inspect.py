"""`bitwright inspect FILE`: what is inside, exactly, in 80 columns and for machines."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bitwright.arith.grid import Grid
from bitwright.curvature import Estimate, Sensitivity, estimate
from bitwright.deploy import artefact, onnx_file
from bitwright.errors import BitwrightError
from bitwright.quantize import EdgeGrid, Quantized, QuantizedLayer
from bitwright.report import inspection
from deploy import nets
from pipeline.tiny import call

#: rows of `a` (16 of 12 weights), `b` (16 of 16) and `c` (5 of 16)
WIDTHS = {"a": [2] * 8 + [3] * 8, "b": [4] * 16, "c": [8, 8, 8, 8, 1]}


@pytest.fixture(scope="module")
def stored() -> Quantized:
    """A network whose numbers nothing has fitted."""
    quantized, _ = nets.quantized("dense")
    layers = {}
    for layer in quantized.network.layers:
        bits = torch.tensor(WIDTHS[layer.name])
        grid = Grid(bits, torch.full((layer.rows,), 0.25), 2**bits)
        codes = torch.zeros(layer.rows, layer.fan_in, dtype=torch.uint8)
        layers[layer.name] = QuantizedLayer(codes, grid, torch.zeros(layer.rows))
    edges = {g: EdgeGrid(0.5, 0, 8 if g else 4) for g in quantized.edges}
    return replace(quantized, layers=layers, edges=edges)


def shown(capsys: pytest.CaptureFixture[str], path: Path, *options: str) -> str:
    assert call("inspect", str(path), *options) == 0
    return capsys.readouterr().out


@pytest.fixture(autouse=True)
def eighty_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


ARTEFACT = """\
bytes          {size}
schema         2
method         channels
producer       a test
weights        528
bits a weight  3.8485
bytes a weight {share}
channels       37
input of a row 12
activations    1 groups of 4 bits, 2 groups of 8 bits
left in float  nothing

layer kind   shape weights bits widths bytes
a     linear 16×12     192  2.5 2-3       60
b     linear 16×16     256    4 4-4      128
c     linear 5×16       80  6.6 1-8       66

bits weights share
   1      16  3.0% ██
   2      96 18.2% ███████████████
   3      96 18.2% ███████████████
   4     256 48.5% ████████████████████████████████████████
   8      64 12.1% ██████████
"""


def test_an_artefact(stored: Quantized, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "model.safetensors"
    artefact.save(stored, path, {"producer": "a test", "method": "channels", "more": [1]})
    size = path.stat().st_size
    wanted = ARTEFACT.format(size=f"{size:,}", share=f"{size / 528:.6g}"[:6].rstrip("0"))
    lines = [line.rstrip() for line in shown(capsys, path).splitlines()]
    assert float(lines[6].split()[-1]) == pytest.approx(size / 528, abs=1e-4)
    lines[6] = wanted.splitlines()[6]
    assert lines == wanted.splitlines()


def test_an_onnx_file(stored: Quantized, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "model.onnx"
    onnx_file.save(stored, path)
    found = shown(capsys, path)
    assert found.splitlines()[0].split() == ["bytes", f"{path.stat().st_size:,}"]
    assert "bits a weight 3.8485" in found and "QuantizeLinear" in found
    histogram = ARTEFACT.split("\n\n")[-1].splitlines()
    assert [line.rstrip() for line in found.splitlines()][-len(histogram) :] == histogram


PLAN = """\
method         channels
cost in bits   1,234
budget in bits 2,000
predicted loss 0.25
widths         1, 2, 4
BOPs           5e+06 of 6e+06

layer     channels bits widths
stem             3    2 1-4
a.very[1]        2    4 4-4

bits channels share
   1        2 40.0% ███████████████████████████
   4        3 60.0% ████████████████████████████████████████
"""


def test_a_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "plan.json"
    limits = [{"name": "BOPs", "unit": "", "total": 5e6, "bound": 6e6}]
    path.write_text(json.dumps({
        "schema": 1, "method": "channels", "choices": [1, 2, 4], "cost_bits": 1234,
        "predicted_loss": 0.25, "budget_bits": 2000, "limits": limits,
        "bits": {"stem": [1, 1, 4], "a.very[1]": [4, 4]},
    }))  # fmt: skip
    lines = [line.rstrip() for line in shown(capsys, path).splitlines()]
    assert lines == PLAN.splitlines()
    data = json.loads(shown(capsys, path, "--json"))
    assert data["kind"] == "plan" and data["facts"]["cost in bits"] == 1234
    assert data["rows"][0] == {"layer": "stem", "channels": 3, "bits": 2.0, "widths": "1-4"}
    assert data["histogram"] == {"unit": "channels", "counts": {"1": 2, "4": 3}}


SENSITIVITY = """\
method gauss-newton
key    k
share  0.97

      name channels trace ± probes ± data samples
layer a           2     3        5      7      64
edge  x           1   1.5     0.25      0      64
"""


def test_a_sensitivity(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "sensitivity.safetensors"
    a = Estimate(np.array([1.0, 2]), np.array([3.0, 4]), np.array([2.0, 5]), 64)
    x = Estimate(np.array([1.5]), np.array([0.25]), np.array([0.0]), 64)
    estimate.save(Sensitivity("gauss-newton", {"a": a}, {"x": x}, "k", {"share": 0.97}), path)
    lines = [line.rstrip() for line in shown(capsys, path).splitlines()]
    assert lines == SENSITIVITY.splitlines()
    assert json.loads(shown(capsys, path, "--json"))["rows"][1]["kind"] == "edge"


def test_the_json_of_an_artefact_adds_up(stored: Quantized, tmp_path: Path, capsys):
    path = tmp_path / "model.safetensors"
    artefact.save(stored, path, {})
    data = json.loads(shown(capsys, path, "--json"))
    assert sum(row["weights"] for row in data["rows"]) == data["facts"]["weights"] == 528
    counts = {int(b): n for b, n in data["histogram"]["counts"].items()}
    assert counts == {1: 16, 2: 96, 3: 96, 4: 256, 8: 64}
    assert sum(b * n for b, n in counts.items()) / 528 == pytest.approx(
        data["facts"]["bits a weight"], abs=1e-4
    )


def test_long_names_fit_in_eighty_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "plan.json"
    name = "model.encoder.layer.11.attention.self.query_projection_with_a_long_name.and_more.inner"
    path.write_text(json.dumps({
        "schema": 1, "method": "layers", "choices": [4], "cost_bits": 4, "predicted_loss": 0.0,
        "budget_bits": 4, "bits": {name: [4]},
    }))  # fmt: skip
    lines = shown(capsys, path).splitlines()
    assert max(map(len, lines)) <= 80
    assert name in "".join(line.split(" ")[0] for line in lines)


def test_names_of_a_file_do_not_reach_the_terminal_as_commands(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = tmp_path / "plan.json"
    path.write_text(json.dumps({
        "schema": 1, "method": "\x1b[2J", "choices": [4], "cost_bits": 4, "predicted_loss": 0.0,
        "budget_bits": 4, "bits": {"a\x1b]0;title\x07": [4], "[red]b": [4]},
    }))  # fmt: skip
    found = shown(capsys, path)
    assert "\x1b" not in found and "\x07" not in found and "[red]b" in found
    assert "\x1b" not in str(BitwrightError("a\x1b[2Jb"))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("model.safetensors", b""),
        ("model.safetensors", b"\xff" * 64),
        ("model.safetensors", b"\x02\0\0\0\0\0\0\0{}"),
        ("model.onnx", b""),
        ("model.onnx", b"\x08\x07" + b"\xff" * 40),
        ("plan.json", b""),
        ("plan.json", b"[" * 100_000),
        ("plan.json", b'{"schema": 1}'),
        ("plan.json", b'{"schema": 1, "schema": 2}'),
        ("plan.json", b'"\xff"'),
        ("plan.json", b'{"schema": NaN}'),
        ("notes.txt", b"notes"),
    ],
)
def test_another_file_is_one_line(
    name: str, content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = tmp_path / name
    path.write_bytes(content)
    assert call("inspect", str(path)) == 2
    out, err = capsys.readouterr()
    assert not out and err.startswith("bitwright: ") and err.count("\n") == 1
    assert str(path) in err


@pytest.mark.parametrize("content", [b'{"title": "x", "methods": []}', b"[1]", b"3"])
def test_json_of_another_kind_is_said_to_be_no_plan(content: bytes, tmp_path: Path):
    (tmp_path / "summary.json").write_bytes(content)
    with pytest.raises(BitwrightError, match=r"summary\.json is no plan; .* plan\.json alone"):
        inspection.inspect(tmp_path / "summary.json")
    with pytest.raises(BitwrightError, match="schema 9"):
        (tmp_path / "summary.json").write_bytes(b'{"schema": 9, "bits": {}}')
        inspection.inspect(tmp_path / "summary.json")


def test_no_file_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    os.mkfifo(tmp_path / "model.onnx")
    for name in ("nothing.onnx", "model.onnx", "."):
        assert call("inspect", str(tmp_path / name)) == 2
        assert "there is no file" in capsys.readouterr().err


def test_every_kind_is_read_by_its_name():
    assert set(inspection.READERS) == {"artefact", "onnx", "plan", "sensitivity"}
