"""A refitted head: what it solves, what it may touch, when it is taken."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import logsumexp, softmax
from torch import Tensor, nn

from bitwright.arith.grid import dequantize
from bitwright.curvature.divergence import per_sample
from bitwright.errors import BitwrightError
from bitwright.network import build, outputs
from bitwright.quantize import Quantized, calibrate, round_weights, simulate, weight_tables
from bitwright.train import Refit, head_of, refit_head
from bitwright.train import head as heads
from bitwright.train.head import _changes, features, rounded
from mutants import mutated
from pipeline import tiny
from small import Fn, one_thread

_ = one_thread


def network_of(model: nn.Module, shape: tuple[int, ...] = (6,), bits: int = 4) -> Quantized:
    """Rounded to nearest, float activations."""
    network = build(model.eval(), torch.randn(4, *shape))
    tables = weight_tables(network)
    widths = {la.name: np.full(la.rows, bits) for la in network.layers}
    return Quantized(network, round_weights(network, tables, widths), {})


@pytest.fixture(scope="module")
def small() -> Quantized:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 5))
    with torch.no_grad():
        model[2].weight *= 4
    return network_of(model)


def rows(count: int, seed: int = 0, width: int = 6) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def kl(quantized: Quantized, x: Tensor) -> Tensor:
    return per_sample(outputs(quantized.network.module, x), simulate(quantized, x), "kl")


def spoilt(quantized: Quantized, gains: Tensor, offsets: Tensor) -> Quantized:
    """Its head with other scales and biases: a refit can undo that exactly."""
    head = quantized.layers["2"]
    wrong = replace(
        head, grid=replace(head.grid, scale=head.grid.scale * gains), bias=head.bias + offsets
    )
    return replace(quantized, layers={**quantized.layers, "2": wrong})


def minimizer(a: np.ndarray, p: np.ndarray, offsets: np.ndarray, l2: float) -> np.ndarray:
    """Newton's method in float64 for the multinomial loss of z_c = a_c·x_c + o_c, a [n, d, k]."""
    n, d, k = a.shape
    x = np.zeros((d, k))
    for _step in range(30):
        q = softmax(np.einsum("ijc,jc->ic", a, x) + offsets, 1)
        gradient = np.einsum("ijc,ic->jc", a, q - p) / n + l2 * x
        inner = np.einsum("ic,ce->ice", q, np.eye(k)) - np.einsum("ic,ie->ice", q, q)
        hessian = np.einsum("ijc,ice,ile->jcle", a, inner, a).reshape(d * k, d * k) / n
        change = np.linalg.solve(hessian + l2 * np.eye(d * k), gradient.ravel())
        x -= change.reshape(d, k)
    return x


@pytest.mark.parametrize("own", [False, True])
def test_the_regression_is_solved(own: bool):
    """Changes of weights and biases give what Newton's method finds, to the gap asked for."""
    rng = np.random.default_rng(0)
    a = rng.standard_normal((60, 3, 4) if own else (60, 3)) + 2
    p, offsets = softmax(2 * rng.standard_normal((60, 4)), 1), rng.standard_normal((60, 4))
    full = a if own else np.repeat(a[:, :, None], 4, 2)
    centred = full - full.mean(0)
    energy = (centred**2).sum(1).mean()
    design = np.concatenate([centred, np.full((60, 1, 4), energy**0.5)], 1)
    for share, (change, offset) in zip(
        (0.1, 0.01), _changes(a, p, offsets, (0.1, 0.01)), strict=True
    ):
        best = minimizer(design, p, offsets, share * energy)
        z = np.einsum("ijc,jc->ic", full, change) + offset + offsets
        known = np.einsum("ijc,jc->ic", design, best) + offsets
        values = [(logsumexp(v, 1) - (p * v).sum(1)).mean() for v in (z, known)]
        penalty = 0.5 * share * energy * (change**2).sum(), 0.5 * share * energy * (best**2).sum()
        assert abs(values[0] - values[1]) < 1e-4
        assert values[0] + penalty[0] < values[1] + penalty[1] + 1e-4
        np.testing.assert_allclose(z, known, atol=0.03)


GAINS, OFFSETS = torch.tensor([0.5, 2, 1, 1.5, 0.7]), torch.tensor([1.0, -1, 0, 2, 0])


def test_scales_and_biases_are_fitted_under_the_same_codes(small: Quantized):
    """Those of the head itself where its own answers are the target, whatever they were before."""
    right, harmed = small.layers["2"], spoilt(small, GAINS, OFFSETS).layers["2"]
    h = features(small, head_of(small.network), rows(2000))
    p = (h @ right.matrix().T + right.bias).softmax(1)
    (found,) = heads._scales(heads._Rows(h.double().numpy(), p.double().numpy()), harmed, [1e-5])
    assert torch.equal(found.codes, right.codes) and torch.equal(found.grid.zero, right.grid.zero)
    assert torch.equal(found.grid.scale.half().float(), found.grid.scale)  # as files have it
    assert (found.grid.scale / right.grid.scale - 1).abs().max() < 0.03
    shift = found.bias - right.bias  # one shift of all classes changes nothing
    assert (shift - shift.mean()).abs().max() < 0.03


def test_a_harmed_head_is_mended(small: Quantized):
    harmed, fresh = spoilt(small, GAINS, OFFSETS), rows(500, 9)
    before = harmed.layers["2"].bias.clone()
    found, what = refit_head(harmed, rows(2000))
    assert what.choice != "kept" and what.layer == "2"
    assert (what.fitted, what.held_out) == (1500, 500)
    assert torch.equal(found.layers["0"].codes, harmed.layers["0"].codes)
    assert kl(harmed, fresh).mean() > 0.3
    assert kl(found, fresh).mean() < 1.1 * kl(small, fresh).mean()  # as before it was harmed
    # what it says of the held-out rows
    held_out = rows(2000)[-500:]
    difference = kl(found, held_out) - kl(harmed, held_out)
    assert what.after == pytest.approx(float(kl(found, held_out).mean()), rel=1e-4)
    assert what.before == pytest.approx(float(kl(harmed, held_out).mean()), rel=1e-4)
    assert what.stderr == pytest.approx(float(difference.std() / 500**0.5), rel=1e-3)
    assert torch.equal(harmed.layers["2"].bias, before)  # left as it was


def test_wrong_codes_are_made_anew(small: Quantized):
    """Two classes' codes exchanged: no scale or bias can undo that."""
    head = small.layers["2"]
    codes = head.codes.clone()
    codes[[0, 1]] = codes[[1, 0]]
    harmed = replace(small, layers={**small.layers, "2": replace(head, codes=codes)})
    found, what = refit_head(harmed, rows(2000))
    assert what.choice == "codes"
    scaled, other = refit_head(harmed, rows(2000), choices=["scales"])
    assert torch.equal(scaled.layers["2"].codes, codes) and other.after > 2 * what.after
    grid = found.layers["2"].grid
    assert torch.equal(grid.bits, head.grid.bits)
    assert int(found.layers["2"].codes.max()) <= 15
    fresh = rows(500, 9)
    assert kl(found, fresh).mean() < 1.2 * kl(small, fresh).mean()


def test_taken_only_where_held_out_rows_gain(small: Quantized, monkeypatch: pytest.MonkeyPatch):
    """Rows that decide want the contrary of those that fit: the head stays."""
    x, harmed = rows(400), spoilt(small, GAINS, OFFSETS)
    assert refit_head(harmed, x)[1].choice != "kept"
    y = torch.cat([outputs(small.network.module, x[:300]), simulate(harmed, x[300:])])
    monkeypatch.setattr(heads, "outputs", lambda *_: y)
    found, what = refit_head(harmed, x)
    assert what == Refit("2", "kept", 0.0, what.before, what.before, 0.0, 300, 100)
    assert found.layers["2"] is harmed.layers["2"]


def test_a_gain_within_two_standard_errors_is_none(small: Quantized):
    """With few rows some refits seem better by chance; those are left."""
    sure = [refit_head(small, rows(40, seed))[1] for seed in range(8)]
    with mutated("train.head", "after + 2 * error < chosen.before", "after < chosen.before"):
        any_gain = [heads.refit_head(small, rows(40, seed))[1] for seed in range(8)]
    assert all(w.choice == "kept" or w.before - w.after > 2 * w.stderr for w in sure)
    assert sum(w.choice == "kept" for w in sure) > sum(w.choice == "kept" for w in any_gain)


def test_features_are_what_the_head_gets(small: Quantized):
    tables = weight_tables(small.network)
    edges = calibrate(small.network, rows(100))
    quantized = replace(small, edges=edges)
    h = features(quantized, head_of(small.network), rows(50))
    head = quantized.layers["2"]
    z = h @ head.matrix().T + head.bias
    torch.testing.assert_close(z, simulate(quantized, rows(50)))
    assert tables and not torch.equal(h, features(small, head_of(small.network), rows(50)))


def test_rounded_is_to_nearest_of_each_width():
    weight = rows(6, width=40)
    head = rounded(weight, torch.tensor([1, 2, 3, 4, 8, 2]))
    assert not head.bias.any()
    error = (dequantize(head.codes, head.grid) - weight).square().sum(1) / weight.square().sum(1)
    assert (error[:5].diff() < 0).all() and error[4] < 1e-3
    step = head.grid.scale[4]
    assert (head.matrix()[4] - weight[4]).abs().max() <= step / 2 * 1.001


def test_positions_count_as_rows():
    """Classes of every position of a sequence."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 5))
    quantized = network_of(model, (3, 6))
    harmed = spoilt(quantized, GAINS, OFFSETS)
    x = rows(900).reshape(300, 3, 6)
    found, what = refit_head(harmed, x, class_axis=2)
    assert what.choice != "kept" and what.after < 0.3 * what.before
    fresh = rows(300, 4).reshape(100, 3, 6)
    y = outputs(quantized.network.module, fresh)
    values = [per_sample(y, simulate(q, fresh), "kl", 2).mean() for q in (found, harmed)]
    assert values[0] < 0.3 * values[1]


LINEAR = nn.Linear(6, 5)
REFUSED = {
    "convolution": (nn.Sequential(nn.Conv1d(6, 5, 1)), (6, 4), {}, "the conv1d '0'"),
    "function behind it": (nn.Sequential(LINEAR, nn.ReLU()), (6,), {}, "here that is of 'relu'"),
    "two outputs": (
        Fn(lambda s, x: (s.a(x), s.b(x)), a=LINEAR, b=nn.Linear(6, 5)), (6,), {}, "has 2",
    ),
    "used twice": (
        Fn(lambda s, x: s.a(torch.relu(s.a(x))), a=nn.Linear(6, 6)), (6,), {}, "used 2 times",
    ),
    "no classes": (nn.Sequential(LINEAR), (6,), {"kind": "squared"}, "divergence kl, not squared"),
    "another axis": (nn.Sequential(LINEAR), (3, 6), {"class_axis": 1}, "last of 3 axes"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_other_networks_are_refused(case: str):
    model, shape, options, says = REFUSED[case]
    with pytest.raises(BitwrightError, match=says):
        refit_head(network_of(model, shape), torch.randn(20, *shape), **options)


def test_a_head_left_in_float_and_too_few_rows_are_refused(small: Quantized):
    network = build(tiny.network(), tiny.rows(4), skip=("7",))
    with pytest.raises(BitwrightError, match=r"left in float: 7"):
        head_of(network)
    with pytest.raises(BitwrightError, match="not 'float'"):
        refit_head(small, rows(80), choices=["float"])
    with pytest.raises(BitwrightError, match="7 rows are too few"):
        refit_head(small, rows(7))
