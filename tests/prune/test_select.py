"""Sizes against the modules themselves, and the order under a budget against brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from bitwright.errors import BitwrightError
from bitwright.prune import Sizes, compensated, coupled, implantable, pruned, select, spatial
from prune.nets import Attention, Dense, Residual, made, rows


def _flops(model, x) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(x)
    return counter.get_total_flops()


@pytest.mark.parametrize("kind", [Residual, Dense, Attention])
@pytest.mark.parametrize("left", [0, 1, 2])
def test_sizes_are_those_of_the_module(kind, left):
    model, x = made(kind), rows(kind, 1)
    coupling = coupled(model, rows(kind))
    sizes = Sizes(model, coupling.groups, x)
    gone = {g.name: tuple(range(left)) for g in coupling.groups} if left else {}
    small = pruned(model, coupling.edit(gone))
    found = sizes.of({k: len(v) for k, v in gone.items()})
    tensors = [*small.parameters(), *small.buffers()]
    assert found.parameters == sum(p.numel() for p in small.parameters())
    assert found.bytes == sum(t.numel() * t.element_size() for t in tensors)
    if kind is not Attention:  # the counter counts attention's own products as well
        assert 2 * found.macs == _flops(small, x)


def test_sizes_count_the_biases_of_refits():
    model, x = made(Residual), rows(Residual, 32)
    coupling = coupled(model, x)
    edit = coupling.edit({"conv1": [0]})
    small = pruned(model, edit)
    compensated(model, small, edit, x)
    counted = sum(p.numel() for p in small.parameters())
    found = [Sizes(model, coupling.groups, x[:1], refit=r).of({"conv1": 1}) for r in (True, False)]
    assert [f.parameters for f in found] == [counted, counted - 8]


def test_sizes_with_implants():
    model, x = made(Residual), rows(Residual)
    coupling = coupled(model, x)
    sizes = Sizes(model, coupling.groups, x[:1])
    for rank in (0, 1, 2):
        edit = coupling.edit({"conv1": [0]}, {"conv1": [2, 4]}, rank=rank)
        small = pruned(model, edit)
        found = sizes.of({"conv1": 1}, {"conv1": 2}, rank)
        assert found.parameters == sum(p.numel() for p in small.parameters())
        assert 2 * found.macs == _flops(small, x[:1])


def _problem():
    model, x = made(Residual), rows(Residual)
    coupling = coupled(model, x)
    sizes = Sizes(model, coupling.groups, x[:1])
    rng = np.random.default_rng(0)
    return model, sizes, {g.name: rng.random(g.units) for g in coupling.groups}


@pytest.mark.parametrize("unit", ["parameters", "macs", "bytes"])
def test_the_bound_holds_and_no_taken_unit_can_be_put_back(unit):
    _, sizes, scores = _problem()
    bound = 0.6 * sizes.whole[unit]
    found = select(sizes, scores, bound, unit)
    gone, _ = found.counts()
    assert sizes.of(gone)[unit] <= bound
    last = [dict(gone, **{name: count - 1}) for name, count in gone.items()]
    assert any(sizes.of(each)[unit] > bound for each in last)
    for name, units in found.removed.items():
        stay = [v for i, v in enumerate(scores[name]) if i not in units]
        assert max(scores[name][list(units)]) <= min(stay)


def test_the_order_is_close_to_brute_force():
    """The greedy order's loss is within a quarter of the best of all numbers of units."""
    _, sizes, scores = _problem()
    bound = 0.7 * sizes.whole["parameters"]

    def lost(counts) -> float:
        return sum(np.sort(scores[n])[:c].sum() for n, c in counts.items())

    found, _ = select(sizes, scores, bound).counts()
    names = list(scores)
    best = min(
        lost(dict(zip(names, counts, strict=True)))
        for counts in itertools.product(*(range(len(scores[n])) for n in names))
        if sizes.of(dict(zip(names, counts, strict=True))).parameters <= bound
    )
    assert best <= lost(found) <= 1.25 * best + np.max(np.concatenate(list(scores.values())))
    wrong, _ = select(sizes, {n: -v for n, v in scores.items()}, bound).counts()
    assert lost(wrong) >= lost(found) or wrong != found


def test_floors_hold_and_too_small_a_bound_names_the_least():
    _, sizes, scores = _problem()
    with pytest.raises(BitwrightError, match=r"the floors of the layers leave .* keep"):
        select(sizes, scores, 1.0, floor=0.5)
    found, _ = select(sizes, scores, 0.65 * sizes.whole["parameters"], floor=0.5).counts()
    assert all(count <= len(scores[n]) // 2 for n, count in found.items())
    with pytest.raises(BitwrightError, match="floor must be 0 to 1"):
        select(sizes, scores, 100, floor=2)


def test_what_stays_is_a_multiple():
    _, sizes, scores = _problem()
    bound = 0.7 * sizes.whole["parameters"]
    found, _ = select(sizes, scores, bound, multiple=4).counts()
    stay = {n: len(v) - found.get(n, 0) for n, v in scores.items()}
    assert all(stay[n] % 4 == 0 or stay[n] == len(v) for n, v in scores.items() if len(v) > 4)
    assert sizes.of(found).parameters <= bound
    free, _ = select(sizes, scores, bound).counts()
    assert any((len(v) - free.get(n, 0)) % 4 for n, v in scores.items())
    with pytest.raises(BitwrightError, match="multiples of 1 or more"):
        select(sizes, scores, bound, multiple=0)


def test_the_most_sensitive_of_those_taken_get_implants():
    model, sizes, scores = _problem()
    groups = [g for g in sizes.groups.values() if implantable(model, g)]
    assert {g.name for g in groups} >= {"conv1"}
    bound = 0.6 * sizes.whole["parameters"]
    found = select(sizes, scores, bound, implant=0.5, implantable=[g.name for g in groups])
    gone, implants = found.counts()
    assert implants and sizes.of(gone, implants).parameters <= bound
    for name, units in found.implanted.items():
        removed = scores[name][list(found.removed.get(name, ()))]
        assert not len(removed) or removed.max() <= scores[name][list(units)].min()


def test_which_groups_can_have_implants():
    model = made(Dense)
    found = {g.name: implantable(model, g) for g in coupled(model, rows(Dense)).groups}
    assert not any(v for n, v in found.items() if n in ("grouped", "depth", "a", "b"))
    attention = made(Attention)
    groups = coupled(attention, rows(Attention)).groups
    assert not any(implantable(attention, g) for g in groups)
    assert spatial(made(Residual).conv1) and not spatial(made(Residual).short)
