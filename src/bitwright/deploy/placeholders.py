"""The float graph in ONNX with named holes where quantized weights and edges go.

torch's exporter cannot emit sub-8-bit fake quantization, but it lowers everything else. So the
graph is exported with two operations of ours that only carry names, `bitwright::weight` and
`bitwright::edge`; :mod:`~bitwright.deploy.onnx_file` fills the holes.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import math
import warnings
from collections.abc import Iterator
from typing import Any

import onnx_ir as ir
import torch
from onnx import defs
from onnxscript import opset18
from onnxscript.values import Opset
from torch import Tensor, nn
from torch.fx import GraphModule

from bitwright.errors import BitwrightError
from bitwright.network import Layer, Network
from bitwright.network.ops import aten, is_lookup, is_mean_over_space

DOMAIN = "bitwright.hole"
#: the oldest that has BitwiseAnd, and that torch exports to
OPSET = 18

_library = torch.library.Library("bitwright", "DEF")
_library.define("weight(Tensor like, str name, int[] shape) -> Tensor")
_library.define("lookup(Tensor ids, str name, int width) -> Tensor")
_library.define("edge(Tensor x, str name) -> Tensor")
_library.impl(
    "weight", lambda like, name, shape: like.new_zeros(shape), "CompositeExplicitAutograd"
)
_library.impl(
    "lookup",
    lambda ids, name, width: torch.zeros(*ids.shape, width, device=ids.device),
    "CompositeExplicitAutograd",
)
_library.impl("edge", lambda x, name: x.clone(), "CompositeExplicitAutograd")


@torch.library.register_fake("bitwright::weight")
def _fake_weight(like: Tensor, name: str, shape: list[int]) -> Tensor:
    return like.new_empty(shape)


@torch.library.register_fake("bitwright::lookup")
def _fake_lookup(ids: Tensor, name: str, width: int) -> Tensor:
    return torch.empty(*ids.shape, width, device=ids.device)


@torch.library.register_fake("bitwright::edge")
def _fake_edge(x: Tensor, name: str) -> Tensor:
    return torch.empty_like(x)


def _register(name: str, given: str) -> None:
    kind = defs.OpSchema.FormalParameter
    defs.register_schema(
        defs.OpSchema(
            name,
            DOMAIN,
            1,
            inputs=[kind("x", "S")],
            outputs=[kind("y", "T")],
            type_constraints=[("S", [given], ""), ("T", ["tensor(float)"], "")],
            attributes=[defs.OpSchema.Attribute("name", defs.OpSchema.AttrType.STRING, "")],
        )
    )


for _hole, _given in (("Weight", "float"), ("Edge", "float"), ("Lookup", "int64")):
    if not defs.has(_hole, DOMAIN):
        _register(_hole, f"tensor({_given})")
_holes = Opset(DOMAIN, 1)


def _lower_weight(like: Any, name: str, shape: Any) -> Any:
    return _holes.Weight(like, name=name)


def _lower_lookup(ids: Any, name: str, width: int) -> Any:
    return _holes.Lookup(ids, name=name)


def _lower_edge(x: Any, name: str) -> Any:
    return _holes.Edge(x, name=name)


def _lower_pool(x: Any, output_size: Any) -> Any:
    return opset18.GlobalAveragePool(x)


def _lower_gelu(x: Any, approximate: str = "none") -> Any:
    """In the order of operations that runtimes know as GELU."""
    half, one = opset18.Constant(value_float=0.5), opset18.Constant(value_float=1.0)
    if approximate == "tanh":
        cubic = opset18.Mul(
            opset18.Constant(value_float=0.044715), opset18.Mul(x, opset18.Mul(x, x))
        )
        inner = opset18.Mul(
            opset18.Constant(value_float=(2 / math.pi) ** 0.5), opset18.Add(x, cubic)
        )
        return opset18.Mul(opset18.Mul(x, opset18.Add(opset18.Tanh(inner), one)), half)
    inner = opset18.Erf(opset18.Div(x, opset18.Constant(value_float=2**0.5)))
    return opset18.Mul(opset18.Mul(x, opset18.Add(inner, one)), half)


def with_holes(network: Network, edges: bool) -> GraphModule:
    """A copy of the graph that reads `bitwright::weight` and passes edges through `::edge`.

    The weight of a call is the hole `LAYER`, its bias `LAYER@CALL` (a bias is stored relative to
    the scale of the call's input); a lookup is one hole, `LAYER@CALL`.
    """
    with quiet():
        module = copy.deepcopy(network.module)
    graph = module.graph
    by_call = {name: layer for layer in network.layers for name in layer.calls}
    edge_names = {e.name for e in network.edges} if edges else set()
    for node in list(graph.nodes):
        layer = by_call.get(node.name)
        if layer is not None and is_lookup(node):
            name = f"{layer.name}@{node.name}"
            node.target = torch.ops.bitwright.lookup.default
            node.args = (node.args[1], name, layer.fan_in)
            layer = None
        elif layer is not None:
            with graph.inserting_before(node):
                weight = graph.call_function(
                    torch.ops.bitwright.weight.default,
                    (node.args[0], layer.name, list(layer.shape)),
                )
                bias = graph.call_function(
                    torch.ops.bitwright.weight.default,
                    (node.args[0], f"{layer.name}@{node.name}", [layer.rows]),
                )
            node.args = (node.args[0], weight, bias, *node.args[3:])
        value = _flatten_rows(graph, node, layer) if layer is not None and edges else node
        _pool_instead_of_mean(graph, node)
        if node.name in edge_names:
            with graph.inserting_after(value):
                edge = graph.call_function(torch.ops.bitwright.edge.default, (value, node.name))
            _read_instead(value, edge)
    graph.eliminate_dead_code()
    module.delete_all_unused_submodules()
    module.recompile()
    return module


def _flatten_rows(graph: torch.fx.Graph, node: torch.fx.Node, layer: Layer) -> torch.fx.Node:
    """A linear layer on [n, …, k] as one on [n·…, k]: only a Gemm becomes an integer kernel.

    The runtime fuses a MatMul of dequantized numbers in some surroundings and not in others; a Gemm
    always, with its bias. See docs/decisions/0023-linear-layers.md.

    Returns:
        The node with the layer's result in its own shape.
    """
    shape = node.meta["row_shape"]
    if layer.kind != "linear" or len(shape) < 2:
        return node
    source = node.args[0]
    assert isinstance(source, torch.fx.Node)
    flat = next((u for u in source.users if u.meta.get("flat_rows")), None)
    if flat is None:
        with graph.inserting_after(source):
            flat = graph.call_function(aten.reshape.default, (source, [-1, layer.fan_in]))
        flat.meta["flat_rows"] = True
    node.args = (flat, *node.args[1:])
    with graph.inserting_after(node):
        back = graph.call_function(aten.reshape.default, (node, [-1, *map(int, shape)]))
    _read_instead(node, back)
    return back


def _read_instead(old: torch.fx.Node, new: torch.fx.Node) -> None:
    """Everything but `new` that reads `old` reads `new`."""
    old.replace_all_uses_with(new, delete_user_cb=lambda user: user is not new)


def _pool_instead_of_mean(graph: torch.fx.Graph, node: torch.fx.Node) -> None:
    """A mean over the image has an integer kernel only under the name of pooling."""
    if node.target is not aten.mean.dim or not is_mean_over_space(node):
        return
    keep = len(node.args) > 2 and bool(node.args[2])
    pooled = (node.args[0], [1, 1])
    if keep:
        node.target, node.args, node.kwargs = aten.adaptive_avg_pool2d.default, pooled, {}
    else:
        with graph.inserting_before(node):
            pool = graph.call_function(aten.adaptive_avg_pool2d.default, pooled)
        node.target, node.args, node.kwargs = aten.flatten.using_ints, (pool, 1), {}


def export(module: nn.Module, input_shape: tuple[int, ...], dtype: torch.dtype) -> ir.Model:
    """Export a graph (with or without holes) with a free batch axis; initializers stay in memory.

    Torch's notes on where a node comes from are dropped: among them are paths of this machine, and
    the bytes of the file would depend on them.

    Raises:
        BitwrightError: torch cannot lower an operation to ONNX; the message names it.
    """
    example = torch.zeros(2, *input_shape, dtype=dtype)
    table: dict[Any, Any] = {
        torch.ops.bitwright.weight.default: _lower_weight,
        torch.ops.bitwright.edge.default: _lower_edge,
        torch.ops.bitwright.lookup.default: _lower_lookup,
        aten.gelu.default: _lower_gelu,
    }
    try:
        with quiet():
            program = torch.export.export(
                module, (example,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},), strict=False
            )
            pools = [n for n in program.graph.nodes if n.target is aten.adaptive_avg_pool2d.default]
            if pools and all(is_mean_over_space(n) for n in pools):
                table[aten.adaptive_avg_pool2d.default] = _lower_pool
            exported = torch.onnx.export(
                program,
                custom_translation_table=table,
                dynamo=True,
                opset_version=OPSET,
                verbose=False,
            )
    except Exception as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        raise BitwrightError(
            f"torch cannot export the model to ONNX: {' '.join(lines[:2])[:300]}"
        ) from error
    assert exported is not None
    _forget(exported.model)
    return exported.model


def _forget(model: ir.Model) -> None:
    graph = model.graph
    values = [*graph.inputs, *graph.initializers.values()]
    nodes = list(graph.all_nodes())
    values += [value for node in nodes for value in node.outputs]
    notes = [model.metadata_props, graph.metadata_props]
    for props in [*notes, *(n.metadata_props for n in nodes), *(v.metadata_props for v in values)]:
        props.clear()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the exporter's warnings and log lines; restore afterwards."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
