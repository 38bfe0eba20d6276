"""Biases of all layers: integers in steps of input scale × weight scale, as short as they are."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from bitwright.deploy.builder import Builder
from bitwright.deploy.integer import integer_bias
from bitwright.deploy.unpacking import Container
from bitwright.quantize import EdgeGrid, Quantized


def integer_biases(
    build: Builder, quantized: Quantized, grids: Mapping[str, EdgeGrid]
) -> dict[str, ir.Value]:
    """Call -> int32 [rows], for calls that read integers.

    Those of layers whose biases all fit 16 bits are stored so; one constant for each type.

    Args:
        build: of the graph.
        quantized: network.
        grids: edge name -> grid.
    """
    nodes = {n.name: n for n in quantized.network.module.graph.nodes}
    found: dict[type, dict[str, np.ndarray]] = {np.int16: {}, np.int32: {}}
    for layer in quantized.network.layers:
        for call in layer.calls:
            grid = grids.get(nodes[call].args[0].name)
            if grid is not None:
                value = integer_bias(quantized.layers[layer.name], grid).numpy()
                short = int(np.abs(value.astype(np.int64)).max(initial=0)) < 2**15
                found[np.int16 if short else np.int32][call] = value
    done: dict[str, ir.Value] = {}
    for kind, values in found.items():
        if values:
            whole = build.constant(np.concatenate(list(values.values())).astype(kind))
            if kind is np.int16:
                whole = build.op("Cast", whole, to=ir.DataType.INT32)
            cut = build.pieces(whole, [len(v) for v in values.values()])
            done |= dict(zip(values, cut, strict=True))
    return done


def dequantized(build: Builder, bias: ir.Value, held: Container, grid: EdgeGrid) -> ir.Value:
    """The bias of one call as the numbers that it stands for."""
    step = build.op("Mul", held.scale, np.array(grid.scale, np.float32))
    return build.op("DequantizeLinear", bias, step, axis=0)
