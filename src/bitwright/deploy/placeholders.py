"""The float graph in ONNX with named holes where quantized weights and edges go.

torch's exporter cannot emit sub-8-bit fake quantization, but it lowers everything else. So the
graph is exported with two operations of ours that only carry names, `bitwright::weight` and
`bitwright::edge`; :mod:`~bitwright.deploy.onnx_file` fills the holes.
"""

from __future__ import annotations

import contextlib
import copy
import logging
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
from bitwright.network import Network
from bitwright.network.ops import aten, is_mean_over_space

DOMAIN = "bitwright.hole"
OPSET = 18

_library = torch.library.Library("bitwright", "DEF")
_library.define("weight(Tensor like, str name, int[] shape) -> Tensor")
_library.define("edge(Tensor x, str name) -> Tensor")
_library.impl(
    "weight", lambda like, name, shape: like.new_zeros(shape), "CompositeExplicitAutograd"
)
_library.impl("edge", lambda x, name: x.clone(), "CompositeExplicitAutograd")


@torch.library.register_fake("bitwright::weight")
def _fake_weight(like: Tensor, name: str, shape: list[int]) -> Tensor:
    return like.new_empty(shape)


@torch.library.register_fake("bitwright::edge")
def _fake_edge(x: Tensor, name: str) -> Tensor:
    return torch.empty_like(x)


def _register(name: str) -> None:
    kind = defs.OpSchema.FormalParameter
    defs.register_schema(
        defs.OpSchema(
            name,
            DOMAIN,
            1,
            inputs=[kind("x", "T")],
            outputs=[kind("y", "T")],
            type_constraints=[("T", ["tensor(float)"], "")],
            attributes=[defs.OpSchema.Attribute("name", defs.OpSchema.AttrType.STRING, "")],
        )
    )


for _hole in ("Weight", "Edge"):
    if not defs.has(_hole, DOMAIN):
        _register(_hole)
_holes = Opset(DOMAIN, 1)


def _lower_weight(like: Any, name: str, shape: Any) -> Any:
    return _holes.Weight(like, name=name)


def _lower_edge(x: Any, name: str) -> Any:
    return _holes.Edge(x, name=name)


def _lower_pool(x: Any, output_size: Any) -> Any:
    return opset18.GlobalAveragePool(x)


def with_holes(network: Network, edges: bool) -> GraphModule:
    """A copy of the graph that reads `bitwright::weight` and passes edges through `::edge`.

    The weight of a call is the hole `LAYER`, its bias `LAYER@CALL` (a bias is stored relative to
    the scale of the call's input).
    """
    with quiet():
        module = copy.deepcopy(network.module)
    graph = module.graph
    by_call = {name: layer for layer in network.layers for name in layer.calls}
    edge_names = {e.name for e in network.edges} if edges else set()
    for node in list(graph.nodes):
        layer = by_call.get(node.name)
        if layer is not None:
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
        _pool_instead_of_mean(graph, node)
        if node.name in edge_names:
            with graph.inserting_after(node):
                edge = graph.call_function(torch.ops.bitwright.edge.default, (node, node.name))
            node.replace_all_uses_with(edge, delete_user_cb=lambda u, e=edge: u is not e)
    graph.eliminate_dead_code()
    module.delete_all_unused_submodules()
    module.recompile()
    return module


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

    Raises:
        BitwrightError: torch cannot lower an operation to ONNX; the message names it.
    """
    example = torch.zeros(2, *input_shape, dtype=dtype)
    table: dict[Any, Any] = {
        torch.ops.bitwright.weight.default: _lower_weight,
        torch.ops.bitwright.edge.default: _lower_edge,
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
    return exported.model


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
