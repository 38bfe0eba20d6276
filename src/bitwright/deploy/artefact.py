"""`model.safetensors`: the packed network, complete in itself, safe to open.

Tensors (all flat, rows in the order of layers, widths ascending inside the streams):

| name | type | what |
|---|---|---|
| `bits` | uint8 [R] | width of each output channel |
| `zero` | uint8 [R] | zero point in half steps; 0 for 8 bits, where it is always 256 |
| `scale` | float16 [R], or float32 if some scale does not fit | step of each channel |
| `bias` | float32 [R] | |
| `bytes`, `nibbles`, `pairs`, `singles` | uint8 | packed codes (:mod:`bitwright.arith.packing`) |
| `edge_scale`, `edge_zero` | float32, uint8 [G] | grids of the tied groups of activations |
| `edge_bits` | uint8 [G] | their widths, where not all have 8 |
| `program` | uint8 | zlib-compressed JSON: graph, layers, edges, names |
| `f:NAME` | any float | parameters that stay as they are |

The metadata entry `bitwright` is JSON: schema, producer, preprocessing, checksum (SHA-256 over the
rest of the entry and all tensors).
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from bitwright.arith.grid import MAX_BITS, Grid
from bitwright.arith.packing import pack, unpack
from bitwright.errors import BitwrightError
from bitwright.network import Edge, Layer, Network, describe
from bitwright.network.program import from_json, to_json, unstorable
from bitwright.quantize import EDGE_WIDTHS, EdgeGrid, Quantized, QuantizedLayer

SCHEMA = 1
_STREAMS = {8: "bytes", 4: "nibbles", 2: "pairs", 1: "singles"}
#: a program is text about a graph; more than this is not one of ours
_PROGRAM_LIMIT = 64_000_000


@dataclass(frozen=True)
class Artefact:
    """A loaded artefact: the quantized network and what is said about it."""

    quantized: Quantized
    metadata: Mapping[str, Any]


def rows_by_width(quantized: Quantized) -> dict[int, list[tuple[Layer, np.ndarray]]]:
    """For each width in use, ascending: each layer with such rows, and their indexes."""
    found: dict[int, list[tuple[Layer, np.ndarray]]] = {}
    for bits in range(1, MAX_BITS + 1):
        for layer in quantized.network.layers:
            rows = np.flatnonzero(quantized.layers[layer.name].grid.bits.numpy() == bits)
            if len(rows):
                found.setdefault(bits, []).append((layer, rows))
    return found


def codes_by_width(quantized: Quantized) -> dict[int, np.ndarray]:
    """All codes of each width, flat uint8, in the order of :func:`rows_by_width`."""
    return {
        bits: np.concatenate(
            [quantized.layers[la.name].codes.numpy()[rows].ravel() for la, rows in members]
        )
        for bits, members in rows_by_width(quantized).items()
    }


def save(quantized: Quantized, path: Path, metadata: Mapping[str, Any]) -> None:
    """Write the artefact, to a temporary name first.

    Raises:
        BitwrightError: the graph uses an operation a stored program may not contain.
    """
    network = quantized.network
    strange = unstorable(network.module)
    if strange:
        raise BitwrightError(
            f"the model uses {', '.join(strange[:5])}, which the artefact cannot store; the ONNX "
            "file can: export that alone, or replace the operation"
        )
    stored = [quantized.layers[layer.name] for layer in network.layers]
    bits = torch.cat([s.grid.bits for s in stored])
    zero = torch.cat([s.grid.zero for s in stored])
    scale = torch.cat([s.grid.scale for s in stored])
    half = scale.half()
    tensors: dict[str, np.ndarray] = {
        "bits": bits.numpy().astype(np.uint8),
        "zero": torch.where(bits == MAX_BITS, 0, zero).numpy().astype(np.uint8),
        "scale": (half if torch.equal(half.float(), scale) else scale).numpy(),
        "bias": torch.cat([s.bias for s in stored]).numpy(),
    }
    for plane, data in pack(codes_by_width(quantized)).items():
        if len(data):
            tensors[_STREAMS[plane]] = data
    groups = sorted(quantized.edges)
    if groups:
        grids = [quantized.edges[g] for g in groups]
        tensors["edge_scale"] = np.array([g.scale for g in grids], dtype=np.float32)
        tensors["edge_zero"] = np.array([g.zero for g in grids], dtype=np.uint8)
        if any(g.bits < 8 for g in grids):
            tensors["edge_bits"] = np.array([g.bits for g in grids], dtype=np.uint8)
    own = {layer.weight for layer in network.layers} | {layer.bias for layer in network.layers}
    module = network.module
    for name, value in [*module.named_parameters(), *module.named_buffers()]:
        if name not in own:
            tensors[f"f:{name}"] = np.ascontiguousarray(value.detach().numpy())
    program = {
        "graph": to_json(module),
        "layers": [[la.weight, la.bias, list(la.shape)] for la in network.layers],
        "edges": [
            [e.name, e.group, list(e.shape), e.at_zero, e.ceiling if e.ceiling < math.inf else None]
            for e in network.edges
        ],
        "groups": groups,
        "input": list(network.input_shape),
        "skipped": list(network.skipped),
    }
    text = json.dumps(program, separators=(",", ":")).encode()
    tensors["program"] = np.frombuffer(zlib.compress(text, 9), dtype=np.uint8)
    header = json.loads(json.dumps({"schema": SCHEMA, **metadata}))
    header["sha256"] = checksum(tensors, header)
    temporary = path.with_name(path.name + ".part")
    save_file(tensors, temporary, metadata={"bitwright": json.dumps(header, sort_keys=True)})
    os.replace(temporary, path)


def checksum(tensors: Mapping[str, np.ndarray], header: Mapping[str, Any]) -> str:
    """SHA-256 over the header's other entries, then names, types, shapes and bytes, by name."""
    said = {key: value for key, value in header.items() if key != "sha256"}
    digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode())
    for name in sorted(tensors):
        value = tensors[name]
        digest.update(f"{name}|{value.dtype.str}|{value.shape}|".encode())
        digest.update(np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()


def load(path: Path) -> Artefact:
    """Read an artefact; every byte is checked before anything is built from it.

    Raises:
        BitwrightError: not an artefact, damaged, or of another schema.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            header = json.loads((file.metadata() or {})["bitwright"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, ValueError, TypeError, RecursionError) as error:
        raise BitwrightError(f"{path} is not a bitwright artefact: {error}") from error
    if not isinstance(header, dict) or header.get("schema") != SCHEMA:
        found = header.get("schema") if isinstance(header, dict) else None
        raise BitwrightError(f"{path} has artefact schema {found}; this version reads {SCHEMA}")
    if header.get("sha256") != checksum(tensors, header):
        raise BitwrightError(f"{path} is damaged: its checksum does not match its contents")
    try:
        return Artefact(_build(tensors), header)
    except BitwrightError:
        raise
    except Exception as error:
        raise BitwrightError(f"{path} is damaged: {error}") from error


def _build(tensors: dict[str, np.ndarray]) -> Quantized:
    engine = zlib.decompressobj()
    text = engine.decompress(tensors["program"].tobytes(), _PROGRAM_LIMIT)
    if engine.unconsumed_tail or not engine.eof:
        raise ValueError("the program is longer than it may be, or cut off")
    program = json.loads(text)
    parameters = {
        name[2:]: torch.from_numpy(value.copy())
        for name, value in tensors.items()
        if name.startswith("f:")
    }
    shapes = [(w, b, tuple(int(d) for d in shape)) for w, b, shape in program["layers"]]
    rows = [shape[0] for _, _, shape in shapes]
    bits = tensors["bits"].astype(np.int64)
    if len(bits) != sum(rows) or (len(bits) and not (bits.min() >= 1 and bits.max() <= MAX_BITS)):
        raise ValueError("widths do not fit the layers")
    if any(tensors[name].shape != bits.shape for name in ("scale", "zero", "bias")):
        raise ValueError("scales, zero points or biases do not fit the widths")
    sizes = np.repeat([int(np.prod(s[1:])) for _, _, s in shapes], rows)
    counts = {int(b): int(sizes[bits == b].sum()) for b in np.unique(bits)}
    empty = np.zeros(0, np.uint8)
    codes = unpack({p: tensors.get(n, empty) for p, n in _STREAMS.items()}, counts)
    cuts = np.cumsum(rows)[:-1]
    zero = np.where(bits == MAX_BITS, 256, tensors["zero"].astype(np.int64))
    scale = tensors["scale"].astype(np.float32)
    per_layer = [np.split(v, cuts) for v in (bits, zero, scale, tensors["bias"])]
    start = dict.fromkeys(counts, 0)
    matrices = [np.zeros((s[0], int(np.prod(s[1:]))), np.uint8) for _, _, s in shapes]
    for b in sorted(counts):
        for i, matrix in enumerate(matrices):
            chosen = np.flatnonzero(per_layer[0][i] == b)
            size = len(chosen) * matrix.shape[1]
            piece = codes[b][start[b] : start[b] + size]
            matrix[chosen] = piece.reshape(len(chosen), matrix.shape[1])
            start[b] += size
    layers: dict[str, QuantizedLayer] = {}
    for i, (weight, bias, shape) in enumerate(shapes):
        width, z, s, offset = (torch.from_numpy(np.array(v[i])) for v in per_layer)
        stored = QuantizedLayer(torch.from_numpy(matrices[i]), Grid(width, s, z), offset)
        layers[weight.removesuffix(".weight")] = stored
        parameters[weight] = stored.matrix().reshape(shape)
        parameters[bias] = offset
    module = from_json(program["graph"], parameters)
    if not any(node.op == "output" for node in module.graph.nodes):
        raise ValueError("the program has no output")
    network = describe(module, tuple(program["input"]), tuple(program["skipped"]))
    stored_edges = tuple(
        Edge(n, int(g), tuple(s), bool(z), math.inf if top is None else float(top))
        for n, g, s, z, top in program["edges"]
    )
    network = replace(network, edges=stored_edges)  # as they were when the file was written
    if [la.weight for la in network.layers] != [w for w, _, _ in shapes]:
        raise ValueError("layers do not fit the program")
    edges = {
        int(g): EdgeGrid(float(s), int(z), int(b))
        for g, s, z, b in zip(
            program["groups"],
            tensors.get("edge_scale", np.zeros(0)),
            tensors.get("edge_zero", np.zeros(0)),
            tensors.get("edge_bits", np.full(len(program["groups"]), 8)),
            strict=True,
        )
    }
    if any(g.bits not in EDGE_WIDTHS or not 0 <= g.zero <= g.top for g in edges.values()):
        raise ValueError("grids of edges do not fit their widths")
    return Quantized(network, layers, edges)


def stored_bytes(network: Network, bits: Mapping[str, np.ndarray]) -> dict[str, int]:
    """What a plan must cost: packed codes, scales, zero points, widths, biases, in bytes."""
    codes = sum(int(bits[la.name].sum()) * la.fan_in for la in network.layers)
    rows = sum(la.rows for la in network.layers)
    return {
        "weights": -(-codes // 8),
        "scales": 2 * rows,
        "zero points": rows,
        "widths": rows,
        "biases": 4 * rows,
    }
