"""Batches of equal shapes are put together once, in their order."""

from __future__ import annotations

import pytest
import torch

from bitwright.curvature.batches import read
from bitwright.errors import BitwrightError


def test_a_loader_becomes_as_few_batches_as_it_has_shapes():
    a, b, c = torch.randn(3, 2), torch.randn(2, 2), torch.randn(4, 2)
    wide, labels = torch.randn(5, 3), torch.arange(9)
    found = read(iter([a, b, c, wide, a]))
    assert [f.rows for f in found] == [9, 5, 3]
    assert torch.equal(found[0].inputs, torch.cat([a, b, c]))
    pairs = [(x, y) for x, y in zip((a, b, c), labels.split([3, 2, 4]), strict=True)]
    (whole,) = read(pairs)
    assert torch.equal(whole.targets, labels) and torch.equal(whole.inputs, found[0].inputs)


def test_shared_tensors_keep_batches_apart():
    mask = torch.ones(7)
    pieces = [{"x": torch.randn(3, 2), "mask": mask}, {"x": torch.randn(3, 2), "mask": mask}]
    assert [b.rows for b in read(pieces)] == [3, 3]


@pytest.mark.parametrize("row", [0, 1023, 1024, 2999])
def test_nan_is_found_in_every_part(row: int):
    x = torch.zeros(3000, 2)
    x[row, 1] = float("nan")
    with pytest.raises(BitwrightError, match="NaN"):
        read(x)
