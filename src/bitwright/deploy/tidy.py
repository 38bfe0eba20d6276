"""The last touches of the file: nothing that carries nothing, and as old a format as will do."""

from __future__ import annotations

import onnx_ir as ir

from bitwright.deploy.placeholders import OPSET

#: of the ONNX release that brought the opset
IR_VERSION = 8
#: attributes that say what goes without saying
_DEFAULTS: dict[str, dict[str, object]] = {
    "Conv": {"auto_pad": "NOTSET", "group": 1},
    "MaxPool": {"auto_pad": "NOTSET", "ceil_mode": 0, "storage_order": 0},
    "AveragePool": {"auto_pad": "NOTSET", "ceil_mode": 0, "count_include_pad": 0},
    "Pad": {"mode": "constant"},
    "Concat": {},
    "Reshape": {"allowzero": 0},
    "Gemm": {"alpha": 1.0, "beta": 1.0, "transA": 0},
}


def tidy(model: ir.Model) -> None:
    """Short names, no shapes of intermediate values: bytes that carry nothing."""
    graph = model.graph
    model.opset_imports.clear()
    model.opset_imports[""] = OPSET
    model.ir_version = IR_VERSION
    model.producer_name, model.producer_version = "bitwright", None
    model.doc_string = graph.doc_string = None
    graph.name = "main"
    inputs, outputs = list(graph.inputs), list(graph.outputs)
    _drop_unread(graph)
    for i, value in enumerate(inputs):
        value.name = "input" if len(inputs) == 1 else f"input{i}"
    keep = {id(v) for v in [*inputs, *outputs]}
    count = 0
    for node in graph:
        node.name = None
        node.doc_string = None
        _drop_defaults(node)
        for value in node.outputs:
            if id(value) in keep:
                continue
            value.shape, value.type = None, None
            if not (value.name or "").endswith((".q", ".rows")):
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
        value.shape, value.type = None, None  # the tensor says them
        graph.initializers[value.name] = value


def _drop_unread(graph: ir.Graph) -> None:
    """Remove nodes that nothing reads: what stood in front of a grid or inside a hole."""
    for node in reversed(list(graph)):
        if not any(v.uses() or v.is_graph_output() for v in node.outputs):
            graph.remove(node, safe=True)


def _drop_defaults(node: ir.Node) -> None:
    """Delete attributes that have their default values; of a Conv also what its weight says."""
    for name, value in _DEFAULTS.get(node.op_type, {}).items():
        if name in node.attributes and node.attributes[name].value == value:
            del node.attributes[name]
    if node.op_type == "Conv":
        for name, usual in (("dilations", 1), ("strides", 1), ("pads", 0)):
            if name in node.attributes and set(node.attributes[name].as_ints()) == {usual}:
                del node.attributes[name]
        if "kernel_shape" in node.attributes:  # it is the weight's
            del node.attributes["kernel_shape"]


def _short(number: int) -> str:
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
    text = ""
    number += 1
    while number:
        number, rest = divmod(number - 1, len(letters))
        text = letters[rest] + text
    return text
