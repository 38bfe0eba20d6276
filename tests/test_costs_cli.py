"""Bounds beside the budget and `bitwright profile`, on the command line."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bitwright import cost
from bitwright.cost import LayerShape, Machine, Row, Timing, forms, latency, table
from pipeline import tiny
from pipeline.tiny import call, given, refused

pytestmark = pytest.mark.usefixtures("quick")

MACHINE = Machine("Chip 3", "x86_64", 2, "onnxruntime 1.31.1", 1)
#: multiply-accumulates of one row: 64 positions of 8·9 weights, 16 of 12·72, and 48
MACS = 64 * 72 + 16 * 864 + 48


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `net.py`, `data.npz` and a measured `run`."""
    return tiny.ran(tmp_path_factory.mktemp("costs"), "measure")


def invented(shape: LayerShape, **_: int) -> Row:
    """A millisecond for a convolution's integers, two for float; a tenth for a linear layer."""
    s = 0.0001 if shape.kind == "linear" else 0.001
    at = tuple(table.AtWidth(b, Timing(s + b * 1e-7, 2 * s)) for b in latency.WIDTHS)
    return Row(shape, Timing(2 * s, 3 * s), at, Timing(s, 2 * s))


@pytest.fixture(autouse=True)
def no_clock(monkeypatch: pytest.MonkeyPatch) -> list[LayerShape]:
    """Times are invented, the machine is another one; the list tells what was asked."""
    asked: list[LayerShape] = []

    def measure(shape: LayerShape, **options: int) -> Row:
        asked.append(shape)
        return invented(shape, **options)

    def in_turns(called: Sequence[Callable[[], object]], repeats: int) -> np.ndarray:
        for one in called:
            one()
        return np.tile([0.001, 0.0052, 0.0031], (repeats, 1))

    monkeypatch.setattr(latency, "measure", measure)
    monkeypatch.setattr(latency, "in_turns", in_turns)
    monkeypatch.setattr(Machine, "here", lambda threads: replace(MACHINE, threads=threads))
    return asked


def test_profile_prints_the_table(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], no_clock: list[LayerShape]
):
    out = tmp_path / "out"
    assert call("profile", *given(place, out=out, repeats=7), "--quiet") == 0
    printed, err = capsys.readouterr()
    assert not err and len(no_clock) == 3
    lines = [line.rstrip() for line in printed.splitlines()]
    assert lines == [
        "Sequential: Chip 3, 2 cores, onnxruntime 1.31.1, 1 thread, 7 repeats",
        "layer shape                 calls float µs int8 µs    p95  2:8  4:8  8:8",
        "conv2d 8×1×3×3 on 1×8×8         1   2000.0  1000.4 2000.0 1.00 1.00 1.00",
        "conv2d 12×8×3×3 /2 on 8×8×8     1   2000.0  1000.4 2000.0 1.00 1.00 1.00",
        "linear 4×12 on 12               1    200.0   100.4  200.0 0.99 1.00 0.99",
        "2:8, 4:8: time at these bits over time at 8; 8:8: of a second copy at 8, the noise. All "
        "widths are unpacked to 8 bits at load: fewer bits make the file smaller, not the network "
        "faster.",
        "whole network, float: 4.200 ms, 1.00 of the 4.200 ms of its layers",
        "whole network, 8-bit: 2.100 ms, 1.00 of the 2.101 ms of its layers",
        f"{out}/profile.json",
    ]
    before = (out / "profile.json").read_bytes()
    assert call("profile", "--out", str(out), "--repeats", "7", "--quiet") == 0
    assert capsys.readouterr().out == printed and len(no_clock) == 3
    assert (out / "profile.json").read_bytes() == before
    assert call("profile", "--out", str(out), "--repeats", "7", "--skip", "0", "--quiet") == 0
    skipped = capsys.readouterr().out
    assert "8×1×3×3" not in skipped and "12×8×3×3" in skipped and len(no_clock) == 3
    (out / "profile.json").write_text("mine")
    assert "no profile" in refused(capsys, "profile", "--out", str(out), "--quiet")
    assert (out / "profile.json").read_text() == "mine"


def test_a_search_within_bounds_says_what_it_takes(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], no_clock: list[LayerShape]
):
    out = place / "run"
    bounds = ("--max-bops", "1.2M", "--max-latency", "2.2ms")
    capsys.readouterr()
    assert call("search", "--out", str(out), *bounds, "--quiet") == 0
    printed = capsys.readouterr().out
    assert len(no_clock) == 3 and (out / "profile.json").is_file()
    plan = json.loads((out / "plan.json").read_text())
    widths = {name: np.array(bits) for name, bits in plan["bits"].items()}
    positions = {"0": 64 * 9, "3": 16 * 72, "7": 12}
    bops = 8e-6 * sum(positions[n] * int(b.sum()) for n, b in widths.items())
    assert plan["limits"] == [
        {"name": "BOPs", "unit": "M", "total": pytest.approx(bops), "bound": 1.2},
        {"name": "latency", "unit": "ms", "total": pytest.approx(2.1012), "bound": 2.2},
    ]
    flat = " ".join(printed.split())
    assert f"BOPs: {bops:.4g} of at most 1.2 M" in flat
    assert "latency: 2.101 of at most 2.2 ms" in flat
    assert "on Chip 3, 2 cores, onnxruntime 1.31.1, 1 thread; the width of weights" in flat
    # remembered; looser bounds are another search, the same ones are not
    assert call("search", "--out", str(out), "--quiet") == 0
    assert capsys.readouterr().out == printed
    first = json.loads((out / "stages.json").read_text())["search"]["key"]
    assert call("search", "--out", str(out), "--max-bops", "1.3M", "--quiet") == 0
    assert json.loads((out / "stages.json").read_text())["search"]["key"] != first
    assert len(no_clock) == 3


def test_a_profile_of_another_machine_is_read(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], no_clock: list[LayerShape]
):
    there = tmp_path / "there"
    assert call("profile", *given(place, out=there), "--quiet") == 0
    found = cost.read(there / "profile.json")
    machine = replace(found.machine, processor="Chip 9")
    cost.write(replace(found, machine=machine, whole=None), there / "profile.json")
    asked = len(no_clock)
    options = {"max_latency": "4201us", "activations": "float", "profile": there / "profile.json"}
    out = tmp_path / "out"
    assert call("search", *given(place, out=out, **options), "--quiet") == 0
    flat = " ".join(capsys.readouterr().out.split())
    assert "latency: 4200 of at most 4201 us" in flat and "Chip 9" in flat
    assert len(no_clock) == asked and not (out / "profile.json").exists()


BAD = {
    "bops": ({"max_bops": "1.2"}, ("--max-bops '1.2' is not like 300M, 1.2G or 3T",)),
    "no bops": ({"max_bops": "0G"}, ("--max-bops",)),
    "latency": ({"max_latency": "3bit"}, ("--max-latency '3bit' is not like 800us, 3ms",)),
    "profile alone": ({"profile": "x.json"}, ("--profile is read for --max-latency",)),
    "no profile": ({"max_latency": "3ms", "profile": "x.json"}, ("there is no profile x.json",)),
    "too few operations": (
        {"max_bops": "0.1M"},
        ("a bound of 0.1 M on BOPs is below the feasible range of 0.1478 to 1.183 M; raise",),
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_bounds_are_one_line(
    what: str, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert f"{8e-6 * MACS:.4g} {64e-6 * MACS:.4g}" == "0.1478 1.183"
    changes, says = BAD[what]
    out = tmp_path / "out"
    line = refused(capsys, "compress", *given(place, **changes, out=out))
    for part in says:
        assert part in line
    assert not out.exists()


def test_too_little_time_is_refused_before_measuring(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "out"
    line = refused(capsys, "compress", *given(place, out=out, max_latency="2ms"))
    assert "2 ms on latency" in line and "feasible range of 2.101 to 2.101 ms" in line
    assert not (out / "sensitivity.safetensors").exists()
    path = out / "profile.json"
    options = given(place, out=tmp_path / "other", max_latency="2000us", profile=path)
    assert "feasible range of 2101 to 2101 us" in refused(capsys, "compress", *options)
    assert not (tmp_path / "other").exists()
    assert "--threads" in refused(capsys, "profile", "--out", str(out), "--threads", "-1")
    assert "--repeats" in refused(capsys, "profile", "--out", str(out), "--repeats", "0")


def test_bench_prints_all_forms_and_keeps_them(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    out = place / "run"
    invented = [1e-5, 4.1e-4, 2.2e-4, 2.1e-4, 2e-4]
    monkeypatch.setattr(forms, "in_turns", lambda called, repeats: np.tile(invented, (repeats, 1)))
    monkeypatch.setenv("COLUMNS", "160")
    capsys.readouterr()
    assert call("bench", "--out", str(out), "--repeats", "4", "--quiet") == 0
    printed = capsys.readouterr().out
    rows = {line.split("│")[1].strip(): line for line in printed.splitlines() if "│" in line}
    assert set(rows) == {"float", "static int8, qdq", "static int8, operators", "bitwright"}
    assert "0.400" in rows["float"] and "1.00" in rows["float"]
    assert "0.190" in rows["bitwright"] and "2 of 2" in rows["bitwright"]
    assert "of the faster static int8 (static int8, operators)" in printed
    stored = json.loads((out / "bench.json").read_text())
    assert [f["name"] for f in stored["forms"]] == list(rows) and stored["repeats"] == 4
    assert stored["forms"][3]["size_bytes"] == (out / "model.onnx").stat().st_size


def test_bench_needs_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert "holds no earlier run" in refused(capsys, "bench", "--out", str(tmp_path / "nothing"))
    line = refused(capsys, "bench", "--out", str(tmp_path), "--repeats", "0")
    assert "--repeats must be 1 or more" in line
