"""Implants are taken as far as they surely lose less than none, on rows they were not fitted on."""

from __future__ import annotations

import pytest
import torch

from bitwright.curvature.divergence import per_sample
from bitwright.prune import Selection, best_share, compensated, coupled, pruned, shares
from mutants import mutated
from prune.nets import Residual, made, rows

#: channels of conv1 whose filters are nothing but their middle: a 1×1 convolution is the same
POINTS = (0, 2, 3)


def case():
    model, x = made(Residual), rows(Residual, 128)
    with torch.no_grad():
        middle = model.conv1.weight[list(POINTS), :, 1:2, 1:2].clone()
        model.conv1.weight[list(POINTS)] = 0
        model.conv1.weight[list(POINTS), :, 1:2, 1:2] = 3 * middle
    return model, x, coupled(model, x)


def exact(share: float) -> Selection:
    """Of the three points, a share has implants that are exact and the others are removed."""
    count = round(3 * share)
    return Selection({"conv1": POINTS[count:]}, {"conv1": POINTS[:count]} if count else {})


def costly(share: float) -> Selection:
    """Implants for points that removed channels pay for."""
    if not share:
        return Selection({"conv1": (0,)}, {})
    return Selection({"conv1": (1, 4, 5)}, {"conv1": (0,)})


def test_as_many_as_lose_least():
    model, x, coupling = case()
    share, trials = best_share(model, coupling, exact, x, 1.0)
    assert share == 1.0 and [t.share for t in trials] == [0.0, 0.25, 0.5, 1.0]
    assert trials[-1].divergence < 1e-6 < trials[0].divergence
    chosen = exact(0.5)
    edit = coupling.edit(chosen.removed, chosen.implanted)
    module = pruned(model, edit)
    compensated(model, module, edit, x[:64])
    with torch.no_grad():
        wanted = per_sample(model(x[64:]), module(x[64:]), "kl").mean()
    assert trials[2].divergence == float(wanted), "judged on the rows that nothing was fitted on"
    assert trials[2].gain == pytest.approx(trials[0].divergence - trials[2].divergence)


def test_none_where_they_cost_more_than_they_keep_or_are_not_sure_to():
    model, x, coupling = case()
    share, trials = best_share(model, coupling, costly, x, 0.8)
    assert share == 0.0 and all(t.gain < 0 for t in trials[1:])
    few, trials = best_share(model, coupling, exact, x[:2], 1.0)  # one row to judge on: unsure
    assert few == 0.0 and trials[-1].divergence < trials[0].divergence
    with mutated("prune.shares", "t.gain > _SURELY * t.stderr", "True"):
        assert shares.best_share(model, coupling, exact, x[:2], 1.0)[0] > 0


def test_a_share_without_an_implant_is_not_tried():
    model, x, coupling = case()
    share, trials = best_share(model, coupling, exact, x, 0.5)
    assert share == 0.5 and [t.share for t in trials] == [0.0, 0.25, 0.5]  # an eighth rounds to 0
