"""`model.safetensors` of a multi-bit network: bit planes and coordinates, complete in itself.

| name | type | what |
|---|---|---|
| `counts` | uint8, zlib | bases of each group, four bits each (:mod:`bitwright.multibit.packed`) |
| `alpha` | float16 | coordinates |
| `signs` | uint8 | n bits of each coordinate |
| `bias` | float32 | of all layers |
| `program` | uint8, zlib | JSON: graph, layers, groups |
| `f:NAME` | any numbers | parameters that stay as they are |

Sealed, written and read as :mod:`bitwright.deploy.artefact` is: nothing read is trusted.
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
from torch import Tensor

from bitwright.deploy.programs import (
    captured,
    free_tensors,
    layer_shapes,
    read_program,
    require_storable,
)
from bitwright.deploy.tensors import from_bytes, read_bytes, to_bytes
from bitwright.errors import BitwrightError
from bitwright.files import put
from bitwright.multibit.groups import KINDS, Grouping
from bitwright.multibit.packed import Packed, unpack
from bitwright.multibit.stored import Stored, StoredLayer
from bitwright.network.program import to_json

SCHEMA, KIND = 1, "multi-bit"
_KNOWN = {"counts", "alpha", "signs", "bias", "program"}
#: weights that a stored byte may stand for; empty groups cost nothing, but memory they would take
_WEIGHTS_BYTE, _ALWAYS = 2**12, 2**16


@dataclass(frozen=True)
class Program:
    """The JSON of `program`.

    Attributes:
        graph: of :func:`bitwright.network.program.to_json`.
        layers: first node that calls it, then the weight's shape.
        groups: place of the kind in :data:`~bitwright.multibit.groups.KINDS`, and n, of each layer.
        input: shape of one row.
        skipped: layers left in float.
    """

    graph: tuple[Any, ...]
    layers: tuple[tuple[int, ...], ...]
    groups: tuple[tuple[int, int], ...]
    input: tuple[int, ...]
    skipped: tuple[str, ...]


def save(stored: Stored, path: Path, metadata: Mapping[str, Any]) -> None:
    """Write the artefact, to a temporary name first.

    Raises:
        BitwrightError: the graph uses an operation a stored program may not contain, or nearly all
            of a network is empty.
    """
    network, packed = stored.network, stored.packed()
    require_storable(network, "replace the operation")
    biases = [network.bias(la).detach() for la in network.layers]
    tensors: dict[str, np.ndarray] = {
        "counts": packed.counts, "alpha": packed.alpha, "signs": packed.signs,
        "bias": torch.cat(biases).numpy(),
    }  # fmt: skip
    tensors |= free_tensors(network)
    if network.weights > _most_weights(packed):
        raise BitwrightError(
            f"{network.weights} weights in {packed.size_bits // 8} bytes are more than a reader "
            "takes; raise the bits"
        )
    program = json.dumps(_program(stored), separators=(",", ":")).encode()
    tensors["program"] = np.frombuffer(zlib.compress(program, 9), np.uint8)
    put(path, to_bytes(tensors, {"schema": SCHEMA, "kind": KIND, **metadata}))


def load(path: Path) -> Stored:
    """Read an artefact; every byte is checked before anything is built from it.

    Raises:
        BitwrightError: not such an artefact, damaged, or of another schema.
    """
    tensors, header = from_bytes(read_bytes(path, "a bitwright artefact"), path)
    if header.get("kind") != KIND or header.get("schema") != SCHEMA:
        raise BitwrightError(
            f"{path} is no multi-bit artefact of schema {SCHEMA}; `bitwright.load` opens others"
        )
    try:
        return _rebuilt(tensors)
    except BitwrightError as error:
        raise BitwrightError(f"{path}: {error}") from error
    except Exception as error:  # torch raises anything on numbers that do not fit
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise BitwrightError(f"{path} is damaged: {reason[0][:300]}") from error


def _program(stored: Stored) -> dict[str, Any]:
    network = stored.network
    listed = [n.name for n in network.module.graph.nodes if n.op != "get_attr"]
    place = {name: i for i, name in enumerate(listed)}
    groupings = [stored.layers[la.name].grouping for la in network.layers]
    return {
        "graph": to_json(network.module),
        "layers": [[place[la.calls[0]], *la.shape] for la in network.layers],
        "groups": [[KINDS.index(g.kind), g.size] for g in groupings],
        "input": list(network.input_shape),
        "skipped": list(network.skipped),
    }


def _most_weights(packed: Packed) -> int:
    return _ALWAYS + _WEIGHTS_BYTE * (packed.size_bits // 8)


def _rebuilt(tensors: dict[str, np.ndarray]) -> Stored:
    strange = [name for name in tensors if name not in _KNOWN and name[:2] != "f:"]
    if not set(tensors) >= _KNOWN or strange:
        raise ValueError(f"it lacks tensors, or has unknown {strange[:3]!r:.100}")
    for name, kind in (("counts", "uint8"), ("alpha", "float16"), ("signs", "uint8"),
                       ("bias", "float32"), ("program", "uint8")):  # fmt: skip
        if tensors[name].dtype.name != kind or tensors[name].ndim != 1:
            raise ValueError(f"its {name} is no row of {kind}")
    program = read_program(Program, tensors)
    packed = Packed(tensors["counts"], tensors["alpha"], tensors["signs"])
    shapes = layer_shapes(program.graph, program.layers)
    layers = _layers(program, packed, shapes)
    rows = [shape[0] if bias else 0 for _, bias, shape in shapes]
    if tensors["bias"].shape != (sum(rows),) or not np.isfinite(tensors["bias"]).all():
        raise ValueError(f"its bias is not {sum(rows)} numbers")
    biases = torch.from_numpy(np.array(tensors["bias"])).split(rows)
    own: dict[str, Tensor] = {}
    for (weight, bias, shape), offset in zip(shapes, biases, strict=True):
        own[weight] = layers[weight.removesuffix(".weight")].weight(shape)
        if bias:
            own[bias] = offset.clone()
    network = captured(program, tensors, shapes, own)
    return Stored(network, layers)


def _layers(
    program: Program, packed: Packed, shapes: list[tuple[str, str, tuple[int, ...]]]
) -> dict[str, StoredLayer]:
    if len(program.groups) != len(shapes):
        raise ValueError(f"groups of {len(program.groups)} layers, not {len(shapes)}")
    sizes = [math.prod(shape) for _, _, shape in shapes]
    if sum(sizes) > _most_weights(packed):
        raise ValueError(f"{sum(sizes)} weights in {packed.size_bits // 8} bytes")
    wanted, groupings = [], []
    for (kind, n), (_, _, shape), size in zip(program.groups, shapes, sizes, strict=True):
        if not 0 <= kind < len(KINDS) or n < 1 or (size // shape[0]) % n:
            raise ValueError(f"groups of {n} weights do not fit channels of {size // shape[0]}")
        if KINDS[kind] == "pixel" and n != shape[1]:
            raise ValueError(f"pixels of {n} weights do not fit {shape[1]} inputs")
        groupings.append(Grouping(KINDS[kind], n))
        wanted.append((size // n, n))
    bases = unpack(packed, wanted)
    return {
        weight.removesuffix(".weight"): StoredLayer(each, grouping)
        for (weight, _, _), each, grouping in zip(shapes, bases, groupings, strict=True)
    }
