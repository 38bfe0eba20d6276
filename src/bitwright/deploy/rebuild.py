"""From an artefact's tensors to the network: nothing read is trusted.

Sizes are checked against bytes that are there before anything is allocated, compressed parts have a
bound on what they may grow to, and the graph is built from a table of operations whose shapes must
fit (:mod:`bitwright.network.program`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bitwright.arith.grid import BASES, Grid, are_bases, fits_container
from bitwright.arith.packing import unpack
from bitwright.deploy.programs import captured, inflated, layer_shapes, read_program
from bitwright.network import Edge, Network, fresh_edges
from bitwright.quantize import EDGE_WIDTHS, EdgeGrid, Quantized, QuantizedLayer
from bitwright.quantize.channel_widths import divisible

#: the tensor of each plane of packed codes
STREAMS = {8: "bytes", 4: "nibbles", 2: "pairs", 1: "singles"}
#: half steps that a zero point may lie below 2^width
MOST_SPARE = 15
_KNOWN = {"grid", "scale", "bias", "edge_scale", "program", "coordinates", *STREAMS.values()}


@dataclass(frozen=True)
class Program:
    """The JSON of `program`.

    Attributes:
        graph: of :func:`bitwright.network.program.to_json`.
        layers: first node that calls it, then the weight's shape.
        edges: node, group, whether nothing below zero occurs, and the ceiling if there is one.
        grids: zero point and width of each group with a grid, in the order of `edge_scale`.
        groups: the groups that have one.
        input: shape of one row.
        skipped: layers left in float.
        widths: of each group's channels, none where they have the group's; empty for no group any.
    """

    graph: tuple[Any, ...]
    layers: tuple[tuple[int, ...], ...]
    edges: tuple[tuple[int, int, bool, float | None], ...]
    grids: tuple[tuple[int, int], ...]
    groups: tuple[int, ...]
    input: tuple[int, ...]
    skipped: tuple[str, ...]
    widths: tuple[tuple[int, ...], ...] = ()


def rebuild(tensors: dict[str, np.ndarray]) -> Quantized:
    """The network that an artefact's tensors hold.

    Raises:
        ValueError: they do not fit together; the message says where.
        BitwrightError: the program is not one of ours.
    """
    missing = {"grid", "scale", "bias", "program"} - set(tensors)
    strange = [name for name in tensors if name not in _KNOWN and name[:2] != "f:"]
    if missing or strange:
        raise ValueError(f"it lacks {sorted(missing)} and has unknown {strange[:3]!r:.100}")
    for name in ("grid", "program", "coordinates", *STREAMS.values()):
        if name in tensors and (tensors[name].dtype != np.uint8 or tensors[name].ndim != 1):
            raise ValueError(f"its {name} is no row of bytes")
    program = read_program(Program, tensors)
    shapes = layer_shapes(program.graph, program.layers)
    layers = _layers(shapes, tensors)
    own = {}
    for weight, bias, shape in shapes:
        stored = layers[weight.removesuffix(".weight")]
        own[weight] = stored.matrix().reshape(shape)
        if bias:
            own[bias] = stored.bias
    network = captured(program, tensors, shapes, own)
    network = replace(network, edges=tuple(_edges(program, network)))
    return Quantized(network, layers, _grids(program, tensors, network))


def _layers(
    shapes: list[tuple[str, str, tuple[int, ...]]], tensors: dict[str, np.ndarray]
) -> dict[str, QuantizedLayer]:
    """What is stored of each layer, by name."""
    rows = [shape[0] for _, _, shape in shapes]
    fans = [math.prod(shape[1:]) for _, _, shape in shapes]
    biases = [shape[0] if bias else 0 for _, bias, shape in shapes]
    for name, kinds, size in (
        ("scale", ("float16", "float32"), sum(rows)),
        ("bias", ("float32",), sum(biases)),
    ):
        value = tensors[name]
        if value.dtype.name not in kinds or value.shape != (size,):
            raise ValueError(f"its {name} is {value.dtype} {value.shape} for {size} channels")
        if not np.isfinite(value).all():
            raise ValueError(f"its {name} holds NaN or infinite numbers")
    if not (tensors["scale"] > 0).all():
        raise ValueError("its scales are not all positive")
    symbols = np.frombuffer(inflated(tensors["grid"], sum(rows) + 1, "grid"), np.uint8)
    if len(symbols) != sum(rows):
        raise ValueError(f"widths of {len(symbols)} channels do not fit {sum(rows)}")
    bits, zero, own = _row_grids(symbols, tensors.get("coordinates", np.zeros(0, np.uint8)))
    scale = torch.from_numpy(tensors["scale"].astype(np.float32))
    bias = torch.from_numpy(np.array(tensors["bias"]))
    widths = [b.numpy() for b in bits.split(rows)]
    codes = _codes(widths, fans, tensors)
    found = {}
    cut = [value.split(rows) for value in (bits, scale, zero, own)] + [bias.split(biases)]
    for (weight, _, _), matrix, b, s, z, d, offset in zip(shapes, codes, *cut, strict=True):
        grid = Grid(b.clone(), s.clone(), z.clone(), d.clone() if bool(d.any()) else None)
        found[weight.removesuffix(".weight")] = QuantizedLayer(matrix, grid, offset.clone())
    return found


def _row_grids(symbols: np.ndarray, stored: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
    """Widths and zero points [rows] and coordinates [rows, 4] of all channels, int64.

    Args:
        symbols: `grid`, a byte a channel; stored: `coordinates`.
    """
    symbols = symbols.astype(np.int64)
    bases = symbols % 16 - 8
    own = np.isin(bases, BASES) & (symbols // 16 == 0)
    bits = np.where(own, bases, symbols % 16)
    zero = 2**bits - symbols // 16
    if not bool(
        (torch.from_numpy(own) | fits_container(*map(torch.from_numpy, (bits, zero)))).all()
    ):
        raise ValueError("widths or zero points do not fit the 8-bit container")
    counts = bits[own] + 1
    if len(stored) != counts.sum():
        raise ValueError(f"{len(stored)} bytes of coordinates do not fit its channels of bases")
    each = np.zeros((len(counts), BASES[-1] + 1), np.int64)
    there = np.arange(BASES[-1] + 1) < counts[:, None]
    each[there] = stored
    coordinates = np.zeros((len(symbols), BASES[-1]), np.int64)
    zero[own] = each[np.arange(len(counts)), counts - 1]
    each[np.arange(len(counts)), counts - 1] = 0
    coordinates[own] = each[:, :-1]
    right = are_bases(*(torch.from_numpy(v[own]) for v in (bits, zero, coordinates)))
    if not bool(right.all()):
        raise ValueError("coordinates of channels of bases do not fit the 8-bit container")
    return torch.from_numpy(bits), torch.from_numpy(zero), torch.from_numpy(coordinates)


def _codes(
    widths: list[np.ndarray], fans: list[int], tensors: dict[str, np.ndarray]
) -> Iterator[Tensor]:
    """The codes of one layer after another, uint8 [rows, fan_in]."""
    counts: dict[int, int] = {}
    for width, fan_in in zip(widths, fans, strict=True):
        for b, count in enumerate(np.bincount(width)):
            if count:
                counts[b] = counts.get(b, 0) + int(count) * fan_in
    empty = np.zeros(0, np.uint8)
    codes = unpack({p: tensors.get(n, empty) for p, n in STREAMS.items()}, counts)
    start = dict.fromkeys(counts, 0)
    for width, fan_in in zip(widths, fans, strict=True):
        matrix = np.zeros((len(width), fan_in), np.uint8)
        for b in counts:
            chosen = np.flatnonzero(width == b)
            size = len(chosen) * fan_in
            matrix[chosen] = codes[b][start[b] : start[b] + size].reshape(len(chosen), fan_in)
            start[b] += size
        yield torch.from_numpy(matrix)


def _edges(program: Program, network: Network) -> Iterator[Edge]:
    """The edges as they were when the file was written."""
    nodes = [n for n in network.module.graph.nodes if n.op != "get_attr"]
    for place, group, at_zero, ceiling in program.edges:
        node = nodes[place] if 0 <= place < len(nodes) else None
        if node is None or not node.meta.get("is_float"):
            raise ValueError(f"its edge {place} is no float value of its program")
        top = math.inf if ceiling is None else ceiling
        yield Edge(node.name, group, node.meta["row_shape"], at_zero, top)


def _grids(
    program: Program, tensors: dict[str, np.ndarray], network: Network
) -> dict[int, EdgeGrid]:
    scale = tensors.get("edge_scale", np.zeros(0, np.float32))
    known = {group for _, group, _, _ in program.edges}
    groups, grids = program.groups, program.grids
    if scale.dtype != np.float32 or not (scale.shape == (len(groups),) == (len(grids),)):
        raise ValueError("grids of edges do not fit their groups")
    if list(groups) != sorted(set(groups)) or not known.issuperset(groups):
        raise ValueError("groups of edges are not those of the edges")
    if not (np.isfinite(scale).all() and (scale > 0).all()):
        raise ValueError("its activations have steps that are not positive numbers")
    widths = program.widths or ((),) * len(groups)
    if len(widths) != len(groups):
        raise ValueError("widths of channels do not fit the groups of edges")
    edges = {
        group: EdgeGrid(float(step), zero, bits, own)
        for group, (zero, bits), step, own in zip(groups, grids, scale, widths, strict=True)
    }
    own_widths = divisible(network)
    count = {e.group: e.shape[0] for e in network.edges if e.name in fresh_edges(network)}
    for group, grid in edges.items():
        if grid.widths and (group not in own_widths or len(grid.widths) != count[group]):
            raise ValueError("widths of channels are not of an activation's channels")
        if any(b not in EDGE_WIDTHS or b > grid.bits for b in grid.widths):
            raise ValueError("widths of channels do not fit their grids")
    if any(g.bits not in EDGE_WIDTHS or not 0 <= g.zero <= g.top for g in edges.values()):
        raise ValueError("grids of edges do not fit their widths")
    return edges
