"""The nouns of a captured network: its weights and its edges, with ties."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from bitwright.errors import BitwrightError
from bitwright.network import program
from bitwright.network.capture import attribute, capture, set_attribute
from bitwright.network.ops import (
    CLIPS,
    INTEGER,
    LAYERS,
    TABLES,
    UNSUPPORTED,
    VALUE_PRESERVING,
    aten,
    clip_ends,
    is_clip_at_zero,
    is_lookup,
)


@dataclass(frozen=True)
class Layer:
    """A quantizable weight: `rows` output channels (axis 0) of `fan_in` numbers each.

    The rows of an embedding are its tokens. One whose table is a linear layer's weight too (tied)
    is that linear layer, and its lookups stand last among the calls.

    Attributes:
        name: the weight's canonical name without a trailing `.weight`.
        weight, bias: parameter names in the captured graph; an embedding's bias is "".
        kind: `conv1d`, `conv2d`, `linear` or `embedding`.
        calls: names of the graph nodes that use it (more than one when a module is called twice).
        shape: of the weight.
        macs: multiply-accumulates for one input row, over all calls.
    """

    name: str
    weight: str
    bias: str
    kind: str
    calls: tuple[str, ...]
    shape: tuple[int, ...]
    groups: int
    macs: int

    @property
    def rows(self) -> int:
        """Number of output channels."""
        return self.shape[0]

    @property
    def fan_in(self) -> int:
        """Weights per output channel."""
        return math.prod(self.shape[1:])

    @property
    def weights(self) -> int:
        """Number of weights."""
        return self.rows * self.fan_in


@dataclass(frozen=True)
class Edge:
    """An activation tensor that is stored in 8 bits between two operations.

    Attributes:
        name: of the graph node that computes it.
        group: edges of one group share scale and zero point (reshapes, pooling by maximum,
            concatenations).
        shape: of one row, batch axis left out.
        at_zero: nothing below zero can occur, so the zero point is 0 and a ReLU is free.
        ceiling: the largest value a clip lets through (6 for ReLU6), which the grid may not pass,
            so that the clip is free as well.
    """

    name: str
    group: int
    shape: tuple[int, ...]
    at_zero: bool
    ceiling: float = math.inf


@dataclass(frozen=True)
class Network:
    """A captured graph with its layers and edges."""

    module: GraphModule
    layers: tuple[Layer, ...]
    edges: tuple[Edge, ...]
    input_shape: tuple[int, ...]
    skipped: tuple[str, ...]

    @property
    def weights(self) -> int:
        """Number of quantizable weights."""
        return sum(layer.weights for layer in self.layers)

    def tensor(self, name: str) -> Tensor:
        """The parameter `name` of the captured graph."""
        return attribute(self.module, name)

    def bias(self, layer: Layer) -> Tensor:
        """The layer's bias [rows]; of an embedding [0]."""
        if layer.bias:
            return self.tensor(layer.bias)
        return self.tensor(layer.weight).new_zeros(0)

    def matrix(self, layer: Layer) -> Tensor:
        """The layer's weight as [rows, fan_in]."""
        return self.tensor(layer.weight).reshape(layer.rows, layer.fan_in)

    @property
    def input_dtype(self) -> torch.dtype:
        """Of the rows: float32, or int64 for tokens."""
        source = next(n for n in self.module.graph.nodes if n.op == "placeholder")
        return torch.float32 if source.meta.get("is_float", True) else torch.int64

    @property
    def device(self) -> torch.device:
        """Where the graph's tensors are."""
        return self.tensor(self.layers[0].weight).device

    def to(self, device: str | torch.device) -> Network:
        """The same network with its tensors on another device; itself if they are there."""
        place = torch.device(device)
        if self.device == place:
            return self
        module = copied(self.module)
        for node in module.graph.nodes:
            if node.op == "get_attr":
                set_attribute(module, node.target, attribute(module, node.target).to(place))
            elif "device" in node.kwargs:  # what the graph creates: zeros, ranges
                node.kwargs = {**node.kwargs, "device": place}
        module.recompile()
        return replace(self, module=module)

    def __getstate__(self) -> dict[str, Any]:
        """For other processes: the graph as a program, which torch.fx would trace again."""
        reads = [n.target for n in self.module.graph.nodes if n.op == "get_attr"]
        tensors = {name: self.tensor(name).detach() for name in reads}
        return {**vars(self), "module": (program.to_json(self.module), tensors)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            if name == "module":
                value = program.from_json(value[0], value[1], state["input_shape"])
            object.__setattr__(self, name, value)


def copied(module: GraphModule) -> GraphModule:
    """A graph with tensors of its own; without torch's warning about its own copying."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return copy.deepcopy(module)


def doubled(network: Network) -> Network | None:
    """The same network in float64; None where it is, or its graph names types of its own."""
    nodes = list(network.module.graph.nodes)
    dtype = network.tensor(network.layers[0].weight).dtype
    if dtype != torch.float32 or any("dtype" in node.kwargs for node in nodes):
        return None
    return replace(network, module=copied(network.module).double())


def build(model: nn.Module, example: Tensor, *, skip: Sequence[str] = ()) -> Network:
    """Capture `model` and find its layers and edges.

    Args:
        model: any module torch.export can trace; never changed.
        example: [n >= 2, ...] rows.
        skip: names of layers to leave in float (exact, or a prefix ending in `.`).

    Raises:
        BitwrightError: nothing to quantize, a layer type without a quantized form that `skip`
            does not name, or a name in `skip` that no layer has.
    """
    module = capture(model, example)
    found = describe(module, tuple(example.shape[1:]), skip)
    for name in skip:
        if not any(_matches(layer, (name,)) for layer in found.skipped):
            layers = [layer.name for layer in found.layers]
            raise BitwrightError(
                f"--skip {name} matches no layer; layers are {', '.join(layers[:6])}"
                f"{' …' if len(layers) > 6 else ''}"
            )
    return found


def describe(module: GraphModule, input_shape: tuple[int, ...], skip: Sequence[str]) -> Network:
    """Layers and edges of a captured graph."""
    layers, skipped = _layers(module, skip)
    if not layers:
        raise BitwrightError(
            "the model has no Conv1d, Conv2d, Linear or Embedding weight that could be quantized"
        )
    return Network(module, layers, _edges(module, layers), input_shape, skipped)


def _layers(module: GraphModule, skip: Sequence[str]) -> tuple[tuple[Layer, ...], tuple[str, ...]]:
    calls: dict[str, list[Any]] = {}
    skipped: list[str] = []
    for node in module.graph.nodes:
        if node.target in UNSUPPORTED:
            name = _owner(node)
            if not _matches(name, skip):
                raise BitwrightError(
                    f"layer {name!r} is a {UNSUPPORTED[node.target]}, which has no quantized form; "
                    f"leave it in float with --skip {name}"
                )
            skipped.append(name)
        elif _weight_node(node) is not None:
            name = _owner(node)
            if _matches(name, skip):
                skipped.append(name)
            else:
                calls.setdefault(_weight_node(node).target, []).append(node)
    found = []
    for weight, nodes in calls.items():
        nodes.sort(key=is_lookup)  # those with a bias first
        biases = [n.args[2] for n in nodes if not is_lookup(n)]
        kinds = {n.target for n in nodes if not is_lookup(n)}
        readers = set(_weight_node(nodes[0]).users)  # a transpose, say: rows are no channels
        computed = any(b.op != "get_attr" for b in biases)
        several = len({b.target for b in biases}) > 1 or len(kinds) > 1
        if several or readers != set(nodes) or computed:
            raise BitwrightError(
                f"weight {weight!r} is used with different biases or operations ({len(readers)} "
                f"uses), which has no quantized form; leave it in float with --skip "
                f"{weight.removesuffix('.weight')}"
            )
        first = nodes[0]
        shape = tuple(attribute(module, weight).shape)
        groups = int(first.args[6]) if len(first.args) > 6 else 1
        fan_in = math.prod(shape[1:])
        products = [n for n in nodes if not is_lookup(n)]
        macs = sum(math.prod(n.meta["row_shape"]) * fan_in for n in products)
        found.append(
            Layer(
                name=weight.removesuffix(".weight"),
                weight=weight,
                bias=biases[0].target if biases else "",
                kind=(LAYERS | TABLES)[first.target],
                calls=tuple(n.name for n in nodes),
                shape=shape,
                groups=groups,
                macs=macs,
            )
        )
    return tuple(found), tuple(dict.fromkeys(skipped))


def _weight_node(node: Node) -> Any:
    """The parameter whose rows `node` multiplies with or looks up; None if it does neither."""
    place = 1 if node.target in LAYERS else 0 if node.target in TABLES else None
    source = None if place is None else node.args[place]
    return source if isinstance(source, Node) and source.op == "get_attr" else None


def _owner(node: Node) -> str:
    """The canonical name of the layer a node calls: its parameter's name, else its own."""
    for source in node.all_input_nodes:
        if source.op == "get_attr":
            owner, _, own = str(source.target).rpartition(".")
            # a recurrent layer's first parameter is `weight_ih_l0`
            its = own == "weight" or own.startswith("weight_ih_")
            return owner if owner and its else str(source.target)
    return node.name


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(name == p or (p.endswith(".") and f"{name}.".startswith(p)) for p in patterns)


def fused_activation(node: Node) -> Node | None:
    """The clip that alone reads `node`, which the runtime folds into it; else None.

    Only a clip at zero, or one without lower bound, is what saturation on a grid does: zero is a
    level of every grid, and the lowest one where `at_zero`.
    """
    if len(node.users) == 1:
        reader = next(iter(node.users))
        if is_clip_at_zero(reader):
            return reader
        if reader.target is aten.clamp.default and reader.args[1] is None:
            return reader
    return None


def varying(module: GraphModule) -> set[Node]:
    """Values that vary with the row; what parameters alone determine is no activation."""
    found: set[Node] = set()
    for node in module.graph.nodes:
        if node.op == "placeholder" or (
            node.op == "call_function"
            and node.target is not aten.sym_size.int
            and not found.isdisjoint(node.all_input_nodes)
        ):
            found.add(node)
    return found


def _edges(module: GraphModule, layers: Sequence[Layer]) -> tuple[Edge, ...]:
    """Which values live in 8 bits between operations, and which share a grid.

    A value does when a quantized layer reads it, when a convolution produces it (the runtime fuses
    a convolution only with a quantized output), or when it lies on a path of integer operations
    that ends at such a value. Values that only reach the output, or only float operations (GELU,
    layer normalization), stay float.
    """
    quantized_calls = {name for layer in layers for name in layer.calls}
    nodes = [n for n in module.graph.nodes if n.op in ("placeholder", "call_function")]
    varies = varying(module)
    carries = [n for n in nodes if n.meta.get("is_float") and n in varies]
    need: set[Node] = set()

    def wanted_by(reader: Node, value: Node) -> bool:
        if reader.name in quantized_calls:
            return reader.args[0] is value
        if reader.target in INTEGER or reader.target in VALUE_PRESERVING or reader.target in CLIPS:
            return _result(reader) in need
        return False

    for node in reversed(carries):
        if _absorbed(node):
            continue
        producer = _producer(node)
        from_layer = (
            producer.name in quantized_calls and LAYERS.get(producer.target, "linear") != "linear"
        )
        leaves_only = all(u.op == "output" for u in node.users)
        if any(wanted_by(u, node) for u in node.users) or (from_layer and not leaves_only):
            need.add(node)
    for node in carries:  # a reshape of a quantized value costs nothing to keep quantized
        free = node.target in VALUE_PRESERVING and node.args[0] in need
        if free and any(u.op != "output" for u in node.users):
            need.add(node)
    everything = list(module.graph.nodes)
    nonnegative, ceiling = _nonnegatives(everything), _ceilings(everything)
    group = {n: i for i, n in enumerate(carries)}
    first = list(range(len(carries)))  # of each group, or a step on the way to it

    def find(n: Node) -> int:
        g = group[n]
        while first[g] != g:
            first[g] = first[first[g]]
            g = first[g]
        return g

    def tie(a: Node, b: Node) -> None:
        old, new = sorted((find(a), find(b)), reverse=True)
        first[old] = new

    for node in carries:
        if node not in need:
            continue
        if node.target in VALUE_PRESERVING and node.args[0] in need:
            tie(node, node.args[0])
        if node.target is aten.cat.default:
            sources = [s for s in node.args[0] if s in need]
            # a signed tensor would unfuse ReLUs; another's ceiling would clip
            if len({(nonnegative[s], ceiling[s]) for s in sources}) == 1:
                for source in sources:
                    tie(node, source)
    ids = {g: i for i, g in enumerate(sorted({find(n) for n in need}))}
    zero = {g: True for g in ids}
    for node in need:
        if node.target in VALUE_PRESERVING and node.args[0] in need:
            continue  # as its source, which is of the same group
        zero[find(node)] &= nonnegative[node]
    top = dict.fromkeys(ids, math.inf)
    for node in need:
        top[find(node)] = min(top[find(node)], ceiling[node])
    return tuple(
        Edge(n.name, ids[find(n)], n.meta["row_shape"], zero[find(n)], top[find(n)])
        for n in carries
        if n in need
    )


def fresh_edges(network: Network) -> set[str]:
    """Edges with values of their own: not all taken from other edges of their group."""
    group = {e.name: e.group for e in network.edges}
    return {
        node.name
        for node in network.module.graph.nodes
        if node.name in group
        and not (
            node.target in VALUE_PRESERVING | {aten.cat.default}
            and all(group.get(n.name) == group[node.name] for n in node.all_input_nodes)
        )
    }


def _ceilings(nodes: Sequence[Node]) -> dict[Node, float]:
    """The largest value that a clip lets through to each node, inf where there is none."""
    known: dict[Node, float] = {}
    for node in nodes:
        high = clip_ends(node)[1]
        found: Any = math.inf
        if high is not None:  # what is computed fails where somebody needs it
            found = float(high) if isinstance(high, int | float) else high
        elif node.target in VALUE_PRESERVING and isinstance(node.args[0], Node):
            found = known[node.args[0]]
        known[node] = found
    return known


def _absorbed(node: Node) -> bool:
    """Whether the clip after `node` is what its result is stored as, so that it is no edge itself.

    The runtime saturates, which clips. Stored twice, before and after the clip, its optimizer would
    merge the two grids into a third one, and fuse no convolution that reads it.
    """
    return node.target not in VALUE_PRESERVING and fused_activation(node) is not None


def _result(reader: Node) -> Node:
    return (fused_activation(reader) or reader) if _absorbed(reader) else reader


def _producer(node: Node) -> Node:
    """The operation whose result `node` is, looking through a folded clip."""
    if node.target in CLIPS and isinstance(node.args[0], Node) and _absorbed(node.args[0]):
        return node.args[0]
    return node


def _nonnegatives(nodes: Sequence[Node]) -> dict[Node, bool]:
    """Of each node, whether nothing below zero can occur. One pass: cats of cats are many paths."""
    means = (aten.avg_pool2d.default, aten.adaptive_avg_pool2d.default, aten.mean.dim)
    known: dict[Node, bool] = {}
    for node in nodes:
        found = is_clip_at_zero(node) or node.target in (aten.sigmoid.default, aten.softmax.int)
        if node.target is aten.cat.default:
            joined: Any = node.args[0]
            found = all(known[source] for source in joined)
        elif node.target in means or node.target in VALUE_PRESERVING:
            source: Any = node.args[0]
            found = known[source]
        known[node] = found
    return known
