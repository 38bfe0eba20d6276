"""One unpacking chain for the whole network: from packed streams to every layer's 8-bit integers.

Three streams of nibbles, pairs and single bits become codes of every width; each width is split
among the layers, a layer's pieces are joined, put back in channel order and shifted by the rows'
zero points. All of it is constant, so a runtime folds it at load.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from bitwright.arith.grid import MAX_BITS
from bitwright.arith.packing import PLANES, pack, parts
from bitwright.deploy.artefact import codes_by_width, rows_by_width
from bitwright.deploy.builder import Builder, ints, u8
from bitwright.network import Layer
from bitwright.quantize import Quantized


@dataclass(frozen=True)
class Container:
    """A layer's weights in the graph: `scale · (integers − zero)`.

    Attributes:
        integers: int8 or uint8, of the weight's shape.
        scale: float32 [rows].
        zero: of every row: 0 for int8, 128 for uint8.
    """

    integers: ir.Value
    scale: ir.Value
    zero: int


def unpack_chain(
    build: Builder, codes: Mapping[int, np.ndarray], streams: Mapping[int, np.ndarray]
) -> ir.Value:
    """All bytes in the container's step, flat int8, by width: `2v` for b ≤ 7, `v` for 8.

    Codes of 7 and 8 bits come with the top bit turned over, so that their bytes, read as two's
    complement, are `2v − 128` and `v − 128`; nothing overflows anywhere.
    """
    by_width: dict[int, list[ir.Value]] = {bits: [] for bits in codes if bits < MAX_BITS}
    for plane in PLANES:
        users = [bits for bits in by_width if bits & plane]
        if not users:
            continue
        places = plane * np.arange(8 // plane, dtype=np.uint8)[:, None]
        # masked first: a runtime that divides (OpenVINO) has no remainder to round
        masks = (np.uint8(2**plane - 1) << places).astype(np.uint8)
        columns = build.op("BitwiseAnd", streams[plane], masks)
        columns = build.op("BitShift", columns, places, direction="RIGHT")
        values = build.op("Reshape", columns, ints(-1))
        sizes = [len(codes[bits]) for bits in users]
        spare = len(streams[plane]) * (8 // plane) - sum(sizes)
        cut = build.pieces(values, [*sizes, spare] if spare else sizes)
        for bits, piece in zip(users, cut, strict=False):
            shift = dict(parts(bits))[plane] + 1  # one more: the container counts half steps
            by_width[bits].append(build.op("BitShift", piece, u8(shift), direction="LEFT"))
    done = {}
    for bits, pieces in by_width.items():
        value = pieces[0]
        for piece in pieces[1:]:
            value = build.op("BitwiseOr", value, piece)
        done[bits] = value
    if MAX_BITS in codes:
        done[MAX_BITS] = build.constant(streams[MAX_BITS])
    joined = build.join([done[bits] for bits in sorted(done)])
    return build.op("Cast", joined, to=ir.DataType.INT8)


def layer_weights(
    build: Builder, quantized: Quantized, unsigned: Collection[str]
) -> dict[str, Container]:
    """Each layer's container; uint8 for the layers `unsigned`, int8 for the others."""
    layers = quantized.network.layers
    codes = {
        bits: code ^ np.uint8(2 ** (bits - 1)) if bits >= 7 else code
        for bits, code in codes_by_width(quantized).items()
    }
    flat = unpack_chain(build, codes, pack(codes))
    pieces: dict[str, list[ir.Value]] = {layer.name: [] for layer in layers}
    order: dict[str, list[np.ndarray]] = {layer.name: [] for layer in layers}
    members = [member for rows in rows_by_width(quantized).values() for member in rows]
    cut = build.pieces(flat, [len(rows) * layer.fan_in for layer, rows in members])
    for (layer, rows), piece in zip(members, cut, strict=True):
        pieces[layer.name].append(piece)
        order[layer.name].append(rows)
    scales = _row_scales(build, quantized)
    offsets = _row_offsets(build, quantized)
    places = _row_places(build, layers, order)
    found = {}
    for layer, scale in zip(layers, scales, strict=True):
        value = build.op("Reshape", build.join(pieces[layer.name]), ints(*layer.shape))
        if layer.name in places:
            value = build.op("Gather", value, places[layer.name], axis=0)
        value = build.op("Add", value, offsets[layer.name])
        if layer.name in unsigned:
            value = build.op("Cast", value, to=ir.DataType.INT32)
            value = build.op("Add", value, np.array(128, np.int32))
            value = build.op("Cast", value, to=ir.DataType.UINT8)
        found[layer.name] = Container(value, scale, 128 if layer.name in unsigned else 0)
    return found


def _row_scales(build: Builder, quantized: Quantized) -> list[ir.Value]:
    """Scales float32 [rows] of each layer's container, one constant for all."""
    layers = quantized.network.layers
    grids = [quantized.layers[layer.name].grid for layer in layers]
    scale = np.concatenate([g.scale.numpy() for g in grids])
    wide = np.concatenate([(g.bits == MAX_BITS).numpy() for g in grids])
    scale = np.where(wide, scale, scale / 2).astype(np.float32)
    if np.array_equal(scale.astype(np.float16).astype(np.float32), scale):
        value = build.op("Cast", build.constant(scale.astype(np.float16)), to=ir.DataType.FLOAT)
    else:
        value = build.constant(scale)
    return build.pieces(value, [layer.rows for layer in layers])


def _row_offsets(build: Builder, quantized: Quantized) -> dict[str, ir.Value]:
    """What makes `2v − z` of each row's bytes, int8 [rows, 1, …]; one constant for each rank."""
    found: dict[str, ir.Value] = {}
    layers = quantized.network.layers
    for rank in sorted({len(layer.shape) for layer in layers}):
        members = [layer for layer in layers if len(layer.shape) == rank]
        grids = [quantized.layers[layer.name].grid for layer in members]
        zero = np.concatenate([g.zero.numpy() for g in grids])
        bits = np.concatenate([g.bits.numpy() for g in grids])
        offset = np.where(bits == MAX_BITS, 0, np.where(bits == 7, 128, 0) - zero).astype(np.int8)
        constant = build.constant(offset.reshape(-1, *[1] * (rank - 1)))
        cut = build.pieces(constant, [layer.rows for layer in members])
        found |= {layer.name: piece for layer, piece in zip(members, cut, strict=True)}
    return found


def _row_places(
    build: Builder, layers: Sequence[Layer], order: Mapping[str, Sequence[np.ndarray]]
) -> dict[str, ir.Value]:
    """For layers whose rows were sorted by width: where each row lies, int32 [rows]."""
    mixed = [la for la in layers if len(order[la.name]) > 1]
    mixed = [la for la in mixed if (np.diff(np.concatenate(order[la.name])) < 0).any()]
    if not mixed:
        return {}
    places = [np.argsort(np.concatenate(order[la.name])) for la in mixed]
    joined = np.concatenate(places)
    narrow = joined.astype(np.uint8 if joined.max() < 256 else np.uint16)
    if joined.max() >= 65536:
        narrow = joined.astype(np.int32)
    value = build.op("Cast", build.constant(narrow), to=ir.DataType.INT32)
    cut = build.pieces(value, [la.rows for la in mixed])
    return {layer.name: piece for layer, piece in zip(mixed, cut, strict=True)}
