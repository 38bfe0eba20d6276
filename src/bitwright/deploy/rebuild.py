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

from bitwright.arith.grid import Grid, fits_container
from bitwright.arith.packing import unpack
from bitwright.deploy.programs import captured, inflated, layer_shapes, read_program
from bitwright.network import Edge, Network, fresh_edges
from bitwright.quantize import EDGE_WIDTHS, EdgeGrid, Quantized, QuantizedLayer
from bitwright.quantize.channel_widths import divisible

#: the tensor of each plane of packed codes
STREAMS = {8: "bytes", 4: "nibbles", 2: "pairs", 1: "singles"}
#: half steps that a zero point may lie below 2^width
MOST_SPARE = 15
_KNOWN = {"grid", "scale", "bias", "edge_scale", "program", *STREAMS.values()}


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
    for name in ("grid", "program", *STREAMS.values()):
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
    bits = torch.from_numpy((symbols % 16).astype(np.int64))
    zero = 2**bits - torch.from_numpy((symbols // 16).astype(np.int64))
    if not bool(fits_container(bits, zero).all()):
        raise ValueError("widths or zero points do not fit the 8-bit container")
    scale = torch.from_numpy(tensors["scale"].astype(np.float32))
    bias = torch.from_numpy(np.array(tensors["bias"]))
    widths = [b.numpy() for b in bits.split(rows)]
    codes = _codes(widths, fans, tensors)
    found = {}
    cut = [value.split(rows) for value in (bits, scale, zero)] + [bias.split(biases)]
    for (weight, _, _), matrix, b, s, z, offset in zip(shapes, codes, *cut, strict=True):
        grid = Grid(b.clone(), s.clone(), z.clone())
        found[weight.removesuffix(".weight")] = QuantizedLayer(matrix, grid, offset.clone())
    return found


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
