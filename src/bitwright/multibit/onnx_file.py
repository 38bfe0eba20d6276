"""`model.onnx` of a multi-bit network: signs and coordinates that a stock runtime unpacks at load.

One stream of sign bits for the whole network becomes bits by a mask and a shift; basis i of a layer
is `Where(bit, αᵢ, −αᵢ)`, bases are added in their order, empty groups are zeros behind the others,
and a Gather by sorted counts puts the groups back. All of it is constant and folded; no sum has
another order than ours, so that the weights are equal bit for bit.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from bitwright.arith.multibit import MOST_BASES
from bitwright.arith.packing import pack_plane
from bitwright.deploy import onnx_sealed
from bitwright.deploy.builder import Builder, ints
from bitwright.deploy.onnx_file import hollow, replace_value
from bitwright.deploy.placeholders import DOMAIN
from bitwright.deploy.tidy import tidy
from bitwright.deploy.unpacking import sorted_places
from bitwright.multibit.activations import chains
from bitwright.multibit.packed import planes
from bitwright.multibit.stored import Stored, StoredLayer
from bitwright.network import Edge, Layer


def build_model(stored: Stored) -> ir.Model:
    """The complete model.

    The value of each layer's weight is named `LAYER.q`, that of activations on bases `NODE.q`.
    """
    network = stored.network
    cuts = [chain.last for chain in chains(network)]
    edges = tuple(Edge(n.name, i, n.meta["row_shape"], False) for i, n in enumerate(cuts))
    model = hollow(replace(network, edges=edges), edges=bool(edges))
    graph, build = model.graph, Builder()
    weights = _weights(build, stored)
    head = list(build.nodes)
    layers = {la.name: la for la in network.layers}
    for node in list(graph):
        if node.domain != DOMAIN:
            continue
        name, _, call = node.attributes["name"].as_string().partition("@")
        if node.op_type == "Edge":
            value = node.inputs[0]
            assert value is not None
            value.name = f"{name}.q"
        elif call:
            value = build.constant(network.bias(layers[name]).detach().numpy())
        else:
            value = weights[name]
        replace_value(graph, node.outputs[0], value)
        graph.remove(node, safe=True)
    graph.insert_before(graph[0], head)
    for value in build.constants.values():
        graph.initializers[value.name] = value  # type: ignore[index]
    tidy(model)
    return model


def save(stored: Stored, path: Path) -> None:
    """Write the ONNX file, sealed, to a temporary name first."""
    weights: Counter[int] = Counter()
    for layer in stored.layers.values():
        counts, n = layer.bases.counts, layer.grouping.size
        for count in counts[counts > 0].tolist():
            weights[count] += n
    onnx_sealed.save_counted(build_model(stored), weights, path)


def _weights(build: Builder, stored: Stored) -> dict[str, ir.Value]:
    members = [(la, stored.layers[la.name]) for la in stored.network.layers]
    parts = {la.name: planes(held.bases) for la, held in members}
    every = [part for la, _ in members for part in parts[la.name]]
    bits: list[ir.Value] = []
    alphas: list[ir.Value] = []
    if every:
        flat = _bits(build, np.concatenate([b.ravel() for b, _ in every]), 1)
        bits = build.pieces(build.op("Cast", flat, to=ir.DataType.BOOL), [b.size for b, _ in every])
        joined = np.concatenate([a for _, a in every])
        wide = build.op("Cast", joined, to=ir.DataType.FLOAT)
        alphas = build.pieces(wide, [len(a) for _, a in every])
    places = _places(build, members)
    found = {}
    for layer, held in members:
        many = len(parts[layer.name])
        mine = list(zip(bits[:many], alphas[:many], parts[layer.name], strict=True))
        bits, alphas = bits[many:], alphas[many:]
        terms = [_term(build, bit, alpha, held.grouping.size) for bit, alpha, _ in mine]
        rows = [len(a) for _, _, (_, a) in mine]
        groups = _summed(build, terms, rows, held, places[layer.name])
        value = _shaped(build, groups, layer, held)
        value.name = f"{layer.name}.q"
        found[layer.name] = value
    return found


def _bits(build: Builder, values: np.ndarray, plane: int) -> ir.Value:
    """Numbers below 2^plane from a packed stream, flat uint8."""
    packed = pack_plane(values.astype(np.uint8), plane)
    shifts = plane * np.arange(8 // plane, dtype=np.uint8)[:, None]
    masks = (np.uint8(2**plane - 1) << shifts).astype(np.uint8)
    columns = build.op("BitwiseAnd", packed, masks)
    columns = build.op("BitShift", columns, shifts, direction="RIGHT")
    flat = build.op("Reshape", columns, ints(-1))
    spare = len(packed) * (8 // plane) - len(values)
    return build.pieces(flat, [len(values), spare])[0] if spare else flat


def _term(build: Builder, bit: ir.Value, alpha: ir.Value, n: int) -> ir.Value:
    """±αᵢ of the groups that have this basis, [Gᵢ, n]."""
    column = build.op("Reshape", alpha, ints(-1, 1))
    chosen = build.op("Reshape", bit, ints(-1, n))
    return build.op("Where", chosen, column, build.op("Neg", column))


def _summed(
    build: Builder, terms: list[ir.Value], rows: list[int], held: StoredLayer, place: ir.Value
) -> ir.Value:
    """All groups [G, n] in their own order."""
    total, n = len(held.bases.codes), held.grouping.size
    if not terms:
        return build.op("Expand", np.array(0, np.float32), ints(total, n))
    value = terms[0]
    for term, many in zip(terms[1:], rows[1:], strict=True):
        if many == rows[0]:
            value = build.op("Add", value, term)
            continue
        with_it, without = build.pieces(value, [many, rows[0] - many])
        value = build.join([build.op("Add", with_it, term), without])
    if rows[0] < total:
        empty = build.op("Expand", np.array(0, np.float32), ints(total - rows[0], n))
        value = build.join([value, empty])
    counts = held.bases.counts
    if bool((counts[1:] <= counts[:-1]).all()):  # sorted as they are
        return value
    return build.op("Gather", value, place, axis=0)


def _places(build: Builder, members: list[tuple[Layer, StoredLayer]]) -> dict[str, ir.Value]:
    """Where each group lies among its layer's sorted ones, from counts of four bits."""
    each = [held.bases.counts.numpy() for _, held in members]
    lacking = _bits(build, MOST_BASES - np.concatenate(each), 4)
    rows = [len(counts) for counts in each]
    cut = build.pieces(sorted_places(build, lacking, rows, MOST_BASES + 1), rows)
    return {la.name: piece for (la, _), piece in zip(members, cut, strict=True)}


def _shaped(build: Builder, groups: ir.Value, layer: Layer, held: StoredLayer) -> ir.Value:
    if held.grouping.kind == "pixel" and len(layer.shape) > 2:
        places = math.prod(layer.shape[2:])
        value = build.op("Reshape", groups, ints(layer.rows, places, layer.shape[1]))
        groups = build.op("Transpose", value, perm=[0, 2, 1])
    return build.op("Reshape", groups, ints(*layer.shape))
