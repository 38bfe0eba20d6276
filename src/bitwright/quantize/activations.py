"""Grids of the edges: unsigned, 2 to 8 bits, from the values on calibration data.

Their ranges are what loses least,

    min over grids  Σ_e Σ_c w_ec · Σ (Q(x) − x)²        x: the numbers of channel c of edge e

over the edges e that share the grid: with w = 1 the squared error, and with the curvature
`w_ec = Tr_ec / positions` (the trace is summed over positions) the second-order loss of
:mod:`bitwright.quantize.edge_scores`, so that a channel the loss does not care about does not widen
the range of the others. Or a percentile of the values, whatever is clipped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import Node

from bitwright.network import Network, batches, run

#: widths an edge may have; narrower ones than 8 are stored in 8 bits all the same
EDGE_WIDTHS = tuple(range(2, 9))
#: what decides on a range; `percentile` keeps all but 1 number in 10,000 on either side
RANGES = ("curvature", "squared", "percentile")
PERCENTILE = 99.99
_BINS = 4096


@dataclass(frozen=True)
class EdgeGrid:
    """`x ≈ scale · (q − zero)`, q in 0..2^bits − 1; scale is a float32 number.

    Attributes:
        widths: of each channel (axis 1 of the values), at most `bits`: it then has the 2^width
            levels of :attr:`windows` alone. Empty where all have all.
    """

    scale: float
    zero: int
    bits: int = 8
    widths: tuple[int, ...] = ()

    @property
    def top(self) -> int:
        """The largest q."""
        return int(2**self.bits - 1)

    @property
    def mean_bits(self) -> float:
        """Of a channel."""
        return sum(self.widths) / len(self.widths) if self.widths else float(self.bits)

    @property
    def windows(self) -> tuple[np.ndarray, np.ndarray]:
        """Least and largest q of each channel, int64 [C]; the zero point at the same share."""
        levels = 2 ** np.array(self.widths, dtype=np.int64) - 1
        low = self.zero - np.rint(self.zero * levels / self.top).astype(np.int64)
        return low, low + levels

    def limits(self, values: Tensor) -> tuple[Any, Any]:
        """Least and largest q of values [n, C, ...], to clamp with.

        Values with another number of channels are what others become behind their clip: a reshape.
        """
        if values.ndim < 2 or values.shape[1] != len(self.widths):
            return 0, self.top
        shape = (1, -1, *[1] * (values.ndim - 2))
        low, high = (torch.from_numpy(w).to(values).reshape(shape) for w in self.windows)
        return low, high


def fake_quantize(x: Tensor, grid: EdgeGrid) -> Tensor:
    """`scale · (clip(round(x/scale) + zero, 0, 2^bits − 1) − zero)`, in each channel's levels."""
    q = (x / grid.scale).round_().add_(grid.zero).clamp_(*grid.limits(x))
    return q.sub_(grid.zero).mul_(grid.scale)


def calibrate(
    network: Network,
    x: Tensor,
    *,
    bits: int | Mapping[int, int] = 8,
    weights: Mapping[str, np.ndarray] | None = None,
    percentile: float | None = None,
    constants: dict[str, Tensor] | None = None,
    chunk: int = 64,
    progress: Callable[[float], None] | None = None,
) -> dict[int, EdgeGrid]:
    """One grid for each group of tied edges, from two passes over `x`.

    Args:
        network: captured network.
        x: [n, ...] calibration rows.
        bits: width of all edges, or of each group.
        weights, percentile: as for :func:`histograms`, and for :meth:`Histogram.grid`.
        constants: quantized weights to calibrate with, instead of the float ones.
        chunk: rows in a pass.
        progress: called with the finished fraction.
    """
    found = histograms(
        network, x, weights=weights, constants=constants, chunk=chunk, progress=progress
    )
    return {
        g: h.grid(bits if isinstance(bits, int) else bits[g], percentile) for g, h in found.items()
    }


@dataclass(frozen=True)
class Histogram:
    """Values of one group of edges: what each bin over [low, high], with 0 inside, weighs.

    `counts` is float64 [bins]; `at_zero` and `ceiling` are those of
    :class:`~bitwright.network.Edge`.
    """

    counts: np.ndarray
    low: float
    high: float
    at_zero: bool
    ceiling: float

    def grid(self, bits: int, percentile: float | None = None) -> EdgeGrid:
        """The grid with the least squared error, or over a percentile of the values, 50 to 100."""
        if percentile is None:
            return choose(self.counts, self.low, self.high, self.at_zero, self.ceiling, bits)
        ends = self.low + np.arange(len(self.counts) + 1) / len(self.counts) * (
            self.high - self.low
        )
        share = np.cumsum(self.counts) / self.counts.sum()
        top = ends[1:][np.searchsorted(share, percentile / 100)]
        bottom = 0.0 if self.at_zero else ends[np.searchsorted(share, 1 - percentile / 100)]
        return make_grid(float(bottom), min(float(top), self.ceiling), bits)


def histograms(
    network: Network,
    x: Tensor,
    *,
    weights: Mapping[str, np.ndarray] | None = None,
    constants: dict[str, Tensor] | None = None,
    chunk: int = 64,
    progress: Callable[[float], None] | None = None,
) -> dict[int, Histogram]:
    """Group of tied edges -> its values on `x`, from two passes.

    The first pass finds the range, the second a histogram of 4,096 bins over it; a grid is then the
    clipping range within it with the least squared error (rounding inside, clipping outside). Zero
    is always a level, exactly: padding and ReLU need it.

    Args:
        network, x, constants, chunk, progress: as for :func:`calibrate`.
        weights: edge -> trace of each channel [C], of those whose errors count; None: all numbers
            count alike. A group without any curvature is taken as without weights.
    """
    weigh = _weights(network, weights)
    group = {e.name: e.group for e in network.edges}
    edges = {e.group: e for e in network.edges}
    low: dict[int, float] = {}
    high: dict[int, float] = {}

    def note_range(name: str, value: Tensor) -> None:
        g = group[name]
        low[g] = min(low.get(g, 0.0), float(value.min()))
        high[g] = max(high.get(g, 0.0), float(value.max()))

    counts: dict[int, np.ndarray] = {}

    def note_counts(name: str, value: Tensor) -> None:
        g = group[name]
        span = _BINS, low[g], max(high[g], low[g] + 1e-12)
        own = weigh.get(name)
        if own is None:
            found = torch.histc(value.float(), *span).double().numpy()
        else:
            found = np.zeros(_BINS)
            for weight, numbers in zip(own, channels(value.float()), strict=bool(own)):
                found += weight * torch.histc(numbers, *span).double().numpy()
        counts[g] = counts.get(g, np.zeros(_BINS)) + found

    pieces = batches(x, chunk)
    for step, note in enumerate((note_range, note_counts)):
        for i, rows in enumerate(pieces):
            watch(network, rows, group, note, constants)
            if progress:
                progress((step * len(pieces) + i + 1) / (2 * len(pieces)))
    return {
        g: Histogram(counts[g], low[g], high[g], edges[g].at_zero, edges[g].ceiling)
        for g in sorted(counts)
    }


def _weights(
    network: Network, traces: Mapping[str, np.ndarray] | None
) -> dict[str, Sequence[float]]:
    """Edge -> weight of a number of each channel; edges without one count each number as one.

    An edge whose error is not its own (a reshape, a pooling by maximum) weighs nothing, unless no
    edge of its group has any curvature.
    """
    traces = traces or {}
    curved = {e.group for e in network.edges if np.sum(traces.get(e.name, 0.0)) > 0}
    return {
        e.name: (traces[e.name] / math.prod(e.shape[1:])).tolist() if e.name in traces else ()
        for e in network.edges
        if e.group in curved
    }


def channels(values: Tensor) -> Tensor:
    """[n, C, ...] as [C, numbers]; [n] as [1, n]."""
    return values.movedim(1, 0).flatten(1) if values.ndim > 1 else values[None]


def watch(
    network: Network,
    rows: Tensor,
    names: Collection[str],
    note: Callable[[str, Tensor], None],
    constants: dict[str, Tensor] | None = None,
) -> None:
    """One pass over `rows` that shows `note` the values of the edges `names`."""

    def call(node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        value = node.target(*args, **kwargs)  # type: ignore[operator]
        if node.name in names:
            note(node.name, value)
        return value

    def enter(node: Node, value: Tensor) -> Tensor:
        if node.name in names:
            note(node.name, value)
        return value

    with torch.no_grad():
        run(network.module, rows, call, enter=enter, constants=constants)


def choose(
    counts: np.ndarray,
    low: float,
    high: float,
    at_zero: bool,
    ceiling: float = np.inf,
    bits: int = 8,
) -> EdgeGrid:
    """The grid with the least squared error for a histogram over [low, high] (with 0 inside).

    Args:
        counts: float64 [bins].
        low, high: range of the histogram; `low <= 0 <= high`.
        at_zero: force zero point 0 (nothing below zero is kept).
        ceiling: the grid's largest value may not pass it.
        bits: width of the grid.
    """
    if high - low < 1e-12:
        return EdgeGrid(1.0, 0 if at_zero else 2 ** (bits - 1), bits)
    centres = low + (np.arange(len(counts)) + 0.5) * (high - low) / len(counts)
    coarse = np.linspace(0.1, 0.2, 4)[: 4 if bits < 6 else 0]  # few levels clip more
    fractions = np.concatenate([coarse, np.linspace(0.2, 0.6, 9), np.linspace(0.64, 1.0, 19)])
    lows = [0.0] if at_zero or low == 0 else [low * f for f in fractions]
    best = (np.inf, EdgeGrid(1.0, 0, bits))
    for bottom in lows:
        for top in [high * f for f in fractions] if high > 0 else [0.0]:
            grid = make_grid(bottom, min(top, ceiling), bits)
            if grid.scale * (grid.top - grid.zero) > ceiling:  # a zero rounded down lifts the top
                step = np.float32(ceiling / (grid.top - grid.zero))
                if float(step) * (grid.top - grid.zero) > ceiling:
                    step = np.nextafter(step, np.float32(0))
                grid = EdgeGrid(float(step), grid.zero, bits)
            q = np.clip(np.rint(centres / grid.scale) + grid.zero, 0, grid.top)
            error = float((counts * (grid.scale * (q - grid.zero) - centres) ** 2).sum())
            if error < best[0]:
                best = (error, grid)
    return best[1]


def make_grid(low: float, high: float, bits: int = 8) -> EdgeGrid:
    """The grid over [low, high] (extended to hold 0) whose zero is a level."""
    low, high = min(low, 0.0), max(high, 0.0)
    top = 2**bits - 1
    scale = float(np.float32(max(high - low, 1e-12) / top))
    return EdgeGrid(scale, int(np.clip(np.rint(-low / scale), 0, top)), bits)
