"""Stored layers: what is packed comes back, and empty groups cost nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bitwright.arith.multibit import Bases, sketch, tidied, values
from bitwright.multibit.packed import Packed, compacted, pack, unpack


def holed(groups: int, n: int, seed: int) -> Bases:
    generator = torch.Generator().manual_seed(seed)
    bases = sketch(torch.randn(groups, n, generator=generator), 5)
    kept = torch.rand(bases.alpha.shape, generator=generator) < 0.4
    return tidied(Bases(bases.codes, bases.alpha * kept))


def test_compacted_bases_are_the_same_weights_up_to_float16():
    bases = holed(40, 9, 0)
    held = compacted(bases)
    assert torch.allclose(values(held), values(bases), rtol=1e-3, atol=1e-3)
    assert torch.equal(held.counts, bases.counts)
    assert bool((held.alpha.diff(dim=1) <= 0).all())
    assert torch.equal(compacted(held).codes, held.codes)


def test_unpacking_gives_the_same_weights_bit_for_bit():
    layers = [compacted(holed(40, 9, 0)), compacted(holed(7, 30, 1)), compacted(holed(3, 5, 2))]
    packed = pack(layers)
    found = unpack(packed, [(40, 9), (7, 30), (3, 5)])
    for wanted, got in zip(layers, found, strict=True):
        assert torch.equal(values(wanted), values(got))
    bits = sum(int(b.counts.sum()) * b.codes.shape[1] for b in layers)
    assert packed.signs.nbytes == -(-bits // 8)
    assert packed.alpha.nbytes == 2 * sum(int(b.counts.sum()) for b in layers)


def test_empty_groups_cost_nothing():
    full = compacted(holed(50, 16, 0))
    empty = Bases(torch.zeros(5000, 16, dtype=torch.uint8), torch.zeros(5000, 5))
    more = Bases(torch.cat([full.codes, empty.codes]), torch.cat([full.alpha, empty.alpha]))
    spent = pack([more]).size_bits - pack([full]).size_bits
    assert spent <= 5000 * 16 * 0.005, "80,000 weights for less than 50 bytes"


@pytest.mark.parametrize("part", ["counts", "alpha", "signs"])
def test_sizes_that_do_not_fit_are_refused(part: str):
    packed = pack([compacted(holed(40, 9, 0))])
    changed = {name: getattr(packed, name) for name in ("counts", "alpha", "signs")}
    changed[part] = changed[part][:-1]
    with pytest.raises(ValueError, match=r"counts|coordinates"):
        unpack(Packed(**changed), [(40, 9)])
    bad = packed.alpha.copy()
    bad[0] = np.nan
    with pytest.raises(ValueError, match="positive"):
        unpack(Packed(packed.counts, bad, packed.signs), [(40, 9)])
