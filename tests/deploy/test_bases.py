"""Channels of bases in files: the same numbers everywhere, and damaged ones refused."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import numpy_helper
from safetensors import safe_open

from bitwright.arith.grid import BASES, container
from bitwright.deploy import (
    IntegerNetwork,
    artefact,
    c_binary,
    compressed_tensors,
    onnx_file,
    verify,
)
from bitwright.deploy import tensors as strict
from bitwright.errors import BitwrightError
from bitwright.overflow import guarantee
from bitwright.quantize import Quantized, WeightTable, bases_tables, round_weights, weight_tables
from deploy import nets

NETS = ("residual", "mobile", "words", "signal")
ROOT = Path(__file__).resolve().parents[2]


@functools.cache
def mixed(name: str) -> Quantized:
    """A network of the roster whose channels have any width, half of those that can bases."""
    quantized, _ = nets.quantized(name)
    network = quantized.network
    uniform = weight_tables(network)
    multibit = bases_tables(network, uniform)
    rng = np.random.default_rng(3)
    tables, widths = {}, {}
    for layer in network.layers:
        bits = np.where(rng.random(layer.rows) < 0.7, rng.integers(2, 5, layer.rows),
                        rng.integers(1, 9, layer.rows))  # fmt: skip
        own = torch.from_numpy(np.isin(bits, BASES) & (rng.random(layer.rows) < 0.6))
        one, other = uniform[layer.name], multibit[layer.name]
        assert other.coordinates is not None
        tables[layer.name] = WeightTable(
            torch.where(own, other.scale, one.scale), torch.where(own, other.zero, one.zero),
            one.error, torch.where(own[:, None], other.coordinates, 0),
        )  # fmt: skip
        widths[layer.name] = bits
    layers = round_weights(network, tables, widths)
    return replace(quantized, layers=layers)


@pytest.mark.parametrize("name", NETS)
def test_load_gives_what_was_saved(name: str, tmp_path: Path):
    quantized = mixed(name)
    grids = [s.grid for s in quantized.layers.values()]
    assert 0 < sum(int(g.multibit.sum()) for g in grids) < sum(len(g.bits) for g in grids)
    path, again = tmp_path / "model.safetensors", tmp_path / "again.safetensors"
    artefact.save(quantized, path, {})
    loaded = artefact.load(path).quantized
    for key, ours in quantized.layers.items():
        theirs = loaded.layers[key]
        assert torch.equal(ours.codes, theirs.codes)
        assert torch.equal(ours.matrix(), theirs.matrix())
        assert torch.equal(ours.grid.multibit, theirs.grid.multibit)
        assert torch.equal(ours.grid.zero, theirs.grid.zero)
    x = nets.rows(nets.ROSTER[name][1], 8, seed=5, tokens="words" in name)
    assert torch.equal(IntegerNetwork(quantized)(x), IntegerNetwork(loaded)(x))
    artefact.save(loaded, again, {})
    assert again.read_bytes() == path.read_bytes()
    bits = {n: s.grid.bits.numpy() for n, s in quantized.layers.items()}
    own = {n: s.grid.multibit.numpy() for n, s in quantized.layers.items()}
    with safe_open(path, framework="numpy") as file:
        held = len(file.get_tensor("coordinates"))
    assert held == artefact.stored_bytes(quantized.network, bits, own)["coordinates"]
    assert held == sum(int((bits[n][own[n]] + 1).sum()) for n in bits)


def weights_in(path: Path, folder: Path) -> set[bytes]:
    """Bytes of all 8-bit constants that the runtime holds once it has folded what it can."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(folder / "folded.onnx")
    ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    graph = onnx.load(folder / "folded.onnx").graph
    return {
        numpy_helper.to_array(t).tobytes() for t in graph.initializer
        if t.data_type in (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)
    }  # fmt: skip


@pytest.mark.parametrize("name", NETS)
def test_the_runtime_unpacks_the_same_integers(name: str, tmp_path: Path):
    quantized, path = mixed(name), tmp_path / "model.onnx"
    onnx_file.save(quantized, path)
    x = nets.rows(nets.ROSTER[name][1], 32, seed=77, tokens="words" in name)
    found = verify(quantized, path, x)
    assert found.ok and found.same_class == 1.0, found
    folded = weights_in(path, tmp_path)
    for layer in quantized.network.layers:
        if layer.kind.startswith("conv"):
            stored = quantized.layers[layer.name]
            q = container(stored.codes, stored.grid)[0]
            # unsigned where a kernel could saturate
            both = {q.to(torch.int8).numpy().tobytes(), (q + 128).to(torch.uint8).numpy().tobytes()}
            assert both & folded, layer.name
    assert not {"GatherElements", "MatMul", "BitShift"} & set(found.operations) or name == "words"


def test_another_coordinate_is_noticed(tmp_path: Path):
    quantized, path = mixed("residual"), tmp_path / "model.onnx"
    onnx_file.save(quantized, path)
    layers = dict(quantized.layers)
    for name, stored in layers.items():
        grid = stored.grid
        assert grid.coordinates is not None
        moved = grid.coordinates + (grid.coordinates > 0) * torch.tensor([1, 0, 0, 0])
        layers[name] = replace(stored, grid=replace(grid, coordinates=moved))
    x = nets.rows(nets.ROSTER["residual"][1], 16, seed=77)
    assert not verify(replace(quantized, layers=layers), path, x).ok


def test_the_example_reads_the_same_weights(tmp_path: Path):
    quantized, path = mixed("residual"), tmp_path / "model.safetensors"
    artefact.save(quantized, path, {})
    script = (
        f"import sys; sys.path.insert(0, {str(ROOT / 'examples')!r}); import read_artefact as r; "
        f"import numpy as np; np.savez({str(tmp_path / 'w.npz')!r}, **r.read({str(path)!r}))"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
    found = np.load(tmp_path / "w.npz")
    for layer in quantized.network.layers:
        own = quantized.layers[layer.name].matrix().reshape(layer.shape).numpy()
        assert np.array_equal(found[layer.weight], own)


def hostile(change: Callable[[np.ndarray], np.ndarray | None], content: bytes) -> bytes:
    """The file with other coordinates and a right seal."""
    found, _ = strict.parse_tensors(content)
    changed = change(found["coordinates"].copy())
    kept = {k: v for k, v in found.items() if k != "coordinates"}
    if changed is not None:
        kept["coordinates"] = changed
    return strict.to_bytes(kept, {"schema": artefact.SCHEMA})


@pytest.mark.parametrize(
    "change",
    [
        lambda v: None,
        lambda v: v[:-1],
        lambda v: np.append(v, np.uint8(3)),
        lambda v: np.zeros_like(v),
        lambda v: np.full_like(v, 255),
        lambda v: v.astype(np.int32),
        lambda v: v.reshape(1, -1),
        lambda v: np.zeros(0, np.uint8),
        lambda v: np.full_like(v, 63),
    ],
)
def test_damaged_coordinates_are_refused(
    change: Callable[[np.ndarray], np.ndarray | None], tmp_path: Path
):
    path = tmp_path / "model.safetensors"
    artefact.save(mixed("mobile"), path, {})
    content = path.read_bytes()
    path.write_bytes(hostile(lambda v: v, content))
    artefact.load(path)
    path.write_bytes(hostile(change, content))
    with pytest.raises(BitwrightError) as caught:
        artefact.load(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_coordinates_of_nobody_are_refused(tmp_path: Path):
    path = tmp_path / "model.safetensors"
    artefact.save(nets.quantized("mobile")[0], path, {})
    found, _ = strict.parse_tensors(path.read_bytes())
    more = {**found, "coordinates": np.array([2, 4, 3], np.uint8)}
    path.write_bytes(strict.to_bytes(more, {"schema": artefact.SCHEMA}))
    with pytest.raises(BitwrightError, match="coordinates"):
        artefact.load(path)


def test_what_does_not_fit_is_not_written(tmp_path: Path):
    quantized = mixed("residual")
    layers = {
        n: replace(s, grid=replace(s.grid, zero=s.grid.zero + 64 * s.grid.multibit))
        for n, s in quantized.layers.items()
    }
    with pytest.raises(BitwrightError, match="cannot be stored"):
        artefact.save(replace(quantized, layers=layers), tmp_path / "m.safetensors", {})


def test_other_targets(tmp_path: Path):
    quantized = mixed("dense")
    with pytest.raises(BitwrightError, match="--levels uniform"):
        c_binary.write(quantized, tmp_path)
    compressed_tensors.write(quantized, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "compressed-tensors"
    for layer in quantized.network.layers:
        stored = quantized.layers[layer.name]
        q, step = compressed_tensors.signed(stored)
        assert torch.equal(q.float() * step[:, None], stored.matrix())
    with pytest.raises(BitwrightError, match="bases"):
        guarantee.guaranteed(
            quantized.network,
            quantized.layers,
            quantized.edges,
            None,  # type: ignore[arg-type]
        )
