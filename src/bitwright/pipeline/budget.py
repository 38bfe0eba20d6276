"""Budgets as people write them: `3bit`, `12.5%`, `180KB`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from bitwright.errors import BitwrightError

_UNITS = {"B": 1, "KB": 1_000, "MB": 1_000_000, "GB": 1_000_000_000}
_UNITS |= {"KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30}


@dataclass(frozen=True)
class Budget:
    """A bound on size.

    Attributes:
        text: as written.
        mean_bits: bound on Σ bits · weights / Σ weights, or None.
        fraction: of the float ONNX file's bytes, or None.
        size_bytes: of the ONNX file, every byte counted, or None.
    """

    text: str
    mean_bits: float | None = None
    fraction: float | None = None
    size_bytes: int | None = None


def parse_budget(text: str) -> Budget:
    """Read a budget.

    Raises:
        BitwrightError: none of the three forms, or not positive.
    """
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([a-zA-Z%]+)\s*", text)
    if match:
        value, unit = float(match[1]), match[2].upper()
        if value > 0:
            if unit in ("BIT", "BITS"):
                return Budget(text, mean_bits=value)
            if unit == "%":
                return Budget(text, fraction=value / 100)
            if unit in _UNITS:
                return Budget(text, size_bytes=int(value * _UNITS[unit]))
    raise BitwrightError(
        f"budget {text!r} is not like 3bit (mean bits a weight), 12.5% (of the float file) or "
        "180KB (of the ONNX file)"
    )
