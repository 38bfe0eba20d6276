"""Learned rounding: up or down, block by block, by gradients (AdaRound, arXiv 2004.10568).

A weight u in steps from the lowest level becomes `⌊u⌋ + h(v)` with the rectified sigmoid
`h = clip(1.2 σ(v) − 0.1, 0, 1)` of a variable v of its own, which Adam moves against

    L / L₀ + λ mean(1 − |2h − 1|^β) ,    β falling from 20 to 2

until every h is 0 or 1. A block (BRECQ, arXiv 2102.05426) reaches from one value that everything
passes through to the next; it is fed what the rounded blocks before it give. L is the second-order
loss of its output's error, by the traces of the float network,

    L = ½ Σ_c Tr_c / positions · Σ_positions E (ŷ_c − y_c)² ,

and of the last block the divergence itself; L₀ is that of the block as it was. (BRECQ takes squared
gradients of a single value for the curvature; with traces a channel's error counts as it does in
the plan.) A block is kept only if its L on rows that it was not learned on is lower.
docs/decisions/0018-learned-rounding.md says what it is worth beside error feedback.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import Node

from bitwright.curvature.divergence import per_sample
from bitwright.errors import BitwrightError
from bitwright.network import Layer, Network, batches, join, outputs, run
from bitwright.network.segments import Segment, segments
from bitwright.quantize.activations import EdgeGrid, fake_quantize
from bitwright.quantize.correct import Quantized
from bitwright.quantize.weights import QuantizedLayer, as_corrected

#: steps a block, rows in a step, Adam's rate; of the biases relative to their mean
ITERATIONS, BATCH, RATE, BIAS_RATE = 1000, 32, 1e-2, 1e-3
#: λ, and the share of the steps before it counts
PUSH, WARM = 1.0, 0.2
#: share of the rows that decide whether a block is kept
HELD = 1 / 8
#: of the values at both ends of a block, in both networks
_LIMIT_BYTES = 1.5e9

#: outputs, reference -> loss of every row
Loss = Callable[[Tensor, Tensor], Tensor]


class SoftRows(nn.Module):
    """A layer's weights between two neighbouring levels each, and its bias.

    Args:
        float_rows: [rows, fan_in] float weights.
        stored: their present codes; each weight stays within a step of its own.
    """

    def __init__(self, float_rows: Tensor, stored: QuantizedLayer) -> None:
        super().__init__()
        self.stored = stored
        grid, codes = stored.grid, stored.codes.to(float_rows.dtype)
        u = as_corrected(float_rows, stored) / grid.scale[:, None] + grid.zero[:, None] / 2
        u = u.clamp(codes - 0.5, codes + 0.5)
        top = (2**grid.bits - 1)[:, None]
        self.low = torch.where(u >= codes, codes, codes - 1).clamp(min=0).minimum(top - 1)
        share = (u - self.low).clamp(0.01, 0.99)
        self.v = nn.Parameter(torch.logit((share + 0.1) / 1.2))
        self.bias = nn.Parameter(stored.bias.clone())

    def h(self) -> Tensor:
        """How much of the upper level each weight has, 0 to 1."""
        return (1.2 * self.v.sigmoid() - 0.1).clamp(0, 1)

    def forward(self) -> Tensor:
        """Weights [rows, fan_in] between the levels."""
        grid = self.stored.grid
        return (self.low + self.h() - grid.zero[:, None] / 2) * grid.scale[:, None]

    def rounded(self) -> QuantizedLayer:
        """On the nearer level of each two."""
        codes = (self.low + (self.h().detach() >= 0.5)).to(torch.uint8)
        return QuantizedLayer(codes, self.stored.grid, self.bias.detach().clone())


def learn_rounding(
    quantized: Quantized,
    x: Tensor,
    traces: Mapping[str, np.ndarray],
    *,
    kind: str = "kl",
    class_axis: int = 1,
    iterations: int = ITERATIONS,
    seed: int = 0,
    chunk: int = 64,
    progress: Callable[[float], None] | None = None,
) -> Quantized:
    """Every layer's codes and biases learned, blocks in order; grids stay.

    Embeddings, and layers used in several blocks, are left as they are.

    Args:
        quantized: rounded and corrected; left as it is.
        x: [n, ...] rows, n ≥ 8; the last eighth decides.
        traces: edge -> trace of each channel, float64 [C], summed over positions.
        kind, class_axis: of the divergence.
        iterations: steps a block.
        seed: of the rows in each step.
        chunk: rows in a pass.
        progress: called with the finished fraction.

    Raises:
        BitwrightError: a channel has bases, between whose levels steps differ.
    """
    if any(bool(stored.grid.multibit.any()) for stored in quantized.layers.values()):
        raise BitwrightError("learned rounding is of uniform grids, and channels have bases")
    network = quantized.network
    blocks = segments(network, traces)
    sizes = {e.name: math.prod(e.shape) for e in network.edges}
    largest = max(sizes[b.end] for b in blocks if b.end) if len(blocks) > 1 else 1
    x = x[: max(8, int(_LIMIT_BYTES // (16 * largest)))]
    generator = torch.Generator().manual_seed(seed)
    done, floats, rounded = dict(quantized.layers), x, x
    for index, block in enumerate(blocks):
        part = _Part(replace(quantized, layers=done), block, index == 0, chunk)
        loss = _loss(network, block, traces, kind, class_axis)
        target = outputs(block.module, floats, chunk=chunk)
        held = len(x) - int(len(x) * HELD) or 1
        before = part.all(rounded)
        scale = max(float(loss(before[:held], target[:held]).mean()), 1e-12)
        found = part.learned(rounded[:held], target[:held], loss, scale, iterations, generator)
        after = part.all(rounded, found)
        if loss(after[held:], target[held:]).mean() < loss(before[held:], target[held:]).mean():
            done |= found
            before = after
        floats, rounded = target, before
        if progress:
            progress((index + 1) / len(blocks))
    return replace(quantized, layers=done)


def _loss(
    network: Network, block: Segment, traces: Mapping[str, np.ndarray], kind: str, class_axis: int
) -> Loss:
    if block.end is None:
        return lambda y, reference: per_sample(reference, y, kind, class_axis)
    (shape,) = (e.shape for e in network.edges if e.name == block.end)
    weight = torch.from_numpy(traces[block.end]).float() / math.prod(shape[1:])
    weight = weight.reshape(-1, *(1 for _ in shape[1:]))
    return lambda y, reference: 0.5 * (weight * (y - reference).square()).flatten(1).sum(1)


class _Part:
    """A rounded block, fed rounded values."""

    def __init__(self, quantized: Quantized, block: Segment, first: bool, chunk: int) -> None:
        self.quantized, self.block, self.first, self.chunk = quantized, block, first, chunk
        self.group = {e.name: e.group for e in quantized.network.edges}
        self.layers = [la for la in block.layers if la.kind != "embedding"]
        #: of layers that are not learned: as they are stored
        inside = {node.name for node in block.module.graph.nodes}
        self.fixed: dict[str, Tensor] = {}
        for layer in quantized.network.layers:
            if inside.intersection(layer.calls):
                self.fixed |= _constants(layer, quantized.layers[layer.name])

    def run(self, rows: Tensor, constants: dict[str, Tensor], act: Any = fake_quantize) -> Tensor:
        def edge(node: Node, value: Any) -> Any:
            grid = self.quantized.edges.get(self.group.get(node.name, -1))
            return value if grid is None else act(value, grid)

        def call(node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            return edge(node, node.target(*args, **kwargs))  # type: ignore[operator]

        enter = edge if self.first else None
        return join(run(self.block.module, rows, call, enter=enter, constants=constants))

    @torch.no_grad()
    def all(self, x: Tensor, found: Mapping[str, QuantizedLayer] | None = None) -> Tensor:
        """Outputs for all rows, with the layers as stored, or as `found`."""
        constants = dict(self.fixed)
        for layer in self.layers if found else ():
            assert found is not None
            constants |= _constants(layer, found[layer.name])
        return torch.cat([self.run(b, constants) for b in batches(x, self.chunk)])

    def learned(
        self,
        x: Tensor,
        target: Tensor,
        loss: Loss,
        scale: float,
        iterations: int,
        generator: torch.Generator,
    ) -> dict[str, QuantizedLayer]:
        """The layers after so many steps; `scale` is L₀."""
        network = self.quantized.network
        rows = {
            la.name: SoftRows(network.matrix(la).detach(), self.quantized.layers[la.name])
            for la in self.layers
        }
        if not rows:
            return {}
        groups: list[dict[str, Any]] = [{"params": [r.v for r in rows.values()], "lr": RATE}]
        for r in rows.values():
            spread = float(r.bias.detach().abs().mean()) if len(r.bias) else 0.0
            groups.append({"params": [r.bias], "lr": BIAS_RATE * max(spread, 1e-8)})
        optimizer = torch.optim.Adam(groups)
        count = sum(r.v.numel() for r in rows.values())
        for step in range(iterations):
            some = torch.randint(len(x), (BATCH,), generator=generator)
            constants = dict(self.fixed)
            for layer in self.layers:
                constants[layer.weight] = rows[layer.name]().reshape(layer.shape)
                if layer.bias:
                    constants[layer.bias] = rows[layer.name].bias
            value = loss(self.run(x[some], constants, _straight), target[some]).mean() / scale
            late = (step / iterations - WARM) / (1 - WARM)
            if late > 0:
                beta = 20 - 18 * late
                between = sum((1 - (2 * r.h() - 1).abs().pow(beta)).sum() for r in rows.values())
                value = value + PUSH * between / count
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
        return {name: r.rounded() for name, r in rows.items()}


def _constants(layer: Layer, stored: QuantizedLayer) -> dict[str, Tensor]:
    found = {layer.weight: stored.matrix().reshape(layer.shape)}
    return {**found, layer.bias: stored.bias} if layer.bias else found


def _straight(x: Tensor, grid: EdgeGrid) -> Tensor:
    """Fake quantization that passes gradients on where nothing is clipped."""
    low, high = (grid.scale * (q - grid.zero) for q in grid.limits(x))
    inside = x.clamp(low, high)
    return inside + (fake_quantize(x.detach(), grid) - inside).detach()
