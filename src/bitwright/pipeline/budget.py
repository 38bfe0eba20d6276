"""Budgets and bounds as people write them: `3bit`, `12.5%`, `180KB`; `1.2G`, `3ms`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from bitwright.errors import BitwrightError

_UNITS = {"B": 1, "KB": 1_000, "MB": 1_000_000, "GB": 1_000_000_000}
_UNITS |= {"KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30}
_OPERATIONS = {"M": 1e6, "G": 1e9, "T": 1e12}
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}


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
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([a-zA-Z%]+)\s*", str(text))
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


@dataclass(frozen=True)
class Bound:
    """A bound beside the budget.

    Attributes:
        value: in units.
        unit: as written.
        scale: what one unit is: bit operations or seconds.
    """

    value: float
    unit: str
    scale: float


def parse_bops(text: str) -> Bound:
    """Read a bound on bit operations: `300M`, `1.2G`, `3T`.

    Raises:
        BitwrightError: it is none.
    """
    return _bound("--max-bops", text, _OPERATIONS, "300M, 1.2G or 3T")


def parse_latency(text: str) -> Bound:
    """Read a bound on seconds: `800us`, `3ms`, `0.1s`.

    Raises:
        BitwrightError: it is none.
    """
    return _bound("--max-latency", text, _SECONDS, "800us, 3ms or 0.1s")


def _bound(option: str, text: str, units: dict[str, float], forms: str) -> Bound:
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([a-zA-Zµ]+)\s*", text)
    if match:
        wanted = match[2].replace("µ", "u").casefold()
        unit = next((u for u in units if u.casefold() == wanted), None)
        if unit is not None and float(match[1]) > 0:
            return Bound(float(match[1]), unit, units[unit])
    raise BitwrightError(f"{option} {text!r} is not like {forms}")
