"""Narrow accumulators in a run: what rounding, training and export must leave true."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from bitwright import overflow
from bitwright.arith.accumulator import Accumulator
from bitwright.errors import BitwrightError
from bitwright.network import Network
from bitwright.quantize import EdgeGrid, Quantized, QuantizedLayer

MODES = ("data", "guaranteed")
#: calibration rows that nothing may overflow on in the mode `data`
DATA_ROWS = 256

#: rounded layers -> the corrected network
Correct = Callable[[Mapping[str, QuantizedLayer]], Quantized]


@dataclass(frozen=True)
class Sums:
    """What sums must fit.

    Attributes:
        accumulator: the register.
        mode: `guaranteed`: whatever comes in; `data`: on calibration rows.
    """

    accumulator: Accumulator
    mode: str

    @property
    def guaranteed(self) -> bool:
        """Whether it is a theorem."""
        return self.mode == "guaranteed"

    def rounded(
        self,
        network: Network,
        layers: Mapping[str, QuantizedLayer],
        edges: Mapping[int, EdgeGrid],
        nearest: bool,
    ) -> dict[str, QuantizedLayer]:
        """Layers that cannot overflow, in the mode that promises it; else as they are.

        Args:
            nearest: the layers are rounded to nearest, so that the float weights are the target.
        """
        if not self.guaranteed:
            return dict(layers)
        targets = {la.name: network.matrix(la) for la in network.layers} if nearest else {}
        return overflow.guaranteed(network, layers, edges, self.accumulator, targets)

    def fitted(self, found: Quantized, x: Tensor, correct: Correct | None = None) -> Quantized:
        """A network whose sums fit, in either mode; what training or a new head moved is put back.

        Args:
            found: the network; x: [n, ...] calibration rows; correct: of rounded layers.
        """
        if self.guaranteed:
            layers = overflow.guaranteed(found.network, found.layers, found.edges, self.accumulator)
            return Quantized(found.network, layers, found.edges)
        fitted = overflow.fit_to_data(found, x[:DATA_ROWS], self.accumulator, correct=correct)
        if fitted.history[-1]:
            raise BitwrightError(
                f"{fitted.history[-1]} accumulators still overflow on {DATA_ROWS} calibration rows "
                f"after {len(fitted.history)} passes; give --accumulator more than "
                f"{self.accumulator.bits} bits, or --accumulator-mode guaranteed"
            )
        return fitted.quantized


def sums_of(bits: int | None, kind: str, mode: str, activations: Any) -> Sums | None:
    """What the settings ask for.

    Raises:
        BitwrightError: it cannot be meant.
    """
    if mode not in MODES:
        raise BitwrightError(f"--accumulator-mode {mode!r} is unknown; use {', '.join(MODES)}")
    accumulator = Accumulator(32 if bits is None else bits, kind)
    if bits is None:
        return None
    if activations is None:
        raise BitwrightError(
            "--accumulator bounds sums of integers; --activations float has none, leave it at 8"
        )
    if mode == "guaranteed" and activations == "auto":
        raise BitwrightError(
            "--accumulator-mode guaranteed chooses activations' widths itself; leave --activations "
            "at 8"
        )
    return Sums(accumulator, mode)


def report(sums: Sums, quantized: Quantized, x: Tensor, name: str) -> tuple[list[str], str]:
    """What is promised: lines for people, and a JSON text.

    Args:
        sums: what must fit; quantized: the network of the file.
        x: [n, ...] rows that overflows are counted on, in the mode `data`; name: what they are.

    Raises:
        BitwrightError: a guarantee does not hold; names layer, channel, bound and smallest fix.
    """
    a = sums.accumulator
    said: dict[str, Any] = {"bits": a.bits, "kind": a.kind, "mode": sums.mode}
    if sums.guaranteed:
        bounds = overflow.require(quantized, a)
        said["layers"] = [b.to_dict() for b in bounds]
        return overflow.lines(bounds), json.dumps(said, indent=1)
    counts = overflow.overflows(quantized, x[:DATA_ROWS], a)
    over = {n: c.total for n, c in counts.items()}
    total = sum(c.sums * len(c.over) for c in counts.values())
    said |= {"rows": len(x[:DATA_ROWS]), "overflows": over, "sums": total}
    line = (
        f"{a.bits}-bit accumulators ({a.kind}): {sum(over.values())} of {total:,} overflow on "
        f"{len(x[:DATA_ROWS])} {name} rows, none on the calibration rows (seen, not proven; "
        "--accumulator-mode guaranteed proves)"
    )
    return [line], json.dumps(said, indent=1)
