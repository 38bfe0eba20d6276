"""What is measured: a captured network, or any module with its batches, seen the same way."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge
from torch.fx import Node

from bitwright.curvature import layout
from bitwright.curvature.layout import Layout
from bitwright.curvature.losses import flatten
from bitwright.curvature.row_squares import Placed
from bitwright.curvature.tape import Tape, Use, edge
from bitwright.errors import BitwrightError
from bitwright.network import Network, doubled, join, run
from bitwright.network.network import varying
from bitwright.network.ops import aten, is_lookup


@dataclass(frozen=True)
class Pass:
    """One forward pass of some samples, its graph alive.

    Attributes:
        outputs: [m, K], in the order of Λ.
        uses: weight name -> its uses.
        edges: edge name -> (tensor, channel axis, layout).
        loose: weight name -> leaf, for weights in operations without a rule.
        grain: of the edges' traces: `channel`, `token` or `tensor`.
    """

    outputs: Tensor
    uses: Mapping[str, tuple[Placed, ...]]
    edges: Mapping[str, tuple[Tensor, int, Layout]]
    loose: Mapping[str, Tensor]
    grain: str = "channel"


class Subject(Protocol):
    """Weights and edges with their shapes, and passes over samples."""

    @property
    def weights(self) -> Mapping[str, tuple[int, ...]]:
        """Weight name -> shape."""
        ...

    def precise(self) -> Subject | None:
        """The same in float64, if that is more and can be had."""
        ...

    def forward(self, rows: Tensor) -> Iterator[tuple[Tensor, Pass]]:
        """Passes that together visit the samples `rows`; with each, its places in `rows`."""
        ...


@dataclass(frozen=True)
class Record:
    """A pass before anything is known of samples: outputs [m, K], uses, and edges with channels.

    `leaves` are the tensors that took the place of the parameters; `grain` is that of the edges.
    """

    outputs: Tensor
    tape: Tape
    edges: Mapping[str, tuple[Tensor, int]]
    leaves: Mapping[str, Tensor]
    grain: str = "channel"

    @property
    def uses(self) -> list[Use]:
        """Of weights that are not measured one sample at a time."""
        unknown = self.tape.unknown
        return [use for use in self.tape.uses if use.weight not in unknown]

    def layouts(self) -> list[Layout]:
        """Of all uses, then of all edges, by the gradient of the first sample's outputs."""
        n = len(self.outputs)
        probe = torch.zeros_like(self.outputs)
        generator = torch.Generator().manual_seed(0)
        probe[0] = torch.randn(self.outputs.shape[1], generator=generator).to(probe)
        watched = [(u.weight, u.y, u.at, u.channel) for u in self.uses]
        watched += [(name, t, edge(t), axis) for name, (t, axis) in self.edges.items()]
        found = gradients(self.outputs, [at for _, _, at, _ in watched], probe, keep=False)
        return [
            layout.find(name, t, axis, g, n)
            for (name, t, _, axis), g in zip(watched, found, strict=True)
        ]

    def placed(self, layouts: list[Layout]) -> Pass:
        """The same with layouts.

        Raises:
            BitwrightError: what a weight multiplied is no longer there.
        """
        known = self.uses
        uses: dict[str, list[Placed]] = {}
        for use, where in zip(known, layouts, strict=False):
            if use.at is not None and use.x._version != use.version:
                raise BitwrightError(
                    f"the input of {use.weight!r} is changed in place after it is read (x += y); "
                    "let the model make a new tensor (x = x + y)"
                )
            uses.setdefault(use.weight, []).append(Placed(use, where, len(self.outputs)))
        rest = layouts[len(known) :]
        edges = {
            name: (t, axis, where)
            for (name, (t, axis)), where in zip(self.edges.items(), rest, strict=True)
        }
        loose = {n: self.leaves[n] for n in sorted(self.tape.unknown)}
        return Pass(self.outputs, {n: tuple(u) for n, u in uses.items()}, edges, loose, self.grain)


def gradients(
    outputs: Tensor, at: list[GradientEdge | None], direction: Tensor, *, keep: bool
) -> list[Tensor | None]:
    """`∂⟨direction, outputs⟩/∂t` at each t's edge; None where the outputs do not depend on it."""
    live = [t for t in at if t is not None]
    found = iter(
        torch.autograd.grad(outputs, live, direction, retain_graph=keep, allow_unused=True)
        if live
        else ()
    )
    return [next(found) if t is not None else None for t in at]


class NetworkSubject:
    """A captured network on the rows x."""

    def __init__(
        self, network: Network, x: Tensor, kind: str, class_axis: int, with_edges: bool
    ) -> None:
        self.network, self.x = network, x
        self.kind, self.class_axis = kind, class_axis
        self.edge_names = {e.name for e in network.edges} if with_edges else set()
        self.weights = {la.weight: la.shape for la in network.layers}
        self._layouts: list[Layout] | None = None

    def precise(self) -> NetworkSubject | None:
        """The same in float64, if that is more and can be had."""
        network = doubled(self.network)
        if network is None or not self.x.is_floating_point():
            return None
        found = copy.copy(self)
        found.network, found.x = network, self.x.double()
        return found

    def forward(self, rows: Tensor) -> Iterator[tuple[Tensor, Pass]]:
        """One pass over all of them."""
        if self._layouts is None:
            self._layouts = self._record(torch.arange(len(self.x))[:3]).layouts()
        yield torch.arange(len(rows)), self._record(rows).placed(self._layouts)

    def _record(self, rows: Tensor) -> Record:
        x = self.x[rows].to(self.network.device)
        module = self.network.module
        # all of them: with tokens as input, something must require a gradient in front of edges
        leaves = {
            n: p.detach().requires_grad_(True)
            for n, p in module.named_parameters()
            if p.is_floating_point()
        } | {n: self.network.tensor(n).detach().requires_grad_(True) for n in self.weights}
        tape = Tape({n: leaves[n] for n in self.weights})
        varies = varying(module)
        shared = {n for n in module.graph.nodes if is_lookup(n) and n.args[1] not in varies}
        edges: dict[str, tuple[Tensor, int]] = {}

        def call(node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if is_lookup(node):  # the padding's row is not trained, but counts where it is read
                args = args[0], _of_each_row(node, args[1], len(x)) if node in shared else args[1]
            value = node.target(*args, **kwargs)  # type: ignore[operator]
            if node.name in self.edge_names:
                edges[node.name] = value, 1
            return value

        def enter(node: Node, value: Tensor) -> Tensor:
            if value.is_floating_point():
                value = value.detach().requires_grad_(True)
                if node.name in self.edge_names:
                    edges[node.name] = value, 1
            return value

        with torch.enable_grad(), tape:
            output = join(run(module, x, call, enter=enter, constants=leaves))
        return Record(flatten(output, self.kind, self.class_axis), tape, edges, leaves)


def _of_each_row(node: Node, ids: Tensor, rows: int) -> Tensor:
    """Indices that are the same for all rows, positions above all, once for each of them.

    Else no gradient at the lookup's result would be one row's. Left as they are where what reads
    the result might count axes.
    """
    binary = (aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor)
    if any(user.target not in binary for user in node.users) or len(ids) == rows > 1:
        return ids
    inner = ids.shape[1:] if ids.ndim > 1 and len(ids) == 1 else ids.shape
    return ids.expand(rows, *inner)
