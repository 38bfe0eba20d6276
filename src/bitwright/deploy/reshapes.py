"""Reshapes beside a Gemm, done on integers: else they stand between it and its Q and DQ."""

from __future__ import annotations

import onnx_ir as ir


def reshape_integers(graph: ir.Graph) -> None:
    """`DQ → Reshape → Gemm` becomes `Reshape → DQ → Gemm`; `Gemm → Reshape → Q` likewise."""
    for node in [n for n in graph if n.op_type == "Reshape"]:
        source = node.inputs[0].producer() if node.inputs[0] is not None else None
        readers = [use.node for use in node.outputs[0].uses()]
        if source is None or node.outputs[0].is_graph_output():
            continue
        if source.op_type == "DequantizeLinear" and {r.op_type for r in readers} == {"Gemm"}:
            _before(graph, node, source)
        elif source.op_type == "Gemm" and [r.op_type for r in readers] == ["QuantizeLinear"]:
            _after(graph, node, readers[0])


def _before(graph: ir.Graph, reshape: ir.Node, back: ir.Node) -> None:
    """Reshape what `back` dequantizes, then dequantize."""
    shaped = ir.node("Reshape", [back.inputs[0], reshape.inputs[1]])
    again = ir.node("DequantizeLinear", [shaped.outputs[0], *back.inputs[1:]])
    graph.insert_before(reshape, [shaped, again])
    reshape.outputs[0].replace_all_uses_with(again.outputs[0])
    graph.remove(reshape, safe=True)


def _after(graph: ir.Graph, reshape: ir.Node, store: ir.Node) -> None:
    """Quantize what is reshaped, then reshape; the stored value keeps its name."""
    stored = ir.node("QuantizeLinear", [reshape.inputs[0], *store.inputs[1:]])
    shaped = ir.node("Reshape", [stored.outputs[0], reshape.inputs[1]])
    graph.insert_before(store, [stored, shaped])
    shaped.outputs[0].name, store.outputs[0].name = store.outputs[0].name, None
    store.outputs[0].replace_all_uses_with(shaped.outputs[0])
    graph.remove([store, reshape], safe=True)
