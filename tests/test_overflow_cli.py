"""Narrow accumulators on the command line: a promise kept, told, proven again and refuted."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

import bitwright
from bitwright import overflow
from bitwright.overflow import Accumulator
from pipeline import tiny
from pipeline.tiny import call, given, refused


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    with tiny.quickly():
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `net.py`, `data.npz` and two finished runs, plain and guaranteed."""
    folder = tmp_path_factory.mktemp("overflow")
    tiny.write(folder)
    assert call("compress", *given(folder, out=folder / "plain", budget="6bit")) == 0
    options = given(folder, out=folder / "run", budget="6bit", accumulator=14, epochs=1)
    assert call("compress", *options) == 0
    return folder


@pytest.mark.slow
def test_a_guaranteed_run_keeps_and_tells_its_promise(
    place: Path, capsys: pytest.CaptureFixture[str]
):
    found = bitwright.load(place / "run").quantized
    bounds = overflow.require(found, Accumulator(14))
    assert {b.layer for b in bounds} == set(tiny.LAYERS)
    said = json.loads((place / "run" / "accumulator.json").read_text())
    assert (said["bits"], said["kind"], said["mode"]) == (14, "wrap", "guaranteed")
    assert [row["layer"] for row in said["layers"] if row["holds"]] == list(tiny.LAYERS)
    assert "theorem: no input overflows" in (place / "run" / "summary.json").read_text()
    assert call("verify", "--out", str(place / "run")) == 0
    assert "theorem: no input overflows a 14-bit" in capsys.readouterr().out


def test_overflow_proves_one_file_and_refutes_another(
    place: Path, capsys: pytest.CaptureFixture[str]
):
    options = ("--accumulator", "14", "--accumulator-kind", "saturate")
    assert call("overflow", str(place / "run"), *options) == 0
    out = capsys.readouterr().out
    assert out.count("\n") == len(tiny.LAYERS) + 1 and "NOT" not in out
    line = refused(capsys, "overflow", str(place / "plain" / "model.safetensors"), *options)
    for part in ("layer '", "channel ", "outside the -8,192 … 8,191", "smallest fix: "):
        assert part in line


@pytest.mark.slow
def test_another_accumulator_is_another_search(place: Path, tmp_path: Path):
    assert (place / "plain" / "plan.json").read_bytes() != (
        place / "run" / "plan.json"
    ).read_bytes()
    assert not (place / "plain" / "accumulator.json").exists()


@pytest.mark.parametrize("kind", ["wrap", "pairs"])
def test_data_mode_counts_and_says_that_nothing_is_proven(
    kind: str, place: Path, capsys: pytest.CaptureFixture[str]
):
    options = given(
        place, out=place / f"data-{kind}", budget="8bit", accumulator=14, accumulator_mode="data",
        accumulator_kind=kind,
    )  # fmt: skip
    assert call("compress", *options) == 0
    assert "seen, not proven" in capsys.readouterr().out
    found = bitwright.load(place / f"data-{kind}").quantized
    counts = overflow.overflows(found, tiny.rows(80), Accumulator(14, kind))
    assert sum(c.total for c in counts.values()) == 0


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"accumulator": 8}, "12 to 32 bits, not 8"),
        ({"accumulator": 16, "accumulator_kind": "clip"}, "use wrap, pairs, saturate"),
        ({"accumulator": 16, "accumulator_mode": "maybe"}, "use data, guaranteed"),
        ({"accumulator": 16, "activations": "float"}, "leave it at 8"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    options: dict[str, object], says: str, place: Path, capsys: pytest.CaptureFixture[str]
):
    out = place / "refused"
    assert says in refused(capsys, "compress", *given(place, out=out, **options))
    assert not out.exists()
