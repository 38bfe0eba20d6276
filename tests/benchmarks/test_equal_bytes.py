"""Ratios and reversals of the comparison at equal bytes, on numbers that are known."""

from __future__ import annotations

import equal_bytes
import pytest
import torch
from torch import Tensor


def images(mean: float, spread: float = 0.0) -> Tensor:
    """A hundred images: half of them above the mean, half below."""
    return torch.full((100,), mean) + spread * torch.tensor([1.0, -1.0]).repeat(50)


def found(values: dict[tuple[str, float], tuple[float, float, float]]) -> equal_bytes.Found:
    """Of one score: means of channels, layers and uniform."""
    methods = ("channels", "layers", "uniform")
    return {
        (*case, "trace", method, way): images(mean)
        for case, means in values.items()
        for method, mean in zip(methods, means, strict=True)
        for way in equal_bytes.WAYS
    }


def test_ratios_are_geometric_means_over_budgets_and_networks():
    given = found({("a", 2.0): (1, 2, 4), ("a", 2.5): (1, 8, 4), ("b", 2.0): (1, 4, 4)})
    layers = ("trace", "channels"), ("trace", "layers")
    got = equal_bytes.ratios(given, *layers, "KL", False)
    assert got == pytest.approx({"a": 1 / 4, "b": 1 / 4, "all": 1 / 4})
    whole = equal_bytes.ratios(given, ("trace", "layers"), ("trace", "uniform"), "KL", True)
    assert whole == pytest.approx({"a": 1 / 2, "b": 1, "all": 0.5**0.5})  # 2.5 bits left out


def test_a_reversal_is_beyond_two_standard_errors_of_the_paired_difference():
    case = ("a", 2.0, "trace")
    given = found({("a", 2.0): (1, 2, 4)})
    assert equal_bytes.reversals(given, case) == []
    given[*case, "channels", "KL"] = images(2.1, 0.3)  # 0.1 with an error of 0.03
    (word,) = equal_bytes.reversals(given, case)
    assert "channels > layers" in word and word.endswith("KL")
    given[*case, "channels", "KL"] = images(2.1, 0.6)  # 0.06
    assert equal_bytes.reversals(given, case) == []
    given[*case, "layers", "KL"] = images(2.0, 0.6)  # the same images are hard: paired
    assert len(equal_bytes.reversals(given, case)) == 1
