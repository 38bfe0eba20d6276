"""Degree-Quant: quantized training of graph networks (Tailor et al., arXiv 2008.05000), alg. 1.

While training, each node is protected with a probability that grows with its in-degree, drawn anew
at every forward pass: its rows of all activations stay in float, those of the others are rounded.
Weights and coefficients of edges are always rounded, and in evaluation everything is.

Any PyTorch Geometric network is wrapped as it is. Rounded are the operands of products:

| where | what | step |
|---|---|---|
| input of every `MessagePassing`, `Linear` and `Dropout` | features of nodes (or of graphs) | one |
| `propagate` | node arguments (`x` of `x_j`) | one |
| `propagate` | edge arguments (normalization, attention) | one for each target node |
| weights of `Linear`, of `MessagePassing` itself | | one for each output channel |

Departures from the paper's code: messages are rounded before they are gathered, which gives the
same numbers for a tenth of the work; sums (what aggregation gives, and the output) are accumulators
and are rounded where the next product reads them; the input of a `Dropout` is rounded in place of
its output, which is twice as large while training and not afterwards; every activation with a row a
node is protected, those inside GIN's MLP too.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch_geometric.data import Data
from torch_geometric.nn import Linear, MessagePassing

from bitwright.errors import BitwrightError
from bitwright.graph.degrees import degree_classes, in_degrees, protection
from bitwright.graph.ranges import Range
from bitwright.graph.scheme import Scheme
from bitwright.graph.sites import is_rounded, keep_mark, low_bit, mark, target_row
from bitwright.graph.weights import round_edges, round_weights
from bitwright.network import evaluating


@dataclass(frozen=True)
class _Pass:
    """What holds during one forward pass: nodes, who of them is protected, classes of in-degree."""

    nodes: int
    protected: Tensor | None = None
    rows: Tensor | None = None
    classes: Tensor | None = None


class DegreeQuant(nn.Module):
    """A copy of a graph network that computes with low-bit numbers.

    Args:
        net: called with `x` and `edge_index` [2, edges] by these names or places, and `batch` where
            graphs are several; or with a `Data`. Batch-norms and other layers stay in float.
        scheme: widths and protection.
        example, keywords: arguments of `net`, for the first ranges (kept by evaluation as well).

    Raises:
        BitwrightError: there is no `MessagePassing` in it, or a layer without weights yet; later,
            where edges are not given as a tensor [2, edges].
    """

    def __init__(self, net: nn.Module, scheme: Scheme, *example: Any, **keywords: Any) -> None:
        super().__init__()
        self.scheme = scheme
        self.net = copy.deepcopy(net)
        self.ranges = nn.ModuleDict()
        self.generator = torch.Generator().manual_seed(scheme.seed)
        self._now = _Pass(0)
        self._observing = False
        self._seen: dict[str, list[Tensor]] | None = None
        self._signature = inspect.signature(net.forward)
        self._targets = target_row(self.net)
        self.low_bit = tuple(low_bit(self.net))
        self._attach()
        self.calibrate(*example, **keywords)

    def forward(self, *args: Any, **keywords: Any) -> Any:
        """What the network answers; in training with a new mask and new ranges."""
        targets, nodes, graphs = self._graph(args, keywords)
        mask = self._mask(targets, nodes, graphs) if self.training else None
        rows = None if mask is None else mask.nonzero()[:, 0]
        widths, classes = self.scheme.widths, None
        if widths is not None and widths.degrees:
            classes = degree_classes(in_degrees(targets, nodes), widths.degrees)
        self._now = _Pass(nodes, mask, rows, classes)
        try:
            return functional_call(self.net, self.weights(), args, keywords)
        finally:
            self._now = _Pass(0)

    def weights(self) -> dict[str, Tensor]:
        """The low-bit weights by their names in `net`."""
        if self.scheme.weight_bits is None or self._seen is not None:
            return {}
        return {
            name: round_weights(self.net.get_parameter(name), self.scheme.of_weight(name) or 8)
            for name in self.low_bit
        }

    @torch.no_grad()
    def calibrate(self, *args: Any, **keywords: Any) -> None:
        """Take all ranges anew from one pass in evaluation mode."""
        for found in self.ranges.values():
            found.forget()  # type: ignore[operator]
        with evaluating(self):
            self._observing = True
            try:
                self(*args, **keywords)
            finally:
                self._observing = False

    @contextmanager
    def in_float(self) -> Iterator[dict[str, list[Tensor]]]:
        """Nothing is rounded; what would be is listed by site, once each, and takes gradients."""
        self._seen = {}
        try:
            with evaluating(self):
                yield self._seen
        finally:
            self._seen = None

    def _graph(self, args: Any, keywords: Any) -> tuple[Tensor, int, Tensor | None]:
        """Targets of the edges, number of nodes, graph of each node."""
        given = self._signature.bind(*args, **keywords).arguments
        whole = next((v for v in given.values() if isinstance(v, Data)), None)
        if whole is not None:
            given = {"x": whole.x, "edge_index": whole.edge_index, "batch": whole.batch}
        edges, x = given.get("edge_index"), given.get("x")
        if not isinstance(edges, Tensor) or edges.is_sparse or edges.layout != torch.strided:
            raise BitwrightError(
                f"edge_index is {type(edges).__name__}; give a tensor [2, edges] by this name"
            )
        x = x[-1] if isinstance(x, tuple) else x
        if not isinstance(x, Tensor):
            raise BitwrightError(
                f"x is {type(x).__name__}; give the features of nodes by this name"
            )
        return self.targets(edges), len(x), given.get("batch")

    def targets(self, edge_index: Tensor) -> Tensor:
        """Where messages go, int64 [edges]."""
        return edge_index[self._targets]

    def _mask(self, targets: Tensor, nodes: int, graphs: Tensor | None) -> Tensor | None:
        low, high = self.scheme.protect
        if high == 0 or self.scheme.bits is None:
            return None
        chances = protection(in_degrees(targets, nodes), low, high, graphs)
        drawn = torch.rand(nodes, generator=self.generator).to(chances.device)
        return drawn < chances

    def _attach(self) -> None:
        """Hooks on our own copy, which go where it goes."""
        for path, module in self.net.named_modules():
            if isinstance(module, MessagePassing):
                module.register_propagate_forward_pre_hook(partial(self._propagate, path))
            if isinstance(module, MessagePassing | Linear | nn.Linear | nn.Dropout):
                hook = partial(self._input, path)
                module.register_forward_pre_hook(hook, with_kwargs=True)
            if isinstance(module, nn.Dropout):
                module.register_forward_hook(keep_mark)

    def _input(self, path: str, module: nn.Module, args: Any, keywords: Any) -> Any:
        if args:
            return (self._features(path, args[0]), *args[1:]), keywords
        first = next(iter(keywords), None)
        if first is None:
            return None
        return args, {**keywords, first: self._features(path, keywords[first])}

    def _propagate(self, path: str, module: Any, inputs: Any) -> Any:
        edge_index, size, arguments = inputs
        lifted = {n[:-2] for n in module._user_args if n.endswith(("_i", "_j"))}
        found = {}
        for name, value in arguments.items():
            if name in lifted:
                found[name] = self._features(f"{path}:{name}", value)
            else:
                found[name] = self._coefficients(value, edge_index[self._targets])
        return edge_index, size, found

    def _features(self, site: str, x: Any) -> Any:
        """Rows of nodes or graphs, rounded where they are not yet."""
        if isinstance(x, tuple):
            first = self._features(site, x[0])
            if len(x) == 2 and x[0] is x[1]:
                return first, first
            rest = (self._features(f"{site}.{i}", v) for i, v in enumerate(x[1:], 1))
            return first, *rest
        numbers = isinstance(x, Tensor) and x.is_floating_point()
        if self.scheme.bits is None or not numbers or is_rounded(x):
            return x
        key = site.replace(".", "/") or "/"
        if self._seen is not None:
            out = x.view_as(x) if x.requires_grad else x.detach().requires_grad_()
            mark(out)
            self._seen.setdefault(key, []).append(out)
            return out
        now = self._now if len(x) == self._now.nodes else _Pass(len(x))
        found = self.range_of(key)
        if self.training or self._observing:
            found.update(x, now.protected, self.generator)
        out = self._rounded(x, key, found, now)
        if now.rows is not None and len(now.rows):
            out = out.index_copy(0, now.rows, x.index_select(0, now.rows))
        mark(out)
        return out

    def _rounded(self, x: Tensor, key: str, found: Range, now: _Pass) -> Tensor:
        """Every row at the width of its class."""
        widths = self.scheme.of_site(key)
        if len(widths) == 1:
            return found.round(x, widths[0])
        if now.classes is None:
            raise BitwrightError(f"{key} has widths by in-degree, but its rows are not nodes")
        return found.round_rows(x, torch.tensor(widths)[now.classes])

    def _coefficients(self, values: Any, targets: Tensor) -> Any:
        """Numbers of edges on the grids of their targets."""
        bits = None if self._seen is not None else self.scheme.weight_bits
        if bits is None or not isinstance(values, Tensor) or not values.is_floating_point():
            return values
        return round_edges(values, targets, self._now.nodes, bits)

    def range_of(self, key: str) -> Range:
        """The range of an activation, by its key in `ranges`."""
        if key not in self.ranges:
            if not self._observing:
                raise BitwrightError(f"{key} was not reached by the example; calibrate() with one")
            self.ranges[key] = Range(self.scheme.percentile, self.scheme.momentum)
        found: Any = self.ranges[key]
        return found
