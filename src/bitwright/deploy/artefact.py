"""`model.safetensors`: the packed network, complete in itself, safe to open.

Tensors (all flat; R output channels in the order of layers, G tied groups of activations):

| name | type | what |
|---|---|---|
| `grid` | uint8, zlib | of each channel `width + 16 · (2^width − zero)`, zero in half steps; |
| | | `8 + bases` of one of 2 to 4 bases, whose width that is |
| `coordinates` | uint8 | of each channel of bases, its coordinates and zero, in half steps |
| `scale` | float16 [R]; float32 [R] if one of them is no float16 number | step of each channel |
| `bias` | float32 [channels but those of embeddings] | |
| `bytes`, `nibbles`, `pairs`, `singles` | uint8 | packed codes (:mod:`bitwright.arith.packing`) |
| `edge_scale` | float32 [G] | steps of the activations |
| `program` | uint8, zlib | JSON: graph, layers, edges, grids of the groups |
| `f:NAME` | any numbers | parameters that stay as they are |

No permutation is stored: inside the streams the channels of each width follow one another in their
own order, so that the widths alone say where each one lies. The metadata entry `bitwright` is JSON
(schema, producer, preprocessing) with the seal of all bytes (:mod:`bitwright.deploy.seal`).

Nothing read is trusted: sizes are checked against bytes that are there before anything is
allocated, compressed parts have a bound on what they may grow to, and the graph is built from a
table of operations whose shapes must fit (:mod:`bitwright.network.program`).
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bitwright.arith.grid import Grid, are_bases, fits_container, joined
from bitwright.arith.packing import codes_by_width, pack, rows_by_width
from bitwright.deploy.programs import free_tensors, program_limits, require_storable
from bitwright.deploy.rebuild import MOST_SPARE, STREAMS, rebuild
from bitwright.deploy.tensors import from_bytes, read_bytes, to_bytes
from bitwright.errors import BitwrightError
from bitwright.files import put
from bitwright.network import Layer, Network
from bitwright.network.program import to_json
from bitwright.quantize import Quantized, QuantizedLayer, coordinate_bytes

SCHEMA = 2
#: what reads artefacts of other kinds
READERS = {
    "graph": "bitwright.graph.artefact.load",
    "multi-bit": "bitwright.multibit.artefact.load",
}


@dataclass(frozen=True)
class Artefact:
    """A loaded artefact: the quantized network and what is said about it."""

    quantized: Quantized
    metadata: Mapping[str, Any]


def save(quantized: Quantized, path: Path, metadata: Mapping[str, Any]) -> None:
    """Write the artefact, to a temporary name first.

    Raises:
        BitwrightError: the graph uses an operation a stored program may not contain, or a grid does
            not fit the 8-bit container.
    """
    network = quantized.network
    require_storable(network, "the ONNX file can: export that alone, or replace the operation")
    stored = [quantized.layers[layer.name] for layer in network.layers]
    scale = torch.cat([s.grid.scale for s in stored])
    half = scale.half()
    tensors: dict[str, np.ndarray] = {
        "grid": _compressed(
            b"".join(symbols(la, quantized.layers[la.name]).tobytes() for la in network.layers)
        ),
        "scale": (half if torch.equal(half.float(), scale) else scale).numpy(),
        "bias": torch.cat([s.bias for s in stored]).numpy(),
    }
    grid = joined([s.grid for s in stored])
    if bool(grid.multibit.any()):
        tensors["coordinates"] = coordinates(grid)
    rows = rows_by_width([s.grid.bits.numpy() for s in stored])
    codes = codes_by_width([s.codes.numpy() for s in stored], rows)
    for plane, data in pack(codes).items():
        if len(data):
            tensors[STREAMS[plane]] = data
    groups = sorted(quantized.edges)
    if groups:
        steps = [quantized.edges[g].scale for g in groups]
        tensors["edge_scale"] = np.array(steps, dtype=np.float32)
    tensors |= free_tensors(network)
    tree = _program(quantized)
    program = json.dumps(tree, separators=(",", ":")).encode()
    limits = program_limits(tensors)
    if len(program) > limits.text or len(tree["graph"]) > limits.nodes:
        raise BitwrightError(
            f"the graph of {len(network.module.graph.nodes)} operations is too large for an "
            f"artefact of {network.weights} weights; export the ONNX file alone"
        )
    tensors["program"] = _compressed(program)
    put(path, to_bytes(tensors, {"schema": SCHEMA, **metadata}))


def symbols(layer: Layer, stored: QuantizedLayer) -> np.ndarray:
    """Width and zero point of each channel in one byte, uint8 [rows].

    Raises:
        BitwrightError: a zero point that does not fit.
    """
    bits, zero = stored.grid.bits, stored.grid.zero
    spare, own = 2**bits - zero, stored.grid.multibit
    right = fits_container(bits, zero) & (spare >= 0) & (spare <= MOST_SPARE)
    if stored.grid.coordinates is not None:
        right = torch.where(own, are_bases(bits, zero, stored.grid.coordinates), right)
    if not bool(right.all()):
        raise BitwrightError(
            f"layer {layer.name!r} has zero points that cannot be stored; they must lie within "
            f"{MOST_SPARE} half steps below 2^bits and in the 8-bit container"
        )
    return torch.where(own, 8 + bits, bits + 16 * spare).numpy().astype(np.uint8)


def coordinates(grid: Grid) -> np.ndarray:
    """Coordinates and zero of each channel of bases, one after another, uint8, flat."""
    own = grid.multibit
    assert grid.coordinates is not None
    each = torch.cat([grid.coordinates, grid.zero[:, None]], 1)[own]
    there = torch.cat([grid.coordinates > 0, torch.ones(len(own), 1, dtype=torch.bool)], 1)[own]
    return each[there].numpy().astype(np.uint8)


def _compressed(content: bytes) -> np.ndarray:
    return np.frombuffer(zlib.compress(content, 9), dtype=np.uint8)


def _program(quantized: Quantized) -> dict[str, Any]:
    network = quantized.network
    listed = [n.name for n in network.module.graph.nodes if n.op != "get_attr"]
    place = {name: i for i, name in enumerate(listed)}
    groups = sorted(quantized.edges)
    widths = [list(quantized.edges[g].widths) for g in groups]
    return {
        "graph": to_json(network.module),
        "layers": [[place[la.calls[0]], *la.shape] for la in network.layers],
        "edges": [
            [place[e.name], e.group, e.at_zero, e.ceiling if e.ceiling < math.inf else None]
            for e in network.edges
        ],
        "grids": [[quantized.edges[g].zero, quantized.edges[g].bits] for g in groups],
        "groups": groups,
        **({"widths": widths} if any(widths) else {}),
        "input": list(network.input_shape),
        "skipped": list(network.skipped),
    }


def load(path: Path) -> Artefact:
    """Read an artefact; every byte is checked before anything is built from it.

    Raises:
        BitwrightError: not an artefact, damaged, or of another schema.
    """
    content = read_bytes(path, "a bitwright artefact")
    tensors, header = from_bytes(content, path)
    kind = header.get("kind")
    if kind in READERS:
        raise BitwrightError(f"{path} is a {kind} network; {READERS[kind]} reads it")
    found = header.get("schema")
    if type(found) is not int or found != SCHEMA:
        raise BitwrightError(
            f"{path} has artefact schema {found!r:.20}; this version reads {SCHEMA}: write it "
            "again from the run"
        )
    try:
        return Artefact(rebuild(tensors), header)
    except BitwrightError as error:
        raise error if str(path) in str(error) else BitwrightError(f"{path}: {error}") from error
    except Exception as error:  # torch raises anything on numbers that do not fit
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise BitwrightError(f"{path} is damaged: {reason[0][:300]}") from error


def stored_bytes(
    network: Network,
    bits: Mapping[str, np.ndarray],
    bases: Mapping[str, np.ndarray] | None = None,
) -> dict[str, int]:
    """What a plan must cost: packed codes, scales, zero points, widths, biases, in bytes.

    With `bases`, layer name -> bool [rows], also the coordinates of those rows.
    """
    codes = sum(int(bits[la.name].sum()) * la.fan_in for la in network.layers)
    rows = sum(la.rows for la in network.layers)
    biased = sum(la.rows for la in network.layers if la.bias)
    return {
        "weights": -(-codes // 8),
        "scales": 2 * rows,
        "zero points": rows,
        "widths": rows,
        "biases": 4 * biased,
        **({} if bases is None else {"coordinates": _coordinate_bytes(bits, bases)}),
    }


def _coordinate_bytes(bits: Mapping[str, np.ndarray], bases: Mapping[str, np.ndarray]) -> int:
    return sum(int(coordinate_bytes(bits[name][own]).sum()) for name, own in bases.items())
