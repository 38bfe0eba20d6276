"""`model.onnx`: packed weights that a stock ONNX Runtime unpacks once, at load.

The graph in front of the layers is one unpacking chain for the whole network
(:mod:`~bitwright.deploy.unpacking`); the runtime folds it and runs one QLinearConv for each
convolution and one QGemm for each linear layer. Weights are signed, for which it has its fastest
kernels, unless those could saturate on processors without VNNI: then unsigned, which never do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from bitwright.deploy import onnx_sealed
from bitwright.deploy.biases import dequantized, integer_biases
from bitwright.deploy.builder import Builder, ints, u8
from bitwright.deploy.padding import fold_pads, pad_integers
from bitwright.deploy.placeholders import DOMAIN, export, with_holes
from bitwright.deploy.reshapes import reshape_integers
from bitwright.deploy.shield import shield_floats
from bitwright.deploy.tidy import tidy
from bitwright.deploy.unpacking import Container, layer_weights
from bitwright.network import Layer, Network, fresh_edges
from bitwright.quantize import EdgeGrid, Quantized, exposed


def build_model(quantized: Quantized) -> ir.Model:
    """The complete model: holes filled, everything else as exported, names short."""
    return fill(hollow(quantized.network, edges=bool(quantized.edges)), quantized)


def hollow(network: Network, *, edges: bool = True) -> ir.Model:
    """The exported graph with holes, the same for all widths; another copy at every call."""
    return _exported(network, edges).clone()


@lru_cache(maxsize=2)  # exporting takes a hundred times as long as filling
def _exported(network: Network, edges: bool) -> ir.Model:
    return export(with_holes(network, edges), network.input_shape, network.input_dtype)


def fill(model: ir.Model, quantized: Quantized) -> ir.Model:
    """`model` of :func:`hollow`, changed in place: its weights and edges in, names short.

    Edges without a grid stay float.
    """
    network = quantized.network
    graph = model.graph
    build = Builder()
    unsigned = exposed(network, quantized.layers, quantized.edges)
    weights = layer_weights(build, quantized, unsigned)
    ready = _constant_weights(build, quantized, weights)
    grids = {e.name: quantized.edges[e.group] for e in network.edges if e.group in quantized.edges}
    biases = integer_biases(build, quantized, grids)
    narrow, axes = _narrow(quantized), {e.name: len(e.shape) + 1 for e in network.edges}
    head = list(build.nodes)
    sources = {n.name: n.args[0].name for n in network.module.graph.nodes if n.name in biases}
    for node in list(graph):
        if node.domain != DOMAIN:
            continue
        name = node.attributes["name"].as_string()
        build.nodes = []
        if node.op_type == "Weight":
            layer_name, _, call = name.partition("@")
            if call:
                value = build.constant(quantized.layers[layer_name].bias.numpy())
                if call in biases:
                    grid = grids[sources[call]]
                    value = dequantized(build, biases[call], weights[layer_name], grid)
            else:
                value = ready[layer_name]
        elif node.op_type == "Lookup":
            layer_name, _, call = name.partition("@")
            value = _looked_up(build, node.inputs[0], weights[layer_name], call)
        else:
            own = grids.get(name)
            value = _through(build, node.inputs[0], name, own, axes[name] if name in narrow else 0)
        graph.insert_before(node, build.nodes)
        replace_value(graph, node.outputs[0], value)
        graph.remove(node, safe=True)
    fold_pads(graph)
    reshape_integers(graph)
    shield_floats(graph)
    graph.insert_before(graph[0], head)
    for value in build.constants.values():
        graph.initializers[value.name] = value  # type: ignore[index]
    tidy(model)
    return model


def _narrow(quantized: Quantized) -> set[str]:
    """Edges of fewer than 8 bits, all or some channels, whose values are new."""
    group = {e.name: e.group for e in quantized.network.edges}
    eight = EdgeGrid(1.0, 0)
    grids = {n: quantized.edges.get(group[n], eight) for n in fresh_edges(quantized.network)}
    return {name for name, grid in grids.items() if grid.bits < 8 or grid.widths}


def _behind_clip(build: Builder, value: ir.Value, grid: EdgeGrid) -> ir.Value:
    """What a clip clips, where all of the grid that follows lies within it: saturation does it.

    Where that is stored already, on another grid, one end of the clip stays as an operation that
    no optimizer takes for a clip: it would drop it and merge both grids into a third one.
    """
    node = value.producer()
    if node is None or node.op_type not in ("Clip", "Relu") or node.inputs[0] is None:
        return value
    low, high = (0.0, None) if node.op_type == "Relu" else _clip_ends(node)
    inside = (low is None or low <= -grid.zero * grid.scale) and (
        high is None or (grid.top - grid.zero) * grid.scale <= high
    )
    if not inside:
        return value
    clipped = node.inputs[0]
    source = clipped.producer()
    if source is None or source.op_type != "DequantizeLinear" or (low is None and high is None):
        return clipped
    if low is None:
        return build.op("Min", clipped, np.array(high, np.float32))
    return build.op("Max", clipped, np.array(low, np.float32))


def _clip_ends(node: ir.Node) -> tuple[float | None, float | None]:
    ends = [None if v is None else ir.convenience.get_const_tensor(v) for v in node.inputs[1:3]]
    low, high = (None if e is None else float(e.numpy()) for e in [*ends, None, None][:2])
    return low, high


def _through(build: Builder, value: Any, name: str, grid: EdgeGrid | None, axes: int) -> Any:
    """The value on its edge's grid and back; itself where it has none.

    Axes of a value that is clipped; 0 where the container does it, or it was done before.
    """
    if grid is None:
        return value
    step, zero = np.array(grid.scale, np.float32), u8(grid.zero)
    stored = pad_integers(build, value, step, zero)
    if stored is None:
        stored = build.op("QuantizeLinear", _behind_clip(build, value, grid), step, zero)
        if axes and grid.widths:
            stored = _windowed(build, stored, grid, axes)
        elif axes:  # the container saturates at 255 only
            stored = build.op("Clip", stored, u8(0), u8(grid.top))
    stored.name = f"{name}.q"
    return build.op("DequantizeLinear", stored, step, zero)


def _windowed(build: Builder, stored: ir.Value, grid: EdgeGrid, axes: int) -> ir.Value:
    """Integers clipped channel by channel, by sums that saturate: up to 255, down to 0, and back.

    The oldest runtimes that the files are for have no minimum of bytes and clip all alike; sums
    become one QLinearAdd each, whose ratios of equal steps are 1 and exact.
    """
    low, high = grid.windows
    step, zero = np.array(grid.scale, np.float32), u8(grid.zero)
    for shift in (255 - high, high - low - 255, low):
        if not shift.any():
            continue
        nothing = 0 if shift.max() > 0 else 255
        moved = (shift + nothing).astype(np.uint8).reshape(-1, *[1] * (axes - 2))
        back = build.op("DequantizeLinear", stored, step, zero)
        more = build.op("DequantizeLinear", moved, step, u8(nothing))
        stored = build.op("QuantizeLinear", build.op("Add", back, more), step, zero)
    return stored


def _looked_up(build: Builder, ids: Any, held: Container, call: str) -> ir.Value:
    """The rows `ids` of a table, named `CALL.rows`: looked up as integers, then dequantized.

    The runtime keeps the integers alone; a DequantizeLinear of the table would become a float copy.
    """
    rows = build.op("Cast", build.op("Gather", held.integers, ids, axis=0), to=ir.DataType.FLOAT)
    if held.zero:
        rows = build.op("Sub", rows, np.array(held.zero, np.float32))
    steps = build.op("Gather", build.op("Reshape", held.scale, ints(-1, 1)), ids, axis=0)
    value = build.op("Mul", rows, steps)
    value.name = f"{call}.rows"
    return value


def replace_value(graph: ir.Graph, old: ir.Value, new: ir.Value) -> None:
    """Everything that reads `old` reads `new`; the graph's outputs, too."""
    for use in list(old.uses()):
        use.node.replace_input_with(use.idx, new)
    for i, output in enumerate(graph.outputs):
        if output is old:
            new.shape, new.type = old.shape, old.type
            graph.outputs[i] = new


def _constant_weights(
    build: Builder, quantized: Quantized, weights: Mapping[str, Container]
) -> dict[str, ir.Value]:
    """Dequantized weights: DequantizeLinear where integer kernels follow, else plain arithmetic.

    With float activations nothing fuses with a DequantizeLinear and the runtime would repeat it at
    every call; a Cast and a Mul it folds at load.
    """
    layers = [la for la in quantized.network.layers if la.kind != "embedding"]
    ready = {}
    if quantized.edges:
        zeros = _zero_points(build, layers, weights)
        for layer in layers:
            held = weights[layer.name]
            zero = zeros[layer.name]
            ready[layer.name] = build.op(
                "DequantizeLinear", held.integers, held.scale, zero, axis=0
            )
        return ready
    for layer in layers:
        held = weights[layer.name]
        values = build.op("Cast", held.integers, to=ir.DataType.FLOAT)
        shape = ints(layer.rows, *[1] * (len(layer.shape) - 1))
        ready[layer.name] = build.op("Mul", values, build.op("Reshape", held.scale, shape))
    return ready


def _zero_points(
    build: Builder, layers: Sequence[Layer], weights: Mapping[str, Container]
) -> dict[str, ir.Value]:
    """The zero point of each layer's rows, of the integers' type; one constant for each type."""
    found: dict[str, ir.Value] = {}
    for zero, kind in ((0, np.int8), (128, np.uint8)):
        members = [layer for layer in layers if weights[layer.name].zero == zero]
        if members:
            rows = [layer.rows for layer in members]
            whole = build.op("Expand", np.array([zero], kind), ints(sum(rows)))
            cut = build.pieces(whole, rows)
            found |= {layer.name: piece for layer, piece in zip(members, cut, strict=True)}
    return found


def save(quantized: Quantized, path: Path) -> None:
    """Write the ONNX file, sealed, to a temporary name first; above 2 GB with `NAME.data` by it."""
    onnx_sealed.save(build_model(quantized), quantized, path)
