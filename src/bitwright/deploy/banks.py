"""Banks: layers whose rows have one shape, unpacked together; a graph then has fewer nodes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from bitwright.arith.grid import Grid, joined
from bitwright.network import Layer
from bitwright.quantize import Quantized


@dataclass(frozen=True)
class Bank:
    """Layers whose weights differ in the number of rows alone; they are unpacked as one.

    Attributes:
        layers: in the order of the network.
        grid: of all rows.
        codes: uint8 [rows, fan_in].
    """

    layers: tuple[Layer, ...]
    grid: Grid
    codes: np.ndarray

    @property
    def rows(self) -> int:
        """How many channels."""
        return len(self.codes)

    @property
    def tail(self) -> tuple[int, ...]:
        """The weights' shape behind the rows."""
        return self.layers[0].shape[1:]


def banks(quantized: Quantized) -> list[Bank]:
    """All layers by the shape of their rows, those of lower rank first."""
    members: dict[tuple[int, ...], list[Layer]] = {}
    for layer in quantized.network.layers:
        members.setdefault(tuple(layer.shape[1:]), []).append(layer)
    found = []
    for tail in sorted(members, key=len):
        stored = [quantized.layers[layer.name] for layer in members[tail]]
        grid = joined([s.grid for s in stored])
        codes = torch.cat([s.codes for s in stored]).numpy()
        found.append(Bank(tuple(members[tail]), grid, codes))
    return found
