"""`model.safetensors`: complete, small, and refused where a single bit is wrong."""

from __future__ import annotations

import json
import os
import re
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import save_file
from torch import nn

from bitwright.deploy import IntegerNetwork, artefact, tensors
from bitwright.errors import BitwrightError
from bitwright.network import build
from bitwright.quantize import (
    Quantized,
    calibrate,
    correct,
    float_outputs,
    round_weights,
    simulate,
    weight_tables,
)
from deploy import nets

METADATA = {"producer": "a test", "preprocessing": {"mean": [0.5, 0.25], "classes": ["a", "ö"]}}
#: what a file may weigh beyond Σ bits and numbers: the program and the names
OVERHEAD = 4096


def same(a: Quantized, b: Quantized) -> None:
    """Fails unless both are the same network, number by number."""
    assert a.network.layers == b.network.layers
    assert a.network.edges == b.network.edges
    assert a.network.input_shape == b.network.input_shape
    assert a.network.skipped == b.network.skipped
    assert a.edges == b.edges
    assert a.layers.keys() == b.layers.keys()
    for name, ours in a.layers.items():
        theirs = b.layers[name]
        assert torch.equal(ours.codes, theirs.codes) and theirs.codes.dtype == torch.uint8
        assert torch.equal(ours.bias, theirs.bias)
        for field in ("bits", "scale", "zero"):
            found = getattr(theirs.grid, field)
            assert torch.equal(getattr(ours.grid, field), found)
            assert found.dtype == getattr(ours.grid, field).dtype


@pytest.mark.parametrize("edges", [True, False])
@pytest.mark.parametrize("name", list(nets.ROSTER))
def test_load_gives_what_was_saved(name: str, edges: bool, tmp_path: Path):
    quantized, x = nets.quantized(name, edges=edges)
    path = tmp_path / "model.safetensors"
    artefact.save(quantized, path, METADATA)
    loaded = artefact.load(path)
    same(quantized, loaded.quantized)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]  # nothing temporary is left
    assert loaded.metadata["schema"] == artefact.SCHEMA
    assert {k: loaded.metadata[k] for k in METADATA} == METADATA
    x = x[:8]
    assert torch.equal(IntegerNetwork(quantized)(x), IntegerNetwork(loaded.quantized)(x))
    assert torch.equal(simulate(quantized, x), simulate(loaded.quantized, x))
    again = tmp_path / "again.safetensors"
    artefact.save(loaded.quantized, again, METADATA)
    assert again.read_bytes() == path.read_bytes()


def test_a_corrected_network_comes_back(tmp_path: Path):
    quantized, x = nets.quantized("residual")
    network = quantized.network
    quantized = correct(network, quantized.layers, quantized.edges, x, float_outputs(network, x))
    path = tmp_path / "model.safetensors"
    artefact.save(quantized, path, {})
    same(quantized, artefact.load(path).quantized)


def test_scales_that_are_no_float16_numbers_come_back(tmp_path: Path):
    quantized, _ = nets.quantized("dense")
    stored = quantized.layers["b"]
    grid = replace(stored.grid, scale=stored.grid.scale * 1.0001)
    layers = {**quantized.layers, "b": replace(stored, grid=grid)}
    quantized = replace(quantized, layers=layers)
    path = tmp_path / "model.safetensors"
    artefact.save(quantized, path, {})
    with safe_open(path, framework="numpy") as file:
        assert file.get_tensor("scale").dtype == np.float32
    same(quantized, artefact.load(path).quantized)


@pytest.mark.parametrize("bits", [(1, 8), (2, 2)])
def test_the_file_is_as_small_as_its_numbers(bits: tuple[int, int], tmp_path: Path):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.ReLU(),
        nn.Flatten(), nn.Linear(512, 10),
    )  # fmt: skip
    x = torch.randn(8, 3, 8, 8)
    network = build(model.eval(), x)
    rng = np.random.default_rng(0)
    widths = {la.name: rng.integers(bits[0], bits[1] + 1, la.rows) for la in network.layers}
    layers = round_weights(network, weight_tables(network), widths)
    path = tmp_path / "model.safetensors"
    artefact.save(Quantized(network, layers, calibrate(network, x)), path, METADATA)
    stored = artefact.stored_bytes(network, widths)
    assert set(stored) == {"weights", "scales", "zero points", "widths", "biases"}
    total = sum(stored.values())
    assert total <= path.stat().st_size <= 1.02 * total + OVERHEAD
    weights = sum(int(widths[la.name].sum()) * la.fan_in for la in network.layers)
    assert stored["weights"] == -(-weights // 8)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Quantized, bytes]:
    """A network and the bytes of its file."""
    quantized, _ = nets.quantized("mobile")
    path = tmp_path_factory.mktemp("saved") / "model.safetensors"
    artefact.save(quantized, path, METADATA)
    return quantized, path.read_bytes()


def refuse(path: Path, content: bytes, match: str | None = None) -> None:
    path.write_bytes(content)
    with pytest.raises(BitwrightError, match=match) as caught:
        artefact.load(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def flipped(content: bytes, place: int) -> bytes:
    changed = bytearray(content)
    changed[place // 8] ^= 1 << (place % 8)
    return bytes(changed)


def test_every_flipped_bit_is_noticed(saved: tuple[Quantized, bytes], tmp_path: Path):
    _, content = saved
    rng = np.random.default_rng(0)
    header = 8 * (8 + int.from_bytes(content[:8], "little"))
    everywhere = rng.choice(8 * len(content), 200, replace=False)
    for place in [*everywhere, *rng.choice(header, 200, replace=False)]:
        refuse(tmp_path / "m.safetensors", flipped(content, int(place)))


def test_the_first_and_the_last_bits_are_noticed(saved: tuple[Quantized, bytes], tmp_path: Path):
    _, content = saved
    end = 8 * len(content)
    for place in [*range(0, 80), *range(end - 16, end)]:
        refuse(tmp_path / "m.safetensors", flipped(content, place))


def test_changed_metadata_is_noticed(saved: tuple[Quantized, bytes], tmp_path: Path):
    _, content = saved
    assert content.count(b"0.25") == 1
    refuse(tmp_path / "m.safetensors", content.replace(b"0.25", b"0.75"), "checksum")


def test_a_file_cut_anywhere_is_refused(saved: tuple[Quantized, bytes], tmp_path: Path):
    _, content = saved
    for size in [0, 1, 7, 8, 9, *np.linspace(10, len(content) - 1, 45).astype(int)]:
        refuse(tmp_path / "m.safetensors", content[:size])
    refuse(tmp_path / "m.safetensors", content + b"\0")


@pytest.mark.parametrize(
    "content",
    [b"", b"PK\x03\x04 a zip file", b"\x80\x04\x95 a pickle", b"{}", b"\xff" * 64, b"\0" * 64],
)
def test_other_files_are_refused(content: bytes, tmp_path: Path):
    refuse(tmp_path / "m.safetensors", content, "no checksum of bitwright")


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path):
    for path in (tmp_path / "nothing.safetensors", tmp_path):
        with pytest.raises(BitwrightError, match="not a bitwright artefact"):
            artefact.load(path)


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(BitwrightError, match="no file at all"):
            artefact.load(path)


def test_a_safetensors_file_of_something_else_is_refused(tmp_path: Path):
    path = tmp_path / "m.safetensors"
    values = {"weight": np.zeros(3, np.float32)}
    for metadata in (None, {"format": "pt"}, {"bitwright": "1"}, {"bitwright": "[}"},
                     {"bitwright": "[" * 100_000}):  # fmt: skip
        save_file(values, path, metadata=metadata)
        with pytest.raises(BitwrightError):
            artefact.load(path)


def rewritten(
    content: bytes, path: Path, change: Callable[[dict[str, Any], dict[str, Any]], None]
) -> None:
    """The file with its tensors and header changed, sealed again."""
    found, header = tensors.from_bytes(content, path)
    found = {name: value.copy() for name, value in found.items()}
    change(found, header)
    path.write_bytes(tensors.to_bytes(found, header))


def program(edit: Callable[[dict[str, Any]], Any]) -> Callable[[Any, Any], None]:
    """A change of the stored program."""

    def change(values: dict[str, Any], header: dict[str, Any]) -> None:
        found = json.loads(zlib.decompress(values["program"].tobytes()))
        edit(found)
        text = zlib.compress(json.dumps(found).encode())
        values["program"] = np.frombuffer(text, np.uint8)

    return change


def test_rewriting_alone_changes_nothing(saved: tuple[Quantized, bytes], tmp_path: Path):
    quantized, content = saved
    path = tmp_path / "m.safetensors"
    rewritten(content, path, program(lambda p: None))
    same(quantized, artefact.load(path).quantized)


@pytest.mark.parametrize("schema", [artefact.SCHEMA + 1, 0, None, "1"])
def test_another_schema_is_refused(schema: Any, saved: tuple[Quantized, bytes], tmp_path: Path):
    path = tmp_path / "m.safetensors"
    rewritten(saved[1], path, lambda t, h: h.update(schema=schema))
    with pytest.raises(BitwrightError, match="schema"):
        artefact.load(path)


def bomb(name: str, size: int) -> Callable[[Any, Any], None]:
    def change(values: dict[str, Any], header: dict[str, Any]) -> None:
        values[name] = np.frombuffer(zlib.compress(b" " * size, 9), np.uint8)

    return change


def call(op: str) -> Callable[[Any, Any], None]:
    """A change of the first operation that is called."""

    def edit(found: dict[str, Any]) -> None:
        found["graph"][1][1] = op

    return program(edit)


def tensor(
    name: str, make: Callable[[np.ndarray], np.ndarray | None]
) -> Callable[[Any, Any], None]:
    """A change of one tensor; None drops it."""

    def change(values: dict[str, Any], header: dict[str, Any]) -> None:
        found = make(values.pop(name))
        if found is not None:
            values[name] = found

    return change


def symbols(make: Callable[[np.ndarray], np.ndarray]) -> Callable[[Any, Any], None]:
    """A change of the channels' widths and zero points."""

    def edit(packed: np.ndarray) -> np.ndarray:
        found = make(np.frombuffer(zlib.decompress(packed.tobytes()), np.uint8))
        return np.frombuffer(zlib.compress(found.tobytes()), np.uint8)

    return tensor("grid", edit)


def put(name: str, place: tuple[Any, ...], value: Any) -> Callable[[Any, Any], None]:
    """A change of one entry of the program."""

    def edit(found: dict[str, Any]) -> None:
        inner = found[name]
        for step in place[:-1]:
            inner = inner[step]
        inner[place[-1]] = value

    return program(edit)


def value(name: str, number: float) -> Callable[[Any, Any], None]:
    """A change of a tensor's last number."""

    def make(found: np.ndarray) -> np.ndarray:
        found[-1] = number
        return found

    return tensor(name, make)


def other(name: str, made: np.ndarray) -> Callable[[Any, Any], None]:
    """One more tensor."""
    return lambda values, header: values.update({name: made})


#: what somebody may change who can seal the file again, and what the error says of it
MALFORMED = {
    "program that grows": (bomb("program", 2**26), "longer than it may be"),
    "program of empty nodes": (
        program(lambda p: p["graph"].extend([[0, "aten.relu.default", [{"n": -1}]]] * 2000)),
        "more than its weights need",
    ),
    "widths that grow": (bomb("grid", 2**26), "longer than it may be"),
    "program cut off": (tensor("program", lambda p: p[:-5]), "cut off"),
    "program with a tail": (tensor("program", lambda p: np.append(p, p[:3])), "cut off"),
    "no program": (tensor("program", lambda p: None), "lacks"),
    "program no zlib": (tensor("program", lambda p: p[::-1].copy()), "damaged"),
    "unknown operation": (call("os.system"), "os.system"),
    "operation that reads files": (call("aten.from_file.default"), "from_file"),
    "no layers": (program(lambda p: p.pop("layers")), "lacks"),
    "something else": (program(lambda p: p.update(more=1)), "unknown"),
    "layer missing": (program(lambda p: p["layers"].pop()), "damaged"),
    "layers in another order": (program(lambda p: p["layers"].reverse()), "damaged"),
    "layer twice": (program(lambda p: p["layers"].append(p["layers"][0])), "share a parameter"),
    "layer at no node": (put("layers", (0, 0), 999), "not in its program"),
    "layer at another node": (put("layers", (0, 0), 0), "damaged"),
    "layer without weights": (put("layers", (0, 2), 0), "shapes without weights"),
    "layer of negative shape": (put("layers", (0, 2), -3), "shapes without weights"),
    "layer beyond all memory": (put("layers", (0, 2), 2**62), "codes need"),
    "shape that is no number": (put("layers", (0, 2), 2.5), "not int"),
    "shape that is true": (put("layers", (0, 2), True), "not int"),
    "input of another size": (put("input", (0,), 4), "damaged"),
    "input beyond all memory": (put("input", (0,), 2**62), "damaged"),
    "edge group missing": (program(lambda p: p["groups"].pop()), "do not fit their groups"),
    "edge group unknown": (put("groups", (-1,), 99), "not those of the edges"),
    "edge nowhere": (put("edges", (0, 0), 999), "no float value"),
    "edge grid of 9 bits": (put("grids", (0, 1), 9), "do not fit their widths"),
    "edge zero beyond its top": (put("grids", (0, 0), 256), "do not fit their widths"),
    "edge step of zero": (value("edge_scale", 0.0), "not positive"),
    "edge step of NaN": (value("edge_scale", np.nan), "not positive"),
    "no output": (program(lambda p: p["graph"].pop()), "no output"),
    "node missing": (program(lambda p: p["graph"].pop(0)), "damaged"),
    "width missing": (symbols(lambda g: g[:-1]), "do not fit"),
    "width 0": (symbols(lambda g: g * 0), "container"),
    "width 9": (symbols(lambda g: g * 0 + 9), "container"),
    "zero point outside": (symbols(lambda g: g * 0 + 0x27), "container"),
    "scale missing": (tensor("scale", lambda s: s[:-1]), "scale is float16"),
    "scale of 0": (value("scale", 0.0), "not all positive"),
    "scale below 0": (value("scale", -0.5), "not all positive"),
    "scale infinite": (value("scale", np.inf), "NaN or infinite"),
    "scales of another type": (tensor("scale", lambda s: s.astype(np.float64)), "float64"),
    "no biases": (tensor("bias", lambda z: None), "lacks"),
    "bias missing": (tensor("bias", lambda b: b[:-1]), "bias is float32"),
    "bias NaN": (value("bias", np.nan), "NaN or infinite"),
    "code missing": (tensor("nibbles", lambda s: s[:-1]), "codes need"),
    "stream missing": (tensor("pairs", lambda s: None), "codes need"),
    "stream of numbers": (tensor("pairs", lambda s: s.view(np.int8)), "row of bytes"),
    "edge scale missing": (tensor("edge_scale", lambda s: s[:-1]), "do not fit their groups"),
    "a tensor more": (other("weights", np.zeros(3, np.float32)), "unknown"),
    "a parameter more": (other("f:weights", np.zeros(3, np.float32)), "nothing reads"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_file_with_a_correct_checksum_is_refused(
    name: str, saved: tuple[Quantized, bytes], tmp_path: Path
):
    change, says = MALFORMED[name]
    path = tmp_path / "m.safetensors"
    rewritten(saved[1], path, change)
    with pytest.raises(BitwrightError, match=re.escape(says)) as caught:
        artefact.load(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    assert len(str(caught.value)) < 500


def test_what_a_stored_program_may_not_contain_is_not_stored(tmp_path: Path):
    model = nets.Fn(lambda m, x: torch.cumsum(m.a(x), 1), a=nn.Linear(4, 3)).eval()
    x = torch.randn(8, 4)
    network = build(model, x)
    bits = {"a": np.full(3, 4)}
    quantized = Quantized(network, round_weights(network, weight_tables(network), bits), {})
    with pytest.raises(BitwrightError, match="cumsum"):
        artefact.save(quantized, tmp_path / "m.safetensors", {})
    assert not list(tmp_path.iterdir())
