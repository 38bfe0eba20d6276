"""`model.safetensors`: complete, small, and refused where a single bit is wrong."""

from __future__ import annotations

import json
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

from bitwright.deploy import IntegerNetwork, artefact
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
    refuse(tmp_path / "m.safetensors", content, "not a bitwright artefact")


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path):
    for path in (tmp_path / "nothing.safetensors", tmp_path):
        with pytest.raises(BitwrightError, match="not a bitwright artefact"):
            artefact.load(path)


def test_a_safetensors_file_of_something_else_is_refused(tmp_path: Path):
    path = tmp_path / "m.safetensors"
    tensors = {"weight": np.zeros(3, np.float32)}
    for metadata in (None, {"format": "pt"}, {"bitwright": "1"}, {"bitwright": "[}"},
                     {"bitwright": "[" * 100_000}):  # fmt: skip
        save_file(tensors, path, metadata=metadata)
        with pytest.raises(BitwrightError):
            artefact.load(path)


def rewritten(
    content: bytes, path: Path, change: Callable[[dict[str, Any], dict[str, Any]], None]
) -> None:
    """The file with its tensors and header changed, and a checksum that fits."""
    path.write_bytes(content)
    with safe_open(path, framework="numpy") as file:
        header = json.loads(file.metadata()["bitwright"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    change(tensors, header)
    header["sha256"] = artefact.checksum(tensors, header)
    save_file(tensors, path, metadata={"bitwright": json.dumps(header)})


def program(edit: Callable[[dict[str, Any]], Any]) -> Callable[[Any, Any], None]:
    """A change of the stored program."""

    def change(tensors: dict[str, Any], header: dict[str, Any]) -> None:
        found = json.loads(zlib.decompress(tensors["program"].tobytes()))
        edit(found)
        text = zlib.compress(json.dumps(found).encode())
        tensors["program"] = np.frombuffer(text, np.uint8)

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


def bomb(tensors: dict[str, Any], header: dict[str, Any]) -> None:
    engine = zlib.compressobj(9)
    pieces = [engine.compress(b" " * 2**20) for _ in range(70)]
    tensors["program"] = np.frombuffer(b"".join([*pieces, engine.flush()]), np.uint8)


def cut_program(tensors: dict[str, Any], header: dict[str, Any]) -> None:
    tensors["program"] = tensors["program"][:-5]


def call(op: str) -> Callable[[Any, Any], None]:
    """A change of the first operation that is called."""

    def edit(found: dict[str, Any]) -> None:
        node = next(n for n in found["graph"] if n[1] == "call_function")
        node[2] = op

    return program(edit)


def tensor(
    name: str, make: Callable[[np.ndarray], np.ndarray | None]
) -> Callable[[Any, Any], None]:
    """A change of one tensor; None drops it."""

    def change(tensors: dict[str, Any], header: dict[str, Any]) -> None:
        found = make(tensors.pop(name))
        if found is not None:
            tensors[name] = found

    return change


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(bomb, id="zlib bomb"),
        pytest.param(cut_program, id="program cut off"),
        pytest.param(tensor("program", lambda p: None), id="no program"),
        pytest.param(tensor("program", lambda p: p[::-1].copy()), id="program no zlib"),
        pytest.param(call("os.system"), id="unknown operation"),
        pytest.param(call("aten.from_file.default"), id="operation that reads files"),
        pytest.param(program(lambda p: p.pop("layers")), id="no layers"),
        pytest.param(program(lambda p: p["layers"].pop()), id="layer missing"),
        pytest.param(program(lambda p: p["layers"].reverse()), id="layers in another order"),
        pytest.param(program(lambda p: p["groups"].pop()), id="edge group missing"),
        pytest.param(program(lambda p: p["graph"].pop()), id="no output"),
        pytest.param(program(lambda p: p["graph"].pop(0)), id="node missing"),
        pytest.param(tensor("bits", lambda b: b[:-1]), id="width missing"),
        pytest.param(tensor("bits", lambda b: b * 0), id="width 0"),
        pytest.param(tensor("bits", lambda b: b * 0 + 9), id="width 9"),
        pytest.param(tensor("scale", lambda s: s[:-1]), id="scale missing"),
        pytest.param(tensor("zero", lambda z: None), id="no zero points"),
        pytest.param(tensor("bias", lambda b: b[:-1]), id="bias missing"),
        pytest.param(tensor("nibbles", lambda s: s[:-1]), id="code missing"),
        pytest.param(tensor("pairs", lambda s: None), id="stream missing"),
        pytest.param(tensor("edge_scale", lambda s: s[:-1]), id="edge scale missing"),
        pytest.param(tensor("edge_zero", lambda s: None), id="no edge zeros"),
    ],
)
def test_a_malformed_file_with_a_correct_checksum_is_refused(
    change: Callable[[Any, Any], None], saved: tuple[Quantized, bytes], tmp_path: Path
):
    path = tmp_path / "m.safetensors"
    rewritten(saved[1], path, change)
    with pytest.raises(BitwrightError) as caught:
        artefact.load(path)
    assert "\n" not in str(caught.value)


def test_what_a_stored_program_may_not_contain_is_not_stored(tmp_path: Path):
    model = nets.Fn(lambda m, x: torch.cumsum(m.a(x), 1), a=nn.Linear(4, 3)).eval()
    x = torch.randn(8, 4)
    network = build(model, x)
    bits = {"a": np.full(3, 4)}
    quantized = Quantized(network, round_weights(network, weight_tables(network), bits), {})
    with pytest.raises(BitwrightError, match="cumsum"):
        artefact.save(quantized, tmp_path / "m.safetensors", {})
    assert not list(tmp_path.iterdir())
