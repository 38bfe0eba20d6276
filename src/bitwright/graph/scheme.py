"""What Degree-Quant rounds to how many bits, and whom it protects."""

from __future__ import annotations

from dataclasses import dataclass

from bitwright.errors import BitwrightError


@dataclass(frozen=True)
class Widths:
    """Widths that differ: of weights by name, of activations by site and in-degree.

    Attributes:
        weights: name of a weight -> bits; the others have the scheme's.
        degrees: ascending bounds of in-degrees: nodes of class k have more than `degrees[k − 1]`
            and at most `degrees[k]`, those of the last class more than all bounds.
        sites: where an activation is rounded -> bits of each class, or one width for all rows.
    """

    weights: dict[str, int]
    degrees: tuple[int, ...]
    sites: dict[str, tuple[int, ...]]

    def __post_init__(self) -> None:
        """Refuse what no grid has.

        Raises:
            BitwrightError: a width out of range, bounds out of order, classes without a width.
        """
        if list(self.degrees) != sorted(set(self.degrees)):
            raise BitwrightError(f"degrees are {self.degrees}; use ascending bounds")
        given = [*self.weights.items(), *((n, b) for n, bs in self.sites.items() for b in bs)]
        for name, bits in given:
            if not 2 <= bits <= 8:
                raise BitwrightError(f"{name} has {bits} bits; use 2 to 8")
        for name, each in self.sites.items():
            if len(each) not in (1, len(self.degrees) + 1):
                classes = len(self.degrees) + 1
                raise BitwrightError(f"{name} has {len(each)} widths for {classes} classes")


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
        widths: those that differ from `bits` and `weight_bits`.
    """

    bits: int | None = 8
    weight_bits: int | None = 8
    protect: tuple[float, float] = (0.0, 0.1)
    percentile: float = 0.001
    momentum: float = 0.1
    seed: int = 0
    widths: Widths | None = None

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
        if self.widths is not None and (self.bits is None or self.weight_bits is None):
            raise BitwrightError("widths differ from float numbers; give bits and weight_bits")

    def of_weight(self, name: str) -> int | None:
        """Bits of a weight; None: float."""
        if self.widths is None:
            return self.weight_bits
        return self.widths.weights.get(name, self.weight_bits)

    def of_site(self, site: str) -> tuple[int, ...]:
        """Bits of an activation by class of in-degree, or one width for all rows; not of float."""
        assert self.bits is not None
        return (self.bits,) if self.widths is None else self.widths.sites.get(site, (self.bits,))
