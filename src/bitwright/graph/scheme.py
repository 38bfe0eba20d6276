"""What Degree-Quant rounds to how many bits, and whom it protects."""

from __future__ import annotations

from dataclasses import dataclass

from bitwright.errors import BitwrightError


@dataclass(frozen=True)
class Scheme:
    """What is rounded to what, and who is protected.

    Attributes:
        bits: of activations, 2 to 8; None leaves them in float.
        weight_bits: of weights and edge coefficients; None leaves them in float.
        protect: probabilities (low, high) of :func:`protection`; (0, 0) is plain
            quantized training.
        percentile: left out of ranges on each side; 0: ranges reach from least to most.
        momentum: of ranges, weight of the values seen last.
        seed: of masks and samples.
    """

    bits: int | None = 8
    weight_bits: int | None = 8
    protect: tuple[float, float] = (0.0, 0.1)
    percentile: float = 0.001
    momentum: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what no grid has.

        Raises:
            BitwrightError: a width, probability, percentile or momentum out of its range.
        """
        for name, bits in (("bits", self.bits), ("weight_bits", self.weight_bits)):
            if bits is not None and not 2 <= bits <= 8:
                raise BitwrightError(f"{name} is {bits}; use 2 to 8, or None for float")
        low, high = self.protect
        if not 0 <= low <= high <= 1:
            raise BitwrightError(f"protect is {low}:{high}; use 0 <= low <= high <= 1")
        if not 0 <= self.percentile < 0.5:
            raise BitwrightError(f"percentile is {self.percentile}; use 0 up to 0.5")
        if not 0 < self.momentum <= 1:
            raise BitwrightError(f"momentum is {self.momentum}; use more than 0, at most 1")
