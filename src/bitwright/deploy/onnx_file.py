"""`model.onnx`: packed weights that a stock ONNX Runtime unpacks once, at load.

The graph in front of the layers is one unpacking chain for the whole network: three streams of
nibbles, pairs and single bits become codes of every width, each width is split among the layers, a
layer's pieces are joined, put back in channel order and shifted to an unsigned 8-bit container
with zero point 128. All of it is constant, so the runtime folds it and runs one QLinearConv for
each convolution. Weights are unsigned on purpose: on processors without VNNI the runtime's
unsigned × signed kernels add pairs in 16 bits and saturate, its unsigned × unsigned ones do not.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from bitwright.arith.grid import MAX_BITS
from bitwright.arith.packing import PLANES, pack, parts
from bitwright.deploy import onnx_sealed
from bitwright.deploy.artefact import codes_by_width, rows_by_width
from bitwright.deploy.integer import integer_bias
from bitwright.deploy.placeholders import DOMAIN, OPSET, export, with_holes
from bitwright.network import Layer, Network, fresh_edges
from bitwright.quantize import EdgeGrid, Quantized


class Builder:
    """Collects nodes and shared constants of a graph under short names."""

    def __init__(self) -> None:
        self.nodes: list[ir.Node] = []
        self.constants: dict[tuple[str, tuple[int, ...], bytes], ir.Value] = {}

    def constant(self, array: np.ndarray) -> ir.Value:
        """An initializer; equal arrays are stored once."""
        array = np.array(array, order="C")  # ascontiguousarray would give scalars an axis
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self.constants:
            self.constants[key] = ir.Value(
                name=f"c{len(self.constants)}",
                const_value=ir.tensor(array),
                shape=ir.Shape(array.shape),
                type=ir.TensorType(ir.DataType.from_numpy(array.dtype)),
            )
        return self.constants[key]

    def op(self, kind: str, *inputs: Any, **attributes: Any) -> ir.Value:
        """A node with one output; arrays among the inputs become constants."""
        return self.split(kind, 1, *inputs, **attributes)[0]

    def split(self, kind: str, count: int, *inputs: Any, **attributes: Any) -> Sequence[ir.Value]:
        """A node with `count` outputs."""
        values = [self.constant(v) if isinstance(v, np.ndarray) else v for v in inputs]
        node = ir.node(kind, values, attributes or None, num_outputs=count)
        self.nodes.append(node)
        return node.outputs

    def pieces(self, value: ir.Value, sizes: Sequence[int]) -> list[ir.Value]:
        """`value` cut along axis 0 into pieces of the given sizes (one piece: itself)."""
        if len(sizes) == 1:
            return [value]
        return list(self.split("Split", len(sizes), value, ints(*sizes), axis=0))

    def join(self, values: Sequence[ir.Value]) -> ir.Value:
        """The values one after another along axis 0."""
        return values[0] if len(values) == 1 else self.op("Concat", *values, axis=0)


def ints(*values: int) -> np.ndarray:
    """An int64 vector."""
    return np.array(values, dtype=np.int64)


def u8(value: int) -> np.ndarray:
    """A uint8 scalar."""
    return np.array(value, dtype=np.uint8)


def unpack_chain(build: Builder, quantized: Quantized) -> dict[int, ir.Value]:
    """Codes of each width in the container's step, flat uint8: `2v` for b ≤ 7, `v` for 8."""
    codes = codes_by_width(quantized)
    streams = pack(codes)
    by_width: dict[int, list[ir.Value]] = {bits: [] for bits in codes if bits < MAX_BITS}
    for plane in PLANES:
        users = [bits for bits in by_width if bits & plane]
        if not users:
            continue
        packed = build.constant(streams[plane])
        columns = []
        for j in range(8 // plane):
            shifted = packed
            if j:
                shifted = build.op("BitShift", packed, u8(plane * j), direction="RIGHT")
            if j < 8 // plane - 1:
                shifted = build.op("BitwiseAnd", shifted, u8(2**plane - 1))
            columns.append(shifted)
        sizes = [len(codes[bits]) for bits in users]
        spare = len(streams[plane]) * (8 // plane) - sum(sizes)
        values = build.join(columns)
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
    return done


def layer_weights(build: Builder, quantized: Quantized) -> dict[str, tuple[ir.Value, ir.Value]]:
    """Each layer's container integers (uint8, its shape, zero point 128) and its row scales."""
    members = rows_by_width(quantized)
    flat = unpack_chain(build, quantized)
    pieces: dict[str, list[ir.Value]] = {layer.name: [] for layer in quantized.network.layers}
    order: dict[str, list[np.ndarray]] = {layer.name: [] for layer in quantized.network.layers}
    for bits, rows in members.items():
        cut = build.pieces(flat[bits], [len(r) * layer.fan_in for layer, r in rows])
        for (layer, r), piece in zip(rows, cut, strict=True):
            pieces[layer.name].append(piece)
            order[layer.name].append(r)
    layers = quantized.network.layers
    scales, offsets = _row_vectors(build, quantized)
    places = _row_places(build, layers, order)
    found = {}
    for layer, scale, offset in zip(layers, scales, offsets, strict=True):
        matrix = build.op("Reshape", build.join(pieces[layer.name]), ints(layer.rows, layer.fan_in))
        if layer.name in places:
            matrix = build.op("Gather", matrix, places[layer.name], axis=0)
        matrix = build.op("Add", matrix, offset)
        if len(layer.shape) > 2:
            matrix = build.op("Reshape", matrix, ints(*layer.shape))
        found[layer.name] = (matrix, scale)
    return found


def _row_vectors(build: Builder, quantized: Quantized) -> tuple[list[ir.Value], list[ir.Value]]:
    """Scales float32 [rows] and offsets uint8 [rows, 1] of each layer, one constant for all."""
    layers = quantized.network.layers
    grids = [quantized.layers[layer.name].grid for layer in layers]
    scale = np.concatenate([g.scale.numpy() for g in grids])
    wide = np.concatenate([(g.bits == MAX_BITS).numpy() for g in grids])
    zero = np.concatenate([g.zero.numpy() for g in grids])
    scale = np.where(wide, scale, scale / 2).astype(np.float32)
    if np.array_equal(scale.astype(np.float16).astype(np.float32), scale):
        value = build.op("Cast", build.constant(scale.astype(np.float16)), to=ir.DataType.FLOAT)
    else:
        value = build.constant(scale)
    rows = [layer.rows for layer in layers]
    offset = np.where(wide, 0, 128 - zero).astype(np.uint8)[:, None]
    return build.pieces(value, rows), build.pieces(build.constant(offset), rows)


def _row_places(
    build: Builder, layers: Sequence[Layer], order: dict[str, list[np.ndarray]]
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


def build_model(quantized: Quantized) -> ir.Model:
    """The complete model: holes filled, everything else as exported, names short."""
    return fill(hollow(quantized.network, edges=bool(quantized.edges)), quantized)


def hollow(network: Network, *, edges: bool = True) -> ir.Model:
    """The exported graph with holes, the same for all widths."""
    return export(with_holes(network, edges), network.input_shape, _input_dtype(network))


def fill(model: ir.Model, quantized: Quantized) -> ir.Model:
    """`model` of :func:`hollow`, changed in place: its weights and edges in, names short.

    Edges without a grid stay float.
    """
    network = quantized.network
    graph = model.graph
    build = Builder()
    weights = layer_weights(build, quantized)
    ready = _constant_weights(build, quantized, weights)
    grids = {e.name: quantized.edges[e.group] for e in network.edges if e.group in quantized.edges}
    narrow = _narrow(quantized)
    head = list(build.nodes)
    by_name = {layer.name: layer for layer in network.layers}
    for node in list(graph):
        if node.domain != DOMAIN:
            continue
        name = node.attributes["name"].as_string()
        build.nodes = []
        if node.op_type == "Weight":
            layer_name, _, call = name.partition("@")
            if call:
                value = _bias(build, quantized, by_name[layer_name], call, weights, grids)
            else:
                value = ready[layer_name]
        else:
            value = _through(build, node.inputs[0], name, grids.get(name), name in narrow)
        graph.insert_before(node, build.nodes)
        _replace(graph, node.outputs[0], value)
        graph.remove(node, safe=True)
    for node in [n for n in graph if n.op_type == "Clip" and not n.outputs[0].uses()]:
        graph.remove(node)  # what stood in front of a narrow grid
    graph.insert_before(graph[0], head)
    for value in build.constants.values():
        graph.initializers[value.name] = value  # type: ignore[index]
    _tidy(model)
    return model


def _narrow(quantized: Quantized) -> set[str]:
    """Edges of fewer than 8 bits whose values are new."""
    group = {e.name: e.group for e in quantized.network.edges}
    eight = EdgeGrid(1.0, 0)
    return {
        name
        for name in fresh_edges(quantized.network)
        if quantized.edges.get(group[name], eight).bits < 8
    }


def _behind_clip(value: ir.Value, grid: EdgeGrid) -> ir.Value:
    """What a clip clips, where all of the grid that follows lies within it.

    The runtime would leave it standing between a layer and its rescaling, as 255 steps of a narrow
    grid reach beyond it.
    """
    node = value.producer()
    if node is None or node.op_type != "Clip" or node.inputs[0] is None:
        return value
    ends = [None if v is None else ir.convenience.get_const_tensor(v) for v in node.inputs[1:3]]
    low, high = (None if e is None else float(e.numpy()) for e in [*ends, None, None][:2])
    inside = (low is None or low <= -grid.zero * grid.scale) and (
        high is None or (grid.top - grid.zero) * grid.scale <= high
    )
    return node.inputs[0] if inside else value


def _through(build: Builder, value: Any, name: str, grid: EdgeGrid | None, narrow: bool) -> Any:
    """The value on its edge's grid and back; itself where it has none."""
    if grid is None:
        return value
    step, zero = np.array(grid.scale, np.float32), u8(grid.zero)
    source = _behind_clip(value, grid) if narrow else value
    stored = build.op("QuantizeLinear", source, step, zero)
    if narrow:  # the container saturates at 255 only
        stored = build.op("Clip", stored, u8(0), u8(grid.top))
    stored.name = f"{name}.q"
    return build.op("DequantizeLinear", stored, step, zero)


def _replace(graph: ir.Graph, old: ir.Value, new: ir.Value) -> None:
    """Everything that reads `old` reads `new`; the graph's outputs, too."""
    for use in list(old.uses()):
        use.node.replace_input_with(use.idx, new)
    for i, output in enumerate(graph.outputs):
        if output is old:
            new.shape, new.type = old.shape, old.type
            graph.outputs[i] = new


def _input_dtype(network: Network) -> Any:
    import torch

    nodes = network.module.graph.nodes
    floating = next(n for n in nodes if n.op == "placeholder").meta.get("is_float", True)
    return torch.float32 if floating else torch.int64


def _constant_weights(
    build: Builder, quantized: Quantized, weights: dict[str, tuple[ir.Value, ir.Value]]
) -> dict[str, ir.Value]:
    """Dequantized weights: DequantizeLinear where integer kernels follow, else plain arithmetic.

    With float activations nothing fuses with a DequantizeLinear and the runtime would repeat it at
    every call; a Cast, Sub and Mul it folds at load.
    """
    layers = quantized.network.layers
    rows = sum(layer.rows for layer in layers)
    ready = {}
    if quantized.edges:
        zeros = build.op("Expand", u8(128).reshape(1), ints(rows))
        for layer, zero in zip(
            layers, build.pieces(zeros, [la.rows for la in layers]), strict=True
        ):
            matrix, scale = weights[layer.name]
            ready[layer.name] = build.op("DequantizeLinear", matrix, scale, zero, axis=0)
        return ready
    for layer in layers:
        matrix, scale = weights[layer.name]
        values = build.op("Cast", matrix, to=ir.DataType.FLOAT)
        values = build.op("Sub", values, np.array(128, np.float32))
        shape = ints(layer.rows, *[1] * (len(layer.shape) - 1))
        ready[layer.name] = build.op("Mul", values, build.op("Reshape", scale, shape))
    return ready


def _bias(
    build: Builder,
    quantized: Quantized,
    layer: Layer,
    call: str,
    weights: dict[str, tuple[ir.Value, ir.Value]],
    grids: dict[str, EdgeGrid],
) -> ir.Value:
    """The bias of one call: int32 in steps of input scale × weight scale, or float."""
    node = next(n for n in quantized.network.module.graph.nodes if n.name == call)
    grid = grids.get(node.args[0].name)
    stored = quantized.layers[layer.name]
    if grid is None:
        return build.constant(stored.bias.numpy())
    step = build.op("Mul", weights[layer.name][1], np.array(grid.scale, np.float32))
    return build.op("DequantizeLinear", integer_bias(stored, grid).numpy(), step, axis=0)


def _tidy(model: ir.Model) -> None:
    """Short names, no shapes of intermediate values, no metadata: bytes that carry nothing."""
    graph = model.graph
    model.metadata_props.clear()
    graph.metadata_props.clear()
    model.opset_imports.clear()
    model.opset_imports[""] = OPSET
    model.producer_name, model.producer_version = "bitwright", None
    model.doc_string = graph.doc_string = None
    graph.name = "main"
    inputs, outputs = list(graph.inputs), list(graph.outputs)
    for i, value in enumerate(inputs):
        value.name = "input" if len(inputs) == 1 else f"input{i}"
    keep = {id(v) for v in [*inputs, *outputs]}
    count = 0
    for node in graph:
        node.name = None
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
            if id(value) in keep:
                continue
            value.shape, value.type = None, None
            if not (value.name or "").endswith(".q"):
                value.name = _short(count)
                count += 1
    for i, value in enumerate(outputs):
        value.name = "output" if len(outputs) == 1 else f"output{i}"
    used = {id(v) for node in graph for v in node.inputs}
    for name, value in list(graph.initializers.items()):
        if id(value) not in used:
            del graph.initializers[name]
    values = list(graph.initializers.values())
    graph.initializers.clear()
    for i, value in enumerate(values):
        value.name = f"_{_short(i)}"
        value.metadata_props.clear()
        graph.initializers[value.name] = value


def _short(number: int) -> str:
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
    text = ""
    number += 1
    while number:
        number, rest = divmod(number - 1, len(letters))
        text = letters[rest] + text
    return text


def save(quantized: Quantized, path: Path) -> None:
    """Write the ONNX file, sealed, to a temporary name first."""
    onnx_sealed.save(build_model(quantized), quantized, path)
