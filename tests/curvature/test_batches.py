"""Batches of equal shapes are put together once, in their order."""

from __future__ import annotations

import pytest
import torch

from bitwright.curvature.batches import read
from bitwright.errors import BitwrightError


def test_a_loader_becomes_as_few_batches_as_it_has_shapes():
    a, b, c, wide = torch.randn(3, 2), torch.randn(2, 2), torch.randn(4, 2), torch.randn(5, 3)
    labels = torch.arange(17)
    found = read(zip((a, b, c, wide, a), labels.split([3, 2, 4, 5, 3]), strict=True))
    assert [f.rows for f in found] == [9, 5, 3]
    assert torch.equal(found[0].inputs, torch.cat([a, b, c]))
    assert torch.equal(found[0].targets, labels[:9]) and torch.equal(found[2].inputs, a)


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


def test_a_batch_has_inputs_and_maybe_targets():
    x, y = torch.randn(4, 3), torch.arange(4)
    assert read([(x,)])[0].targets is None and torch.equal(read([[x]])[0].inputs, x)
    assert torch.equal(read([(x, y)])[0].targets, y)
    for piece in ((), (x, y, y)):
        with pytest.raises(BitwrightError, match=f"a batch has {len(piece)} parts; give"):
            read([piece])


def test_numbers_without_an_axis_are_no_rows():
    x = torch.randn(4, 3)
    found = read([{"x": x, "scale": torch.tensor(2.0), "flag": True}])
    assert [b.rows for b in found] == [4] and found[0].inputs["flag"] is True
