"""Zero padding between integers: done on integers, or by the convolution that follows.

A Pad between DequantizeLinear and QuantizeLinear stays float in the runtime, and costs more than
many a convolution. Padding with zero is padding with the zero point.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from bitwright.deploy.builder import Builder


def pad_integers(
    build: Builder, value: ir.Value, step: np.ndarray, zero: np.ndarray
) -> ir.Value | None:
    """The padded integers, where `value` is a zero-padded float of integers on the same grid."""
    pad = value.producer()
    if pad is None or pad.op_type != "Pad" or not _pads_with_zero(pad):
        return None
    source = pad.inputs[0].producer() if pad.inputs[0] is not None else None
    if source is None or source.op_type != "DequantizeLinear":
        return None
    if list(source.inputs[1:]) != [build.constant(step), build.constant(zero)]:
        return None
    return build.op("Pad", source.inputs[0], pad.inputs[1], build.constant(zero), mode="constant")


def _pads_with_zero(pad: ir.Node) -> bool:
    mode = pad.attributes.get("mode")
    if mode is not None and mode.as_string() != "constant":
        return False
    if len(pad.inputs) > 2 and pad.inputs[2] is not None:
        value = ir.convenience.get_const_tensor(pad.inputs[2])
        if value is None or float(value.numpy().reshape(())) != 0:
            return False
    return len(pad.inputs) < 4 or pad.inputs[3] is None


def fold_pads(graph: ir.Graph) -> None:
    """Give the spatial padding of integers to the convolutions, where nothing else reads it."""
    for pad in [n for n in graph if n.op_type == "Pad"]:
        readers = _convolutions_behind(pad)
        given = None if pad.inputs[1] is None else ir.convenience.get_const_tensor(pad.inputs[1])
        if not readers or given is None:
            continue
        begin, end = np.split(given.numpy(), 2)
        if min(begin.min(), end.min()) < 0 or begin[:2].any() or end[:2].any():
            continue
        more = np.concatenate([begin[2:], end[2:]])
        for back, convolution in readers:
            own = convolution.attributes.get("pads")
            before = np.array(own.as_ints()) if own is not None else np.zeros_like(more)
            convolution.attributes["pads"] = ir.AttrInt64s("pads", (before + more).tolist())
            back.replace_input_with(0, pad.inputs[0])
        graph.remove(pad, safe=True)


def _convolutions_behind(pad: ir.Node) -> list[tuple[Any, ir.Node]]:
    """(DequantizeLinear, Conv) pairs that read the padded integers; none if anything else does."""
    found: list[tuple[Any, ir.Node]] = []
    for use in pad.outputs[0].uses():
        back = use.node
        if back.op_type != "DequantizeLinear" or back.outputs[0].is_graph_output():
            return []
        for reader in back.outputs[0].uses():
            auto = reader.node.attributes.get("auto_pad")
            if reader.node.op_type != "Conv" or reader.idx != 0:
                return []
            if auto is not None and auto.as_string() != "NOTSET":
                return []
            found.append((back, reader.node))
    return found
