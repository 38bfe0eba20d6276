"""The plan of removed, implanted and quantized channels against brute force."""

from __future__ import annotations

import itertools

import numpy as np

from bitwright.prune import coupled
from bitwright.prune.mixed import IMPLANT, REMOVED, Rows, mixed
from bitwright.prune.select import Selection
from prune.nets import Residual, made, rows

WIDTHS = np.arange(1, 9)


def _case(left: float, share: float):
    """All layers' rows with losses that halve with each bit, conv1's six units to choose for."""
    model, x = made(Residual), rows(Residual, 64)
    coupling = coupled(model, x, ["stem", "short"])
    layers, losses, bits, at = {}, [], [], 0
    rng = np.random.default_rng(0)
    for path in ("stem", "conv1", "conv2", "short", "head"):
        weight = model.get_submodule(path).weight
        layers[path] = slice(at, at + len(weight))
        at += len(weight)
        fan_in = weight[0].numel()
        losses.append(rng.uniform(0.5, 2, (len(weight), 1)) * 0.25**WIDTHS)
        bits.append(np.tile(WIDTHS * fan_in, (len(weight), 1)))
    bits = np.concatenate(bits).astype(np.int64)
    budget = int(share * bits[:, 0].sum())
    scores = {"conv1": np.array([0.001, 0.5, 0.02, 0.3, 0.004, 1.0])}
    return model, coupling, Rows(layers, np.concatenate(losses), bits, budget), scores, left, x


def test_insensitive_units_go_where_bits_are_scarce():
    model, coupling, table, scores, left, x = _case(1.0, 2.0)
    found, plan = mixed(model, coupling, table, scores, left, x)
    taken = {*found.removed.get("conv1", ()), *found.implanted.get("conv1", ())}
    assert 0 in taken and 5 not in taken
    assert plan.cost <= table.budget + 10**6
    rich, _ = mixed(*_case(1.0, 7.9)[:3], scores, left, x)
    assert not rich.removed.get("conv1")


def test_what_refits_take_makes_removal_cheaper():
    counts = []
    for left in (1.0, 0.01):
        model, coupling, table, scores, _, x = _case(left, 2.0)
        found, _ = mixed(model, coupling, table, scores, left, x)
        counts.append(sum(map(len, found.removed.values())))
    assert counts[0] <= counts[1] and counts[1] >= 2


def test_floors_hold():
    model, coupling, table, scores, _, x = _case(0.0, 1.5)
    found, _ = mixed(model, coupling, table, scores, 0.0, x, floor=0.5)
    assert len(found.removed.get("conv1", ())) <= 3
    assert 5 not in found.removed.get("conv1", ())


def test_the_plan_is_the_best_of_all():
    """Brute force over what becomes of the six units; the other rows by their own knapsack."""
    model, coupling, table, scores, left, x = _case(0.3, 2.5)
    found, plan = mixed(model, coupling, table, scores, left, x)
    labels = np.asarray(plan.bits)[:6]
    wanted = set(np.flatnonzero(labels == REMOVED).tolist())
    assert wanted == set(found.removed.get("conv1", ()))
    best = float(plan.loss)

    def forced(units: tuple[int, ...]) -> float:
        other = {"conv1": np.where(np.isin(np.arange(6), units), scores["conv1"], 1e6)}
        again, p = mixed(model, coupling, table, other, left, x)
        return float(p.loss) if set(again.removed.get("conv1", ())) <= set(units) else 0

    for count in range(4):
        for units in itertools.combinations(range(6), count):
            assert forced(units) >= best - 1e-9


def test_selection_is_what_labels_say():
    model, coupling, table, scores, left, x = _case(0.3, 1.6)
    found, plan = mixed(model, coupling, table, scores, left, x)
    labels = np.asarray(plan.bits)[:6]
    assert isinstance(found, Selection)
    assert found.removed.get("conv1", ()) == tuple(np.flatnonzero(labels == REMOVED))
    assert found.implanted.get("conv1", ()) == tuple(np.flatnonzero(labels == IMPLANT))
