"""What all artefacts have: a program, the graph as JSON, and parameters that stay as they are.

A program that is read is bounded by the bytes beside it before anything is built, and what is built
from it must be what it says.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from bitwright.codec import decode, parse
from bitwright.errors import BitwrightError
from bitwright.network import Network, describe
from bitwright.network.ops import TABLES
from bitwright.network.program import from_json, unstorable

#: in front of the names of parameters that stay as they are
FREE = "f:"
#: operations that name a table in front of its indices
_LOOKUPS = {str(op) for op in TABLES}


class Graph(Protocol):
    """What programs have in common; see :class:`bitwright.deploy.rebuild.Program`."""

    @property
    def graph(self) -> tuple[Any, ...]: ...  # noqa: D102
    @property
    def layers(self) -> tuple[tuple[int, ...], ...]: ...  # noqa: D102
    @property
    def input(self) -> tuple[int, ...]: ...  # noqa: D102
    @property
    def skipped(self) -> tuple[str, ...]: ...  # noqa: D102


Kind = TypeVar("Kind", bound=Graph)
Shapes = Sequence[tuple[str, str, tuple[int, ...]]]


@dataclass(frozen=True)
class Limits:
    """What an artefact's program may be beside its other tensors.

    A node takes some 9 KB of memory, however short its text; text takes ten times its bytes, and
    numbers become weights that take some ten times theirs. So a program within these limits needs
    no more memory than the numbers do, beside what any file may take.

    Attributes:
        text: bytes of JSON.
        nodes: of the graph.
    """

    text: int
    nodes: int


def program_limits(tensors: Mapping[str, np.ndarray]) -> Limits:
    """Of an artefact with these tensors."""
    size = sum(v.nbytes for name, v in tensors.items() if name != "program")
    return Limits(2**18 + size // 4, 2**10 + size // 2**11)


def inflated(content: np.ndarray, limit: int, what: str) -> bytes:
    """At most `limit` bytes of a zlib stream that is whole and has nothing behind it."""
    engine = zlib.decompressobj()
    text = engine.decompress(content.tobytes(), limit)
    if engine.unconsumed_tail or not engine.eof or engine.unused_data:
        raise ValueError(f"its {what} is longer than it may be, or cut off")
    return text


def require_storable(network: Network, instead: str) -> None:
    """Refuse operations that no stored program may contain; `instead` says what else to do.

    Raises:
        BitwrightError: there are some.
    """
    if strange := unstorable(network.module):
        raise BitwrightError(
            f"the model uses {', '.join(strange[:5])}, which the artefact cannot store; {instead}"
        )


def free_tensors(network: Network) -> dict[str, np.ndarray]:
    """The parameters and buffers that stay as they are, by the names they are stored under."""
    own = {la.weight for la in network.layers} | {la.bias for la in network.layers}
    module = network.module
    return {
        # ascontiguousarray would give a scalar an axis
        f"{FREE}{name}": np.array(value.detach().numpy(), order="C")
        for name, value in [*module.named_parameters(), *module.named_buffers()]
        if name not in own
    }


def read_program(hint: type[Kind], tensors: Mapping[str, np.ndarray]) -> Kind:
    """The JSON of an artefact's `program`.

    Raises:
        ValueError: it is not one, or larger than the numbers beside it need.
    """
    limits = program_limits(tensors)
    text = inflated(tensors["program"], limits.text, "program")
    program: Kind = decode(hint, parse(text, "its program"), "program")
    if len(program.graph) > limits.nodes:
        raise ValueError(f"its program has {len(program.graph)} nodes, more than its weights need")
    return program


def captured(
    program: Graph, tensors: Mapping[str, np.ndarray], shapes: Shapes, own: Mapping[str, Tensor]
) -> Network:
    """The network of a program.

    Args:
        program: as it was read.
        tensors: of the artefact, with those that stay as they are.
        shapes: of its layers (:func:`layer_shapes`).
        own: weights and biases of the layers by name.

    Raises:
        ValueError: something is read by nothing, or layers are others than the program says.
    """
    parameters = {
        name[len(FREE) :]: torch.from_numpy(np.array(value))
        for name, value in tensors.items()
        if name.startswith(FREE)
    }
    free = set(parameters)
    parameters |= own
    module = from_json(program.graph, parameters, program.input)
    reads = {n.target for n in module.graph.nodes if n.op == "get_attr"}
    if not free <= reads:
        raise ValueError(f"nothing reads {sorted(free - reads)[0][:80]!r}")
    network = describe(module, program.input, program.skipped)
    if [(la.weight, la.bias, la.shape) for la in network.layers] != list(shapes):
        raise ValueError("its layers are not those of its program")
    return network


def layer_shapes(
    graph: Sequence[Any], layers: Sequence[Sequence[int]]
) -> list[tuple[str, str, tuple[int, ...]]]:
    """Weight, bias and the weight's shape of each layer, from the nodes that call them.

    An embedding's bias is "": its lookup has the weight in front, and none.
    """
    found = []
    for place, *shape in layers:
        if not 0 <= place < len(graph):
            raise ValueError(f"its layer at {place} is not in its program")
        if len(shape) < 2 or min(shape) < 1:
            raise ValueError("its layers have shapes without weights")
        _, operation, (first, weight, *rest), *_ = graph[place]
        if operation in _LOOKUPS:
            found.append((str(first["p"]), "", tuple(shape)))
        else:
            found.append((str(weight["p"]), str(rest[0]["p"]), tuple(shape)))
    names = [name for weight, bias, _ in found for name in (weight, bias) if name]
    if len(set(names)) < len(names):
        raise ValueError("two of its layers share a parameter")
    return found
