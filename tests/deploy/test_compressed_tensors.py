"""The compressed-tensors layout: that library's own unpacking gives our weights, bit for bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from bitwright.deploy import compressed_tensors
from bitwright.errors import BitwrightError
from bitwright.quantize import Quantized
from deploy import nets

NETS = ("dense", "tokens", "gelu_tokens", "plain")
WIDTHS = [(4, 8), tuple(range(1, 9))]


def written(quantized: Quantized, folder: Path, **more: Any) -> tuple[dict[str, Any], Any]:
    compressed_tensors.write(quantized, folder, **more)
    return load_file(folder / "model.safetensors"), json.loads((folder / "config.json").read_text())


def groups(config: Any) -> dict[str, int]:
    """Bits of each layer."""
    found = config["quantization_config"]["config_groups"].values()
    return {name: g["weights"]["num_bits"] for g in found for name in g["targets"]}


def unpacked(packed: torch.Tensor, bits: int, columns: int) -> np.ndarray:
    """The layout read by arithmetic on one long number a row."""
    rows = []
    for row in packed.numpy().astype("<i4"):
        number = int.from_bytes(row.tobytes(), "little")
        mask, half = 2**bits - 1, 2 ** (bits - 1)
        rows.append([(number >> (bits * i) & mask) - half for i in range(columns)])
    return np.array(rows)


@pytest.mark.parametrize("widths", WIDTHS)
@pytest.mark.parametrize("name", NETS)
def test_weights_are_exactly_ours(name: str, widths: tuple[int, ...], tmp_path: Path):
    quantized, _ = nets.quantized(name, bits=(1, 5))
    tensors, config = written(quantized, tmp_path, widths=widths)
    found = groups(config)
    linear = [la for la in quantized.network.layers if la.kind == "linear"]
    assert set(found) == {la.name for la in linear}
    for layer in linear:
        q = unpacked(tensors[f"{layer.name}.weight_packed"], found[layer.name], layer.fan_in)
        scale = tensors[f"{layer.name}.weight_scale"]
        stored = quantized.layers[layer.name]
        assert torch.equal(torch.from_numpy(q).float() * scale, stored.matrix())
        assert tensors[f"{layer.name}.weight_shape"].tolist() == list(layer.shape)
        assert torch.equal(tensors[layer.bias], stored.bias)
        smaller = [w for w in widths if w < found[layer.name]]
        assert all(q.min() < -(2 ** (w - 1)) or q.max() >= 2 ** (w - 1) for w in smaller)
    for layer in quantized.network.layers:
        if layer not in linear:
            weight = quantized.layers[layer.name].matrix().reshape(layer.shape)
            assert torch.equal(tensors[layer.weight], weight)
    other = [la.name for la in quantized.network.layers if la not in linear]
    assert config["quantization_config"]["ignore"] == other


@pytest.mark.parametrize("name", NETS)
def test_the_library_reads_the_same(name: str, tmp_path: Path):
    reason = "compressed-tensors is not installed (pip install 'bitwright[interop]')"
    library = pytest.importorskip(
        "compressed_tensors.compressors", reason=reason, exc_type=ImportError
    )
    quantization = pytest.importorskip("compressed_tensors.quantization")
    quantized, _ = nets.quantized(name)
    tensors, config = written(quantized, tmp_path)
    parsed = quantization.QuantizationConfig.model_validate(config["quantization_config"])
    for layer in quantized.network.layers:
        if layer.kind != "linear":
            continue
        scheme = next(g for g in parsed.config_groups.values() if layer.name in g.targets)
        own = {
            key.removeprefix(f"{layer.name}."): value
            for key, value in tensors.items()
            if key.startswith(f"{layer.name}.weight_")
        }
        found = library.PackedQuantizationCompressor.decompress(own, scheme)
        assert torch.equal(found["weight"], quantized.layers[layer.name].matrix())


@settings(max_examples=60, deadline=None)
@given(bits=st.integers(1, 8), rows=st.integers(1, 3), columns=st.integers(1, 70), data=st.data())
def test_packing_is_the_inverse_of_reading(bits: int, rows: int, columns: int, data: Any):
    half = 2 ** (bits - 1)
    size = st.lists(st.integers(-half, half - 1), min_size=columns, max_size=columns)
    q = torch.tensor([data.draw(size) for _ in range(rows)], dtype=torch.int16)
    packed = torch.from_numpy(compressed_tensors.pack_rows(q, bits))
    assert packed.shape == (rows, -(-columns * bits // 32))
    assert np.array_equal(unpacked(packed, bits, columns), q.numpy())


def test_what_it_cannot_hold_is_said(tmp_path: Path):
    quantized, _ = nets.quantized("plain")
    notes = "\n".join(compressed_tensors.write(quantized, tmp_path).notes)
    assert "a.0, b.0" in notes and "activations" in notes and "bits a weight" in notes
    segments, _ = nets.quantized("segments")
    with pytest.raises(BitwrightError, match="Linear"):
        compressed_tensors.write(segments, tmp_path)
