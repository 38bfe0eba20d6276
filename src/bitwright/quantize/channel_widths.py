"""Widths of the channels of an activation: one step for all, as many levels as each is worth.

    min over steps s_e and widths b_ec   ½ Σ_e Σ_c Tr_ec · E(Q(x_ec; s_e, b_ec) − x_ec)²
    with   Σ n_ec b_ec ≤ mean · Σ n_ec

with the trace Tr_ec of edge e's channel c, summed over its n_ec positions. Noise of one step is
what rate-distortion theory asks of channels that matter alike, each with the bits that its own
range needs (reverse water-filling; Cover and Thomas, Elements of Information Theory, 10.3); so a
channel of small values gets few bits and loses nothing, where one width for all leaves its upper
levels empty. In the file a width is a clip: grid, kernels and fusion are those of the edge.

At a price λ of a bit the steps fall apart: with a step every channel takes the width of the least
`loss + λ n b`, and the edge the step of the least sum. λ is the least that fits; what then is left
of the bits goes where a bit gains most.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bitwright.curvature import Sensitivity
from bitwright.network import Edge, Network, batches, fresh_edges
from bitwright.network.ops import aten
from bitwright.quantize.activations import EDGE_WIDTHS, EdgeGrid, channels, watch

#: steps tried, relative to the one of 4 bits that holds all values
_LADDER = 2.0 ** (np.arange(-32, 5) / 4)
#: numbers of a channel that errors are taken from
_SAMPLES = 1024
_HALVINGS = 80
#: operations that leave every channel in its place
_KEEPS = {
    aten.max_pool1d.default,
    aten.max_pool2d.default,
    aten.adaptive_max_pool2d.default,
    aten.contiguous.default,
    aten.clone.default,
    aten.pad.default,
    aten.slice.Tensor,
    aten.flatten.using_ints,
    aten.view.default,
    aten.reshape.default,
}


@dataclass(frozen=True)
class Units:
    """What gets a width of its own.

    Attributes:
        loss: float64 [U, widths, steps], predicted.
        numbers: int64 [U], of one row.
        group: int64 [U], which step it has, from 0.
    """

    loss: np.ndarray
    numbers: np.ndarray
    group: np.ndarray

    def at(self, price: float) -> tuple[np.ndarray, np.ndarray]:
        """Steps [groups] and widths [U], as places in their lists, of the least loss and price."""
        bits = np.array(EDGE_WIDTHS)
        cost = self.loss + price * (self.numbers[:, None] * bits)[:, :, None]
        best = cost.argmin(1)
        least = np.take_along_axis(cost, best[:, None], 1)[:, 0]
        total = np.zeros((int(self.group.max()) + 1, self.loss.shape[2]))
        np.add.at(total, self.group, least)
        step = total.argmin(1)
        return step, best[np.arange(len(best)), step[self.group]]

    def bits(self, width: np.ndarray) -> int:
        """Σ numbers · bits."""
        return int(self.numbers @ np.array(EDGE_WIDTHS)[width])


def solve(units: Units, budget: int) -> tuple[np.ndarray, np.ndarray]:
    """Steps [groups] and widths [U], as places in their lists, within `budget` bits of a row.

    Without the last part the loss is the least of all plans of so many bits or fewer.
    """
    step, width = units.at(0.0)
    if units.bits(width) > budget:
        finite = units.loss[np.isfinite(units.loss)]
        low, high = 0.0, float(finite.max() + 1) / max(int(units.numbers.min()), 1)
        for _ in range(_HALVINGS):  # geometrically, from far below
            middle = np.sqrt(low * high) if low else high * 1e-3
            if units.bits(units.at(middle)[1]) > budget:
                low = middle
            else:
                high = middle
        step, width = units.at(high)
    return step, _filled(units, budget, step, width)


def _filled(units: Units, budget: int, step: np.ndarray, width: np.ndarray) -> np.ndarray:
    """Widths with the bits that are left spent, one by one, where each gains most."""
    rows, width = np.arange(len(width)), width.copy()
    loss = units.loss[rows, :, step[units.group]]
    while True:
        room = budget - units.bits(width)
        gain = loss[rows, width] - loss[rows, np.minimum(width + 1, loss.shape[1] - 1)]
        gain = np.where(units.numbers <= room, gain / units.numbers, 0.0)
        best = int(gain.argmax())
        if not gain[best] > 0:
            return width
        width[best] += 1


def channel_grids(
    network: Network,
    sensitivity: Sensitivity,
    x: Tensor,
    mean_bits: float,
    *,
    chunk: int = 64,
    progress: Callable[[float], None] | None = None,
) -> dict[int, EdgeGrid]:
    """Grids of all groups of tied edges, with widths for the channels of :func:`divisible` ones.

    Args:
        network, sensitivity: captured, and its traces.
        x: [n, ...] calibration rows.
        mean_bits: bound on Σ bits · numbers / Σ numbers over fresh edges, of one row.
        chunk: rows in a pass.
        progress: called with the finished fraction.
    """
    fresh = fresh_edges(network)
    edges = [e for e in network.edges if e.name in fresh]
    own = divisible(network)
    numbers = _numbers(network, x, {e.name for e in edges}, chunk, progress)
    groups = sorted({e.group for e in edges})
    unit, losses, sizes, members = 0, [], [], []
    places: dict[int, slice] = {}
    base: dict[int, float] = {}
    for g, group in enumerate(groups):
        tied = [e for e in edges if e.group == group]
        reach = max(float(numbers[e.name].abs().max()) for e in tied)
        base[group] = max(reach, 1e-12) / (15 if tied[0].at_zero else 8)
        tables = [_losses(e, sensitivity, numbers[e.name], base[group]) for e in tied]
        counts = [
            np.full(len(t), np.prod(e.shape[1:], dtype=np.int64))
            for e, t in zip(tied, tables, strict=True)
        ]
        if group in own:
            table, count = tables[0], counts[0]
        else:
            table = np.sum([t.sum(0, keepdims=True) for t in tables], axis=0)
            count = np.array([sum(int(c.sum()) for c in counts)])
        losses.append(table)
        sizes.append(count)
        members.append(np.full(len(table), g))
        places[group] = slice(unit, unit + len(table))
        unit += len(table)
    units = Units(np.concatenate(losses), np.concatenate(sizes), np.concatenate(members))
    step, width = solve(units, int(mean_bits * units.numbers.sum()))
    bits = np.array(EDGE_WIDTHS)[width]
    first = {e.group: e for e in reversed(edges)}
    return {
        group: _grid(first[group], base[group] * _LADDER[step[g]], bits[places[group]].tolist())
        for g, group in enumerate(groups)
    }


def divisible(network: Network) -> set[int]:
    """Groups of edges whose channels may have widths of their own.

    Those of one fresh edge with channels on the first axis of a row, images or vectors, where what
    shares the grid and has as many channels has the same ones.
    """
    fresh = fresh_edges(network)
    nodes: dict[str, Any] = {n.name: n for n in network.module.graph.nodes}
    shape = {e.name: e.shape for e in network.edges}
    found = set()
    for group in {e.group for e in network.edges}:
        tied = [e for e in network.edges if e.group == group]
        own = [e for e in tied if e.name in fresh]
        if len(own) != 1 or len(own[0].shape) not in (1, 3):
            continue
        count = own[0].shape[0]
        alike = [e.name for e in tied if e is not own[0] and e.shape[:1] == (count,)]
        if all(
            nodes[n].target in _KEEPS and shape.get(nodes[n].args[0].name, ())[:1] == (count,)
            for n in alike
        ):
            found.add(group)
    return found


def _numbers(
    network: Network,
    x: Tensor,
    names: set[str],
    chunk: int,
    progress: Callable[[float], None] | None,
) -> dict[str, Tensor]:
    """Some numbers of each channel of the edges, float32 [C, at most about _SAMPLES]."""
    found: dict[str, list[Tensor]] = {name: [] for name in names}

    def note(name: str, value: Tensor) -> None:
        own = channels(value.float())
        # an odd distance does not stay in some columns of an image
        every = max(1, own.shape[1] * len(x) // (len(value) * _SAMPLES)) | 1
        found[name].append(own[:, ::every].clone())

    pieces = batches(x, chunk)
    for i, rows in enumerate(pieces):
        watch(network, rows, names, note)
        if progress:
            progress((i + 1) / len(pieces))
    return {name: torch.cat(parts, 1) for name, parts in found.items()}


def _losses(edge: Edge, sensitivity: Sensitivity, numbers: Tensor, base: float) -> np.ndarray:
    """½ Tr · mean squared error of a number, float64 [C, widths, steps]."""
    found = np.full((len(numbers), len(EDGE_WIDTHS), len(_LADDER)), np.inf)
    trace = 0.5 * sensitivity.edges[edge.name].value
    for w, bits in enumerate(EDGE_WIDTHS):
        low = 0 if edge.at_zero else -(2 ** (bits - 1))
        high = low + 2**bits - 1
        for i, step in enumerate((base * _LADDER).tolist()):
            if step * high <= edge.ceiling:
                levels = (numbers / step).round_().clamp_(low, high).mul_(step)
                error = levels.sub_(numbers).square_().mean(1)
                found[:, w, i] = trace * error.double().numpy()
    return found


def _grid(edge: Edge, step: float, widths: Sequence[int]) -> EdgeGrid:
    bits = max(widths)
    zero = 0 if edge.at_zero else 2 ** (bits - 1)
    scale = np.float32(step)
    while float(scale) * (2**bits - 1 - zero) > edge.ceiling:
        scale = np.nextafter(scale, np.float32(0))
    return EdgeGrid(float(scale), zero, bits, tuple(widths) if len(set(widths)) > 1 else ())


__all__ = ["Units", "channel_grids", "divisible", "solve"]
