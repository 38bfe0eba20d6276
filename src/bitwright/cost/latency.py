"""The time of one layer shape in the runtime, in every form that a deployment can take.

A network of that one layer goes through the exporter of `model.onnx`. Between layers integers stay
8-bit and, for convolutions, channels last; so that is what the layer is fed and what it returns,
and no conversion is timed that a whole network does not make at every layer. The float form is
timed as exported, with the runtime's reordering of its channels at both ends.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import torch
from torch import nn

from bitwright.arith.grid import Grid
from bitwright.cost.shapes import LayerShape
from bitwright.cost.table import AtWidth, Row, Timing
from bitwright.deploy import onnx_file, runtime
from bitwright.deploy.placeholders import OPSET
from bitwright.network import Edge, Layer, Network, build
from bitwright.quantize import EdgeGrid, Quantized, QuantizedLayer, narrowed

#: widths timed, one from each of the packed streams; the last one twice
WIDTHS = (2, 4, 8)
_WARM_UP = 5


def measure(shape: LayerShape, *, threads: int = 1, repeats: int = 100) -> Row:
    """Time all forms of one shape, in turns, for one row.

    Args:
        shape: of the layer.
        threads: of the runtime, 0 for its own choice. Several sessions are alive at once, and the
            idle threads of one wait spinning while another is timed: one thread is the surest.
        repeats: runs of each form.
    """
    network = _one_layer(shape)
    plain = serialized(onnx_file.fill(onnx_file.hollow(network), _rounded(network, 8, False)))
    integer = [_integer_form(onnx_file.hollow(network), network, shape, bits) for bits in WIDTHS]
    live = [runtime.session(f, threads=threads) for f in (plain, *integer, integer[-1])]
    spent = in_turns([empty_call(), *map(_call, live)], repeats)
    times = [_timing(column - spent[:, 0]) for column in spent.T[1:]]
    widths = tuple(AtWidth(b, t) for b, t in zip(WIDTHS, times[1:-1], strict=True))
    return Row(shape, times[0], widths, times[-1])


def in_turns(called: Sequence[Callable[[], object]], repeats: int) -> np.ndarray:
    """Seconds of each call, float64 [repeats, n]; every round begins with another one."""
    for call in called:
        for _ in range(_WARM_UP):
            call()
    spent = np.empty((repeats, len(called)))
    for i in range(repeats):
        for k in range(len(called)):
            j = (i + k) % len(called)
            begin = time.perf_counter()
            called[j]()
            spent[i, j] = time.perf_counter() - begin
    return spent


def _timing(seconds: np.ndarray) -> Timing:
    seconds = seconds.clip(min=0)
    return Timing(float(np.median(seconds)), float(np.quantile(seconds, 0.95)))


def _one_layer(shape: LayerShape) -> Network:
    """A captured network of that layer alone, its result stored as `shape` says."""
    rows, inside, *kernel = shape.weight
    if shape.kind == "linear":
        module: nn.Module = nn.utils.skip_init(nn.Linear, inside, rows)
    else:
        make = {"conv1d": nn.Conv1d, "conv2d": nn.Conv2d}[shape.kind]
        module = nn.utils.skip_init(
            make,
            inside * shape.groups,
            rows,
            tuple(kernel),
            shape.stride,
            shape.padding,
            shape.dilation,
            shape.groups,
        )
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    network = build(module.eval(), torch.zeros(2, *shape.input))
    if not shape.stored:
        return network
    (call,) = network.layers[0].calls
    node = next(n for n in network.module.graph.nodes if n.name == call)
    result = Edge(call, network.edges[0].group + 1, node.meta["row_shape"], at_zero=False)
    return replace(network, edges=(*network.edges, result))


def _rounded(network: Network, bits: int, edges: bool = True) -> Quantized:
    """Random codes of that width, drawn alike each time."""
    (layer,) = network.layers
    grids = {e.group: EdgeGrid(1 / 32, 128) for e in network.edges} if edges else {}
    layers = narrowed(network, {layer.name: _codes(layer, bits)}, grids)  # as every plan's are
    return Quantized(network, layers, grids)


def _codes(layer: Layer, bits: int) -> QuantizedLayer:
    generator = torch.Generator().manual_seed(bits)
    codes = torch.randint(0, 2**bits, (layer.rows, layer.fan_in), generator=generator)
    scale = torch.full((layer.rows,), 2.0**-bits)
    zero = torch.full((layer.rows,), 2**bits - (bits < 8))
    grid = Grid(torch.full((layer.rows,), bits), scale, zero)
    return QuantizedLayer(codes.to(torch.uint8), grid, torch.zeros(layer.rows))


def serialized(model: ir.Model) -> bytes:
    """The ONNX file of a model."""
    return bytes(ir.to_proto(model).SerializeToString())


def _integer_form(model: ir.Model, network: Network, shape: LayerShape, bits: int) -> bytes:
    """The layer between 8-bit integers."""
    graph = onnx_file.fill(model, _rounded(network, bits)).graph
    (source,), (result,) = graph.inputs, graph.outputs
    stored = next(use.node for use in source.uses() if use.node.op_type == "QuantizeLinear")
    first = ir.Value(name="stored", shape=source.shape, type=ir.TensorType(ir.DataType.UINT8))
    stored.outputs[0].replace_all_uses_with(first)
    graph.remove(stored)
    graph.inputs[0] = first
    if shape.stored:
        last = result.producer()
        assert last is not None
        integers = last.inputs[0]
        assert integers is not None
        graph.remove(last)
        integers.shape, integers.type = result.shape, ir.TensorType(ir.DataType.UINT8)
        graph.outputs[0] = integers
        if shape.kind != "linear":
            _channels_last(graph)
    return serialized(model)


def _channels_last(graph: ir.Graph) -> None:
    """Transposes at both ends, which the runtime cancels against its own."""
    (source,), (result,) = graph.inputs, graph.outputs
    assert source.shape is not None and result.shape is not None
    axes = list(range(len(source.shape)))
    inward, outward = [0, axes[-1], *axes[1:-1]], [0, *axes[2:], 1]
    first = ir.Value(
        name="channels_last", shape=ir.Shape([source.shape[a] for a in outward]), type=source.type
    )
    before = ir.node("Transpose", [first], {"perm": inward})
    source.replace_all_uses_with(before.outputs[0])
    graph.inputs[0] = first
    graph.insert_before(graph[0], before)
    after = ir.node("Transpose", [result], {"perm": outward})
    graph.append(after)
    last = after.outputs[0]
    last.name, last.type = "output_last", result.type
    last.shape = ir.Shape([result.shape[a] for a in outward])
    graph.outputs[0] = last


def empty_call() -> Callable[[], Any]:
    """A session that does nothing, to know what a call costs."""
    kind = ir.TensorType(ir.DataType.UINT8)
    source = ir.Value(name="input", shape=ir.Shape([1]), type=kind)
    node = ir.node("Identity", [source])
    result = node.outputs[0]
    result.name, result.shape, result.type = "output", ir.Shape([1]), kind
    graph = ir.Graph([source], [result], nodes=[node], opset_imports={"": OPSET}, name="main")
    return _call(runtime.session(serialized(ir.Model(graph, ir_version=10)), threads=1))


def _call(live: ort.InferenceSession) -> Callable[[], Any]:
    """The session run on one row of random numbers, drawn alike each time."""
    (wanted,) = live.get_inputs()
    size = [d if isinstance(d, int) else 1 for d in wanted.shape]
    generator = np.random.default_rng(0)
    if wanted.type == "tensor(uint8)":
        value: Any = generator.integers(0, 256, size, dtype=np.uint8)
    else:
        value = generator.standard_normal(size, dtype=np.float32)
    feed = {wanted.name: value}
    return lambda: live.run(None, feed)
