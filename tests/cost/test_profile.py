"""Profiles: what is measured, what is read back, what is refused."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from bitwright import cost
from bitwright.cost import LayerShape, Machine, Profile, Row, Timing, latency, table
from bitwright.deploy import onnx_file, runtime
from bitwright.deploy.placeholders import export
from bitwright.errors import BitwrightError
from bitwright.network import Network, build
from deploy import nets
from pipeline import tiny

SHAPES = {
    "conv": LayerShape("conv2d", (6, 3, 3, 3), (3, 8, 8), (2, 2), (1, 1), (1, 1), 1, True),
    "last": LayerShape("conv2d", (6, 3, 3, 3), (3, 8, 8), (2, 2), (1, 1), (1, 1), 1, False),
    "depthwise": LayerShape("conv2d", (4, 1, 3, 5), (4, 8, 8), (1, 1), (1, 2), (1, 1), 4, True),
    "signal": LayerShape("conv1d", (6, 2, 5), (2, 16), (1,), (2,), (2,), 1, True),
    "dense": LayerShape("linear", (5, 12), (12,), (), (), (), 1, True),
    "tokens": LayerShape("linear", (5, 12), (7, 12), (), (), (), 1, False),
}


@pytest.fixture(scope="module")
def network() -> Network:
    return build(tiny.network(), tiny.rows(8))


@pytest.fixture(scope="module")
def float_file(network: Network) -> bytes:
    return latency.serialized(export(network.module, network.input_shape, torch.float32))


def seconds(shape: LayerShape) -> Row:
    """A row that nobody measured: a second for float, half of one for integers."""
    at = tuple(table.AtWidth(b, Timing(0.5, 0.6)) for b in latency.WIDTHS)
    return Row(shape, Timing(1.0, 1.1), at, Timing(0.5, 0.6))


def filled(network: Network) -> Profile:
    shapes = dict.fromkeys(shape for _, shape in cost.calls(network))
    return Profile(Machine.here(1), 3, tuple(seconds(s) for s in shapes))


# -------------------------------------------------------------------------------- shapes


def test_shapes_are_those_of_the_calls(network: Network):
    found = [(layer.name, shape) for layer, shape in cost.calls(network)]
    one, two = (1, 1), (2, 2)
    assert found == [
        ("0", LayerShape("conv2d", (8, 1, 3, 3), (1, 8, 8), one, one, one, 1, True)),
        ("3", LayerShape("conv2d", (12, 8, 3, 3), (8, 8, 8), two, one, one, 1, True)),
        ("7", LayerShape("linear", (4, 12), (12,), (), (), (), 1, False)),
    ]
    assert [str(shape) for _, shape in found] == [
        "conv2d 8×1×3×3 on 1×8×8",
        "conv2d 12×8×3×3 /2 on 8×8×8",
        "linear 4×12 on 12",
    ]
    assert str(SHAPES["signal"]) == "conv1d 6×2×5 dilation 2 on 2×16"
    assert str(SHAPES["depthwise"]) == "conv2d 4×1×3×5 groups 4 on 4×8×8"


@pytest.mark.parametrize("name", ["mobile", "signal", "tokens", "segments", "twice"])
def test_a_layer_alone_has_the_shape_it_was_made_for(name: str):
    make, row = nets.ROSTER[name]
    whole = build(make().eval(), torch.zeros(2, *row))
    found = cost.calls(whole)
    assert len(found) == sum(len(layer.calls) for layer in whole.layers)
    for layer, shape in found:
        alone = latency._one_layer(shape)
        assert cost.calls(alone) == [(alone.layers[0], shape)]
        assert alone.layers[0].macs == layer.macs // len(layer.calls)
    stored = [shape.stored for _, shape in found if shape.kind != "linear"]
    assert all(stored[:-1]) and (stored[-1:] == [True]) == (name not in ("segments", "tokens"))


# ------------------------------------------------------------------------------- measuring


@pytest.mark.parametrize("name", SHAPES)
def test_the_forms_are_the_deployed_ones_and_the_width_changes_nothing(name: str):
    shape = SHAPES[name]
    network = latency._one_layer(shape)

    def executed(bits: int) -> tuple[list[tuple[str, ...]], list[tuple[int, tuple[int, ...]]]]:
        """The operations of the optimized graph, and types and shapes of its constants."""
        form = latency._integer_form(onnx_file.hollow(network), network, shape, bits)
        graph = onnx.load_from_string(form).graph
        assert [i.type.tensor_type.elem_type for i in graph.input] == [onnx.TensorProto.UINT8]
        operations = [(op,) * n for op, n in sorted(runtime.optimized_operations(form).items())]
        return operations, constants(form)

    forms = [executed(bits) for bits in range(1, 9)]
    assert all(form == forms[0] for form in forms)
    (operations, _) = forms[0]
    names = {op for run in operations for op in run}
    expected = {
        "conv": {"QLinearConv"},
        "depthwise": {"QLinearConv"},
        "signal": {"QLinearConv"},
        "dense": {"QGemm"},
    }
    if name in expected:
        assert names == expected[name]
    assert not {"BitShift", "BitwiseAnd", "Transpose"} & names
    plain = latency.serialized(
        onnx_file.fill(onnx_file.hollow(network), latency._rounded(network, 8, False))
    )
    assert not [op for op in runtime.optimized_operations(plain) if "Linear" in op or "Q" in op]


def constants(form: bytes) -> list[tuple[int, tuple[int, ...]]]:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimized.onnx"
        runtime.session(form, optimized=path)
        return sorted((t.data_type, tuple(t.dims)) for t in onnx.load(path).graph.initializer)


def test_times_are_what_calls_take(monkeypatch: pytest.MonkeyPatch):
    now, order = [0.0], []
    monkeypatch.setattr(latency.time, "perf_counter", lambda: now[0])

    def call(j: int) -> Any:
        def run() -> None:
            order.append(j)
            now[0] += 1.0 + j

        return run

    spent = latency.in_turns([call(j) for j in range(3)], 4)
    assert np.array_equal(spent, np.tile([1.0, 2.0, 3.0], (4, 1)))
    assert order[15:] == [0, 1, 2, 1, 2, 0, 2, 0, 1, 0, 1, 2]
    assert latency._timing(np.array([3.0, -1.0, 1.0, 2.0, 0.5])) == Timing(1.0, 2.8)


def test_a_row_of_the_table_is_measured():
    row = latency.measure(SHAPES["conv"], repeats=3)
    assert row.shape == SHAPES["conv"] and [w.bits for w in row.int8] == [2, 4, 8]
    times = [row.float32, row.control, *(w.time for w in row.int8)]
    assert all(0 <= t.median_s <= t.p95_s < 1 for t in times)
    assert row.int8_s == sorted(w.time.median_s for w in row.int8)[1]


# ------------------------------------------------------------------------- whole networks


@pytest.fixture
def invented(monkeypatch: pytest.MonkeyPatch) -> list[LayerShape]:
    """No shape is measured; the list grows by those asked for."""
    asked: list[LayerShape] = []

    def measure(shape: LayerShape, **_: int) -> Row:
        asked.append(shape)
        return seconds(shape)

    monkeypatch.setattr(latency, "measure", measure)
    return asked


def test_a_profile_is_continued_and_kept(
    network: Network, float_file: bytes, tmp_path: Path, invented: list[LayerShape]
):
    path, told = tmp_path / "profile.json", []
    x = tiny.rows(8)

    def interrupt(fraction: float) -> None:
        told.append(fraction)
        if len(told) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cost.profile(network, float_file, x, path, repeats=3, progress=interrupt)
    assert len(invented) == 2 and len(cost.read(path).rows) == 2 and cost.read(path).whole is None
    found = cost.profile(network, float_file, x, path, repeats=3)
    assert len(invented) == 3 == len(found.rows) and cost.read(path) == found
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    whole = found.whole
    assert whole is not None and (whole.float_sum_s, whole.int8_sum_s) == (3.0, 1.5)
    assert 0 < whole.float_s < 1 and 0 < whole.int8_s < 1
    before = path.read_bytes()
    assert cost.profile(network, float_file, x, path, repeats=3) == found
    assert len(invented) == 3 and path.read_bytes() == before
    # a network of the same layers needs no other rows; more repeats need all
    other = replace(network, module=build(tiny.network(1), x).module)
    assert cost.profile(other, float_file, x, path, repeats=3) == found
    assert cost.profile(network, float_file, x, path, repeats=4).repeats == 4
    assert len(invented) == 6


def test_what_was_measured_elsewhere_is_measured_again(
    network: Network, float_file: bytes, tmp_path: Path, invented: list[LayerShape]
):
    path = tmp_path / "profile.json"
    there = filled(network)
    cost.write(replace(there, machine=replace(there.machine, processor="other")), path)
    found = cost.profile(network, float_file, tiny.rows(8), path, repeats=3)
    assert len(invented) == 3 and found.machine == Machine.here(1)


def test_sums_by_hand(network: Network):
    table = filled(network)
    assert cost.latencies(network, table).tolist() == [0.5, 0.5, 0.5]
    assert cost.latencies(network, table, None).tolist() == [1.0, 1.0, 1.0]
    twice = build(nets.twice().eval(), torch.zeros(2, *nets.IMAGE))
    assert cost.latencies(twice, filled(twice)).tolist() == [0.5, 1.0, 0.5]
    with pytest.raises(BitwrightError, match=r"no time for layer a\.0 \(conv2d 6×3×3×3 on 3×8×8\)"):
        cost.latencies(twice, table)


# ---------------------------------------------------------------------------------- files


def test_a_profile_names_no_host_and_no_path(network: Network, tmp_path: Path):
    path = tmp_path / "profile.json"
    cost.write(filled(network), path)
    assert cost.read(path) == filled(network)
    found = json.loads(path.read_text(encoding="utf-8"))
    assert set(found) == {"format", "schema", "machine", "repeats", "rows", "whole"}
    assert [f.name for f in fields(Machine)] == [
        "processor",
        "architecture",
        "cores",
        "runtime",
        "threads",
    ]
    assert str(Machine("Chip 3", "x86_64", 2, "onnxruntime 1.31.1", 1)) == (
        "Chip 3, 2 cores, onnxruntime 1.31.1, 1 thread"
    )
    assert str(Machine("Chip 3", "x86_64", 1, "onnxruntime 1.31.1", 0)).endswith(
        "1 core, onnxruntime 1.31.1, threads as it chooses"
    )


def without(*keys: str | int) -> Any:
    """A change that deletes what lies at the end of `keys`."""

    def change(found: Any) -> None:
        for key in keys[:-1]:
            found = found[key]
        del found[keys[-1]]

    return change


def at(value: object, *keys: str | int) -> Any:
    """A change that puts `value` there."""

    def change(found: Any) -> None:
        for key in keys[:-1]:
            found = found[key]
        found[keys[-1]] = value

    return change


DAMAGED = {
    "format": (without("format"), "no profile"),
    "schema": (at(2, "schema"), "has profile schema 2; this version reads 1"),
    "no schema": (without("schema"), "has profile schema None"),
    "key": (without("rows", 0, "shape", "kind"), r"damaged: profile.rows\[0\].shape lacks"),
    "type": (at("1", "rows", 1, "control", "median_s"), r"rows\[1\].control.median_s is '1'"),
    "negative": (at(-1.0, "rows", 1, "float32", "median_s"), r"rows\[1\] has a time of -1.0 s"),
    "nan": (at("nan", "rows", 0, "int8", 2, "time", "p95_s"), r"rows\[0\] has a time"),
    "no widths": (at([], "rows", 0, "int8"), r"rows\[0\].int8 is empty"),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_a_damaged_profile_is_refused(what: str, network: Network, tmp_path: Path):
    path = tmp_path / "profile.json"
    cost.write(filled(network), path)
    found = json.loads(path.read_text(encoding="utf-8"))
    change, says = DAMAGED[what]
    change(found)
    path.write_text(json.dumps(found))
    with pytest.raises(BitwrightError, match=says) as error:
        cost.read(path)
    assert str(path) in str(error.value) and "bitwright profile" in str(error.value)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[]", b"3", b"[" * 100_000, b'{"a": 1}'])
def test_a_foreign_file_is_refused_and_left(
    content: bytes, network: Network, float_file: bytes, tmp_path: Path
):
    path = tmp_path / "profile.json"
    with pytest.raises(BitwrightError, match="there is no profile"):
        cost.read(path)
    path.write_bytes(content)
    with pytest.raises(BitwrightError, match="is no profile"):
        cost.read(path)
    with pytest.raises(BitwrightError, match="delete it or give another --out"):
        cost.profile(network, float_file, tiny.rows(8), path)
    assert path.read_bytes() == content
