"""Scores against dense Gauss-Newton matrices, and against the loss itself for small changes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.func import functional_call, jacrev

from bitwright.curvature.divergence import per_sample
from bitwright.errors import BitwrightError
from bitwright.prune import coupled, masked, removal, scores
from prune.nets import Attention, Dense, Residual, made, rows


def _dense(model, x, change) -> float:
    """`E[‖Λ^½ J d‖²]` with the Jacobian of all outputs along the change d of the parameters."""
    names = list(change)
    point = {n: p.detach() for n, p in model.named_parameters()}

    def at(t):
        return functional_call(model, {n: p + t * change[n] if n in names else p
                                       for n, p in point.items()}, (x,))  # fmt: skip

    slope = jacrev(at)(torch.zeros((), dtype=torch.float64))
    p = at(torch.zeros((), dtype=torch.float64)).softmax(1)
    return float(((p * slope**2).sum(1) - (p * slope).sum(1) ** 2).mean())


@pytest.mark.parametrize("kind", [Residual, Dense, Attention])
def test_removal_is_the_quadratic_form_of_the_columns(kind):
    model, x = made(kind), rows(kind, 6)
    coupling = coupled(model, x)
    found = removal(model, coupling.groups, x, tolerance=0)
    double = made(kind).double()
    xs = x.double() if x.is_floating_point() else x
    for group in coupling.groups:
        for unit in (0, group.units - 1):
            change = {}
            for m in group.consumers:
                weight = double.get_submodule(m.path).weight.detach()
                width = weight.shape[1]
                d = torch.zeros_like(weight)
                place = sorted({c % width for c in m.channels[unit]})
                d[:, place] = -weight[:, place]
                change[f"{m.path}.weight"] = d
            wanted = _dense(double, xs, change)
            assert found[group.name].value[unit] == pytest.approx(wanted, rel=1e-3, abs=1e-9)
            assert wanted == 0 or abs(found[group.name].value[unit] - 1.01 * wanted) > 1e-3 * wanted


def test_removal_predicts_a_small_change_of_the_loss():
    """Gates a little below one: the loss is ½ s² of the score, to third order."""
    from bitwright.prune.gates import gated

    model, x = made(Residual).double(), rows(Residual, 16).double()
    coupling = coupled(model, x)
    found = removal(made(Residual), coupling.groups, x.float(), tolerance=0)
    before = model(x)
    step = 1e-3
    for group in coupling.groups:
        gates = {g.name: torch.ones(len(x), g.units, dtype=torch.float64) for g in coupling.groups}
        gates[group.name][:, 1] -= step
        with gated(model, coupling.groups, gates):
            loss = float(per_sample(before, model(x), "kl").mean().detach())
        assert loss == pytest.approx(
            0.5 * step**2 * found[group.name].value[1], rel=2e-2, abs=1e-12
        )


def test_haps_score_is_mean_trace_times_squared_norm():
    from bitwright import traces

    model, x = made(Residual), rows(Residual, 16)
    coupling = coupled(model, x)
    found = scores(model, coupling.groups, x, score="trace")
    measured = traces(model, x, edges=False).layers
    w = model.conv1.weight.detach().flatten(1).double()
    wanted = measured["conv1"].value / (2 * 36) * w.square().sum(1).numpy()
    assert np.allclose(found["conv1"], wanted)
    last = next(n for n in found if n in ("conv2", "short"))
    both = sum(
        measured[n].value / (2 * m.weight[0].numel())
        * m.weight.detach().flatten(1).double().square().sum(1).numpy()
        for n, m in (("conv2", model.conv2), ("short", model.short))
    )  # fmt: skip
    assert np.allclose(found[last], both)


def test_a_dead_channel_scores_nothing_and_goes_first():
    model, x = made(Residual), rows(Residual, 16)
    model.bn1.weight.data[2], model.bn1.bias.data[2] = 0, -1
    coupling = coupled(model, x)
    found = scores(model, coupling.groups, x)["conv1"]
    assert found[2] == 0 and (found > 0).sum() >= 4
    edit = coupling.edit({"conv1": [2]})
    assert torch.allclose(masked(model, edit)(x), model(x), atol=1e-6)


def test_an_unknown_score_is_refused():
    model, x = made(Residual), rows(Residual)
    with pytest.raises(BitwrightError, match="removal or trace"):
        scores(model, coupled(model, x).groups, x, score="magic")
