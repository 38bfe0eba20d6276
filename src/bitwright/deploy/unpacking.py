"""One unpacking chain for the whole network: from packed streams to every layer's 8-bit integers.

Three streams of nibbles, pairs and single bits become codes of every width; each width is split
among banks of layers that have rows of one shape; a bank's pieces are joined, put back in channel
order, shifted by the rows' zero points and cut into the layers. Channels of bases are looked up in
tables of their levels, products of their coordinates and the bits of all codes. All of it is
constant, so a runtime folds it at load.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch

from bitwright.arith.grid import BASES, MAX_BITS, Grid, joined
from bitwright.arith.packing import PLANES, codes_by_width, pack, parts, rows_by_width
from bitwright.deploy.banks import Bank, banks
from bitwright.deploy.builder import Builder, ints, u8
from bitwright.errors import BitwrightError
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
    found = banks(quantized)
    grid = joined([bank.grid for bank in found])
    width, spare = _row_codes(build, grid)
    scales = _row_scales(build, grid, width)
    weights = _bank_weights(build, found, width, spare)
    layers = [layer for bank in found for layer in bank.layers]
    done = {}
    for layer, scale in zip(layers, build.pieces(scales, [la.rows for la in layers]), strict=True):
        value = weights[layer.name]
        if layer.name in unsigned:
            value = build.op("Cast", value, to=ir.DataType.INT32)
            value = build.op("Add", value, np.array(128, np.int32))
            value = build.op("Cast", value, to=ir.DataType.UINT8)
        done[layer.name] = Container(value, scale, 128 if layer.name in unsigned else 0)
    return done


def _bank_weights(
    build: Builder, found: Sequence[Bank], width: ir.Value, spare: ir.Value
) -> dict[str, ir.Value]:
    """Layer -> its container's integers, int8, of the weight's shape.

    Args:
        build: of the graph.
        found: the banks, by rank.
        width, spare: of all rows, in the order of the banks.
    """
    rows = rows_by_width([_kinds(bank.grid) for bank in found])
    by_kind = codes_by_width([bank.codes for bank in found], rows)
    # bases have the codes of their width, behind those of uniform channels
    kinds = {bits: [kind for kind in (bits, 8 + bits) if kind in rows] for bits in range(1, 9)}
    codes = {b: np.concatenate([by_kind[k] for k in own]) for b, own in kinds.items() if own}
    for bits in codes.keys() & {7, 8}:  # with the top bit turned over
        codes[bits] = codes[bits] ^ np.uint8(2 ** (bits - 1))
    flat = unpack_chain(build, codes, pack(codes))
    members = [(kind, i, own) for by in kinds.values() for kind in by for i, own in rows[kind]]
    cut = build.pieces(flat, [own.size * found[i].codes.shape[1] for _, i, own in members])
    pieces: list[list[ir.Value]] = [[] for _ in found]
    indexes: list[list[ir.Value]] = [[] for _ in found]
    for (kind, i, _), piece in zip(members, cut, strict=True):
        (pieces if kind <= MAX_BITS else indexes)[i].append(piece)
    tables = _row_tables(build, found, [(i, own) for kind, i, own in members if kind > MAX_BITS])
    offsets = _row_offsets(build, found, width, spare)
    places = _row_places(build, found, width)
    weights: dict[str, ir.Value] = {}
    for i, (bank, offset, place) in enumerate(zip(found, offsets, places, strict=True)):
        if indexes[i]:
            fan_in = bank.codes.shape[1]
            pieces[i].append(
                _looked_up(build, build.join(indexes[i]), build.join(tables[i]), fan_in)
            )
        value = build.op("Reshape", build.join(pieces[i]), ints(-1, *bank.tail))
        if place is not None:
            value = build.op("Gather", value, place, axis=0)
        value = build.op("Add", value, offset)
        cut = build.pieces(value, [layer.rows for layer in bank.layers])
        weights |= {layer.name: piece for layer, piece in zip(bank.layers, cut, strict=True)}
    return weights


def _kinds(grid: Grid) -> np.ndarray:
    """Widths of uniform rows, 8 + k of rows of k bases, int64 [rows]."""
    return torch.where(grid.multibit, MAX_BITS + grid.bits, grid.bits).numpy()


def _kind_count(grid: Grid) -> int:
    """Kinds that rows may be of: 8, or 12 where there are bases."""
    return MAX_BITS + (BASES[-1] if bool(grid.multibit.any()) else 0)


def _row_codes(build: Builder, grid: Grid) -> tuple[ir.Value, ir.Value]:
    """Kind − 1 (int32) and `2ᵇ − z`, 0 of bases (int8), of all rows, from one byte a row."""
    spare = torch.where(grid.multibit, 0, 2**grid.bits - grid.zero).numpy()
    if spare.min() < 0 or spare.max() > 2:
        raise BitwrightError("a zero point is not 2ᵇ, 2ᵇ − 1 or 2ᵇ − 2: no grid of this library")
    shift = (_kind_count(grid) - 1).bit_length()
    said = build.constant(((spare << shift) + _kinds(grid) - 1).astype(np.uint8))
    high = build.op("BitwiseAnd", said, u8(3 << shift))
    above = build.op("BitShift", high, u8(shift), direction="RIGHT")
    low = build.op("BitwiseAnd", said, u8(2**shift - 1))
    return (
        build.op("Cast", low, to=ir.DataType.INT32),
        build.op("Cast", above, to=ir.DataType.INT8),
    )


def _row_tables(
    build: Builder, found: Sequence[Bank], members: Sequence[tuple[int, np.ndarray]]
) -> list[list[ir.Value]]:
    """Levels `2p(v) − z` of rows of bases at the byte 2v, int8 [rows, 31], by bank.

    Coordinates and zero, five numbers a row, times the bits of all bytes.
    """
    tables: list[list[ir.Value]] = [[] for _ in found]
    if not members:
        return tables
    own = []
    for i, rows in members:
        grid = found[i].grid
        assert grid.coordinates is not None
        own.append(torch.cat([grid.coordinates, grid.zero[:, None]], 1)[rows].numpy())
    codes = np.arange(2 ** (BASES[-1] + 1) - 1) >> 1
    bits = (codes >> np.arange(BASES[-1])[:, None]) & 1
    signs = np.concatenate([bits, np.full((1, len(codes)), -1)]).astype(np.int8)
    numbers = [
        build.op("Cast", build.constant(v.astype(np.int8)), to=ir.DataType.FLOAT)
        for v in (np.concatenate(own), signs)
    ]
    levels = build.op("Cast", build.op("MatMul", *numbers), to=ir.DataType.INT8)
    cut = build.pieces(levels, [len(rows) for _, rows in members])
    for (i, _), piece in zip(members, cut, strict=True):
        tables[i].append(piece)
    return tables


def _looked_up(build: Builder, index: ir.Value, table: ir.Value, fan_in: int) -> ir.Value:
    """Each row's bytes in its table, flat int8."""
    index = build.op("Cast", build.op("Reshape", index, ints(-1, fan_in)), to=ir.DataType.INT64)
    return build.op("Reshape", build.op("GatherElements", table, index, axis=1), ints(-1))


def _row_scales(build: Builder, grid: Grid, width: ir.Value) -> ir.Value:
    """Steps of all rows' containers, float32: half the scale, the scale for 8 bits."""
    scale = grid.scale.numpy()
    value = build.constant(scale)
    if np.array_equal(scale.astype(np.float16).astype(np.float32), scale):
        value = build.op("Cast", build.constant(scale.astype(np.float16)), to=ir.DataType.FLOAT)
    bases = _kind_count(grid) - MAX_BITS
    step = np.array([0.5] * (MAX_BITS - 1) + [1.0] + [0.5] * bases, np.float32)
    return build.op("Mul", value, build.op("Gather", step, width, axis=0))


def _row_offsets(
    build: Builder, found: Sequence[Bank], width: ir.Value, spare: ir.Value
) -> list[ir.Value]:
    """What makes `2v − z` of each bank's bytes, int8 [rows, 1, …]."""
    # bytes of 7 and 8 bits have their middle at 0 already
    middle = np.array([-2, -4, -8, -16, -32, -64, 0, 0], np.int8)
    bases = max(_kind_count(bank.grid) for bank in found) - MAX_BITS
    middle = np.append(middle, np.zeros(bases, np.int8))  # their levels are whole
    offset = build.op("Add", build.op("Gather", middle, width, axis=0), spare)
    ranks = sorted({len(bank.tail) for bank in found})
    members = [[bank.rows for bank in found if len(bank.tail) == rank] for rank in ranks]
    done: list[ir.Value] = []
    for rank, rows, part in zip(
        ranks, members, build.pieces(offset, [sum(rows) for rows in members]), strict=True
    ):
        done += build.pieces(build.op("Reshape", part, ints(-1, *[1] * rank)), rows)
    return done


def _row_places(build: Builder, found: Sequence[Bank], width: ir.Value) -> list[ir.Value | None]:
    """Where each row of a bank lies once it is sorted by width, int64 [rows]; None if it is."""
    mixed = [bool((np.diff(_kinds(bank.grid)) < 0).any()) for bank in found]
    if not any(mixed):
        return [None] * len(found)
    rows = [bank.rows for bank in found]
    kinds = max(_kind_count(bank.grid) for bank in found)
    cut = build.pieces(sorted_places(build, width, rows, kinds), rows)
    return [piece if wanted else None for piece, wanted in zip(cut, mixed, strict=True)]


def sorted_places(
    build: Builder, width: ir.Value, rows: Sequence[int], widths: int = 8
) -> ir.Value:
    """Where each row lies in its bank once that is sorted by width, int64 [Σ rows].

    `width` is any number below `widths`.

    A sort by (bank, width, row): the row, because not every runtime's TopK keeps equal ones in
    their order as ONNX wants it. The sort of that sort is its inverse.
    """
    total, starts = sum(rows), np.cumsum([0, *rows[:-1]])
    key, first = build.op("Cast", width, to=ir.DataType.INT64), build.constant(ints(0))
    if len(rows) > 1:
        marks = build.op("Expand", ints(0), ints(total))
        ones = build.op("Expand", ints(1), ints(len(rows) - 1))
        marks = build.op("ScatterElements", marks, ints(*starts[1:]), ones, axis=0)
        bank = build.op("CumSum", marks, np.array(0, np.int64))
        key = build.op("Add", build.op("Mul", bank, np.array(widths, np.int64)), key)
        first = build.op("Gather", ints(*starts), bank, axis=0)
    index = build.op("Range", *(np.array(v, np.int64) for v in (0, total, 1)))
    place = build.op("Add", build.op("Mul", key, np.array(total, np.int64)), index)
    for _ in range(2):
        place = build.split("TopK", 2, place, ints(total), axis=0, largest=0, sorted=1)[1]
    return build.op("Sub", place, first)
