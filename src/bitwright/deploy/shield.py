"""Layers left in float keep their float weights in the runtime.

ONNX Runtime's `WeightBiasQuantization` takes a convolution, transposed convolution or Gemm that
reads dequantized integers and whose result is quantized for one that should be quantized, and
rounds its weights and bias to 8 bits, one step for the whole tensor. A Max of one number is none of
what it looks for, and is the number itself.
"""

from __future__ import annotations

import onnx_ir as ir

_TAKEN = ("Conv", "ConvTranspose", "Gemm")


def shield_floats(graph: ir.Graph) -> None:
    """Put a Max between the integers and every layer with float weights that reads them."""
    for node in list(graph):
        if node.op_type not in _TAKEN:
            continue
        read, weight = node.inputs[:2]
        source = None if read is None else read.producer()
        if source is None or source.op_type != "DequantizeLinear" or not _float(weight):
            continue
        most = ir.node("Max", [read])
        graph.insert_before(node, most)
        node.replace_input_with(0, most.outputs[0])


def _float(weight: ir.Value | None) -> bool:
    """Whether it is a constant of the float model, perhaps turned."""
    while weight is not None and (source := weight.producer()) is not None:
        if source.op_type not in ("Transpose", "Reshape", "Unsqueeze"):
            return False
        weight = source.inputs[0]
    return weight is not None and weight.is_initializer()
