"""Grids for every channel and width, measured once; any plan is then a lookup."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bitwright.arith.grid import MAX_BITS, Grid, dequantize, fit, quantize
from bitwright.network import Layer, Network


@dataclass(frozen=True)
class WeightTable:
    """The best grid of each width for each row of one layer.

    Attributes:
        scale: float32 [8, rows]; row b − 1 holds the grids of b bits.
        zero: int64 [8, rows], half steps.
        error: float64 [8, rows], squared rounding error ‖Q_b(w_c) − w_c‖².
        coordinates: int64 [8, rows, 4], of multi-bit grids; None where all are uniform.
    """

    scale: Tensor
    zero: Tensor
    error: Tensor
    coordinates: Tensor | None = None

    def grid(self, bits: Tensor, rows: Tensor | None = None) -> Grid:
        """The grids of the widths `bits`, int64 [rows]; of all rows, or of `rows`."""
        some = torch.arange(len(bits)) if rows is None else rows
        scale, zero = self.scale[bits - 1, some], self.zero[bits - 1, some]
        own = None if self.coordinates is None else self.coordinates[bits - 1, some]
        return Grid(bits, scale, zero, own if own is not None and bool(own.any()) else None)


def weight_tables(
    network: Network, progress: Callable[[float], None] | None = None
) -> dict[str, WeightTable]:
    """Fit all eight widths for every row of every layer."""
    tables = {}
    for i, layer in enumerate(network.layers):
        matrix = network.matrix(layer)
        fits = [fit(matrix, bits) for bits in range(1, MAX_BITS + 1)]
        tables[layer.name] = WeightTable(
            torch.stack([g.scale for g, _ in fits]),
            torch.stack([g.zero for g, _ in fits]),
            torch.stack([e for _, e in fits]),
        )
        if progress:
            progress((i + 1) / len(network.layers))
    return tables


@dataclass(frozen=True)
class QuantizedLayer:
    """One layer's stored numbers: `weight = s · (v − z/2)` for each row, plus a float bias.

    Attributes:
        codes: uint8 [rows, fan_in].
        grid: the rows' grids, any correction's gain already in the scale.
        bias: float32 [rows]; of an embedding [0].
    """

    codes: Tensor
    grid: Grid
    bias: Tensor

    def matrix(self) -> Tensor:
        """The weights it stands for, float32 [rows, fan_in]."""
        return dequantize(self.codes, self.grid)


def as_corrected(float_rows: Tensor, stored: QuantizedLayer) -> Tensor:
    """Float weights [rows, fan_in] times the gain that correction gave each row's scale.

    `⟨w, ŵ⟩ / ‖w‖²`, 1/16 to 16: their codes are the stored ones, up to what rounding that looks at
    data, or training, has moved.
    """
    gain = (float_rows * stored.matrix()).sum(1) / float_rows.square().sum(1).clamp(min=1e-12)
    return float_rows * gain.clamp(1 / 16, 16)[:, None]


def round_weights(
    network: Network, tables: Mapping[str, WeightTable], bits: Mapping[str, np.ndarray]
) -> dict[str, QuantizedLayer]:
    """Every layer rounded to nearest on the grids of the plan's widths.

    Args:
        network: captured float network.
        tables: from :func:`weight_tables`.
        bits: layer name -> int64 [rows], 1 to 8.
    """
    return {
        la.name: round_to_nearest(network, la, tables[la.name], bits[la.name])
        for la in network.layers
    }


def round_to_nearest(
    network: Network, layer: Layer, table: WeightTable, bits: np.ndarray
) -> QuantizedLayer:
    """One layer on the grids of the widths `bits`, int64 [rows]."""
    grid = table.grid(torch.as_tensor(bits, dtype=torch.int64))
    return QuantizedLayer(quantize(network.matrix(layer), grid), grid, network.bias(layer))


def constants(network: Network, layers: Mapping[str, QuantizedLayer]) -> dict[str, Tensor]:
    """The quantized weights and biases under their parameter names, to run the graph with."""
    found: dict[str, Tensor] = {}
    for layer in network.layers:
        quantized = layers[layer.name]
        found[layer.weight] = quantized.matrix().reshape(layer.shape)
        if layer.bias:
            found[layer.bias] = quantized.bias
    return found


def mean_bits(network: Network, layers: Mapping[str, QuantizedLayer]) -> float:
    """Σ bits·weights / Σ weights over the quantized layers."""
    total = sum(int(layers[la.name].grid.bits.sum()) * la.fan_in for la in network.layers)
    return total / network.weights


def channel_axis(layer: Layer) -> int:
    """The axis of a layer's output that counts its rows: last for linear, 1 for convolutions."""
    return -1 if layer.kind == "linear" else 1
