"""The error that rounding and correction leave, and its loss, against brute force."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bitwright.curvature import Estimate, Sensitivity, gauss_newton
from bitwright.curvature.divergence import per_sample
from bitwright.errors import BitwrightError
from bitwright.network import Network, build, outputs
from bitwright.quantize import (
    actual_error,
    channel_losses,
    channel_problem,
    correct,
    float_outputs,
    measured,
    round_weights,
    simulate,
    weight_tables,
)
from bitwright.quantize.scores import SCORES, Rows, toward
from mutants import mutated


def small(kind: str = "kl", rows: int = 24) -> tuple[Network, Tensor]:
    """A convolution and a head; for `squared` one linear layer on correlated inputs."""
    torch.manual_seed(0)
    if kind == "squared":
        x = torch.randn(rows, 6) @ torch.randn(6, 6) + 0.5
        return build(nn.Sequential(nn.Linear(6, 4)).eval(), x), x
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(36, 3)
    )
    x = torch.randn(rows, 2, 6, 6)
    return build(model.eval(), x), x


def left_wrong() -> list[str]:
    """Channels whose corrected rounding is not the best affine fit to the float output."""
    network, x = small()
    tables = weight_tables(network)
    inputs = {"0": nn.functional.unfold(x, 3, padding=1, stride=2).transpose(1, 2).flatten(0, 1)}
    inputs["3"] = torch.relu(float_outputs(network, x)[network.layers[0].calls[0]]).flatten(1)
    found = actual_error.errors_left(network, tables, x, chunk=7)
    bad = []
    for layer in network.layers:
        patches = inputs[layer.name].double()
        w = network.matrix(layer).double()
        for i, q in enumerate(actual_error.rounded(network, layer, tables[layer.name]).double()):
            for c in range(layer.rows):
                z, z_q = patches @ w[c], patches @ q[c]
                basis = torch.stack([z_q, torch.ones_like(z)], 1)
                best = basis @ torch.linalg.lstsq(basis, z[:, None]).solution[:, 0] - z
                change = found[layer.name][c, i].double()
                ours = patches @ change[:-1] + change[-1]
                if not torch.allclose(ours, best, atol=1e-5 * float(z.std())):
                    bad.append(f"{layer.name}[{c}] at {i + 1} bits")
    return bad


def test_what_is_left_is_the_residual_of_the_best_affine_fit():
    assert left_wrong() == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("z - gain * q", "z - q"),
        ("(zq - z * q)", "zq"),
        ("gain[..., None] * q - w", "q - w"),
    ],
)
def test_a_wrong_correction_is_seen(old: str, new: str):
    with mutated("quantize.actual_error", old, new):
        assert left_wrong()


def test_it_is_what_the_correction_does():
    """One layer rounded whole: the corrected network's outputs, up to float16 scales."""
    network, x = small("squared")
    tables = weight_tables(network)
    for bits in (1, 2, 4):
        rounded = round_weights(network, tables, {"0": np.full(4, bits)})
        fixed = correct(network, rounded, {}, x, float_outputs(network, x))
        change = actual_error.errors_left(network, tables, x)["0"][:, bits - 1]
        wanted = outputs(network.module, x) + x @ change[:, :-1].T + change[:, -1]
        assert torch.allclose(simulate(fixed, x), wanted, atol=2e-3 * float(wanted.std()))


def test_a_layer_used_twice_keeps_its_error():
    torch.manual_seed(0)
    one = nn.Linear(5, 5)
    x = torch.randn(9, 5)
    network = build(nn.Sequential(one, nn.Tanh(), one).eval(), x)
    tables = weight_tables(network)
    name = network.layers[0].name
    found = actual_error.errors_left(network, tables, x)[name]
    plain = actual_error.errors_left(network, tables, None)[name]
    assert torch.equal(found, plain) and not plain[..., -1].any()
    assert torch.allclose(plain[..., :-1].square().sum(2).T.double(), tables[name].error, rtol=1e-4)


# ------------------------------------------------------------------------- losses


@pytest.mark.parametrize("corrected", [True, False])
def test_on_a_quadratic_loss_it_is_the_loss_measured(corrected: bool):
    """Half the squared distance of one linear layer is quadratic in its weights."""
    network, x = small("squared")
    tables = weight_tables(network)
    forms = actual_error.actual_error(network, tables, x, kind="squared", corrected=corrected)
    truth = measured.measured(network, tables, x, kind="squared", corrected=corrected)
    assert np.allclose(0.5 * forms["0"].value, truth["0"], rtol=1e-4, atol=1e-9)
    traces = gauss_newton(network, x, kind="squared", tolerance=0)
    by_trace = channel_losses("trace", network, traces, tables, shrink=False)["0"]
    assert not np.allclose(by_trace, truth["0"], rtol=0.1)  # which the trace does not know


def test_small_errors_are_predicted_on_a_curved_loss():
    network, x = small()
    tables = weight_tables(network)
    forms = actual_error.actual_error(network, tables, x)
    truth = measured.measured(network, tables, x)
    for name, t in truth.items():
        ratio = 0.5 * forms[name].value[:, 5] / t[:, 5]
        assert (np.abs(ratio - 1) < 0.1).all(), (name, ratio)


def test_measured_is_the_divergence_of_the_network_with_that_channel_rounded():
    network, x = small()
    tables = weight_tables(network)
    found = measured.measured(network, tables, x, corrected=False)
    full = {la.name: np.full(la.rows, 8) for la in network.layers}
    reference = outputs(network.module, x)
    for layer in network.layers:
        for c, bits in ((0, 1), (2, 3)):
            weight = network.matrix(layer).clone()
            low = round_weights(network, tables, {**full, layer.name: np.full(layer.rows, bits)})
            weight[c] = low[layer.name].matrix()[c]
            swapped = outputs(
                network.module, x, constants={layer.weight: weight.reshape(layer.shape)}
            )
            truth = float(per_sample(reference, swapped, "kl").mean())
            assert found[layer.name][c, bits - 1] == pytest.approx(truth, rel=1e-6)


# ------------------------------------------------------------------------- the roster


@pytest.mark.parametrize("score", SCORES)
def test_every_score_prices_every_channel_and_width(score: str):
    network, x = small()
    tables = weight_tables(network)
    traces = gauss_newton(network, x, edges=False)
    rows = Rows(x, torch.arange(len(x)) % 3)
    found = channel_losses(score, network, traces, tables, rows=rows)
    for layer in network.layers:
        loss = found[layer.name]
        assert loss.shape == (layer.rows, 8) and loss.dtype == np.float64
        assert np.isfinite(loss).all() and (loss >= 0).all()
        assert (loss[:, 0] > 10 * loss[:, 6]).all()  # bits help
    again = channel_losses(score, network, traces, tables, rows=rows)
    assert all((again[n] == found[n]).all() for n in found)
    problem = channel_problem(network, traces, tables, 100, score=score, rows=rows)
    assert (problem.loss == np.concatenate(list(found.values()))).all()
    given = channel_problem(network, traces, tables, 100, score=found)
    assert (problem.loss == given.loss).all() and (problem.cost == given.cost).all()


def test_the_default_is_the_shrunk_trace():
    network, x = small()
    tables = weight_tables(network)
    traces = gauss_newton(network, x, edges=False)
    default = channel_problem(network, traces, tables, 100)
    named = channel_problem(network, traces, tables, 100, score="trace")
    assert (default.loss == named.loss).all()


def test_the_eigenvalue_is_that_of_the_layer():
    """½‖y − y₀‖² of a linear layer: its block is the second moment of x, for every row."""
    network, x = small("squared")
    tables = weight_tables(network)
    none = Sensitivity("gauss-newton", {})
    found = channel_losses("eigenvalue", network, none, tables, rows=Rows(x, kind="squared"))
    top = float(torch.linalg.eigvalsh(x.double().T @ x.double() / len(x))[-1])
    assert np.allclose(found["0"], 0.5 * top / 24 * tables["0"].error.numpy().T, rtol=0.02)


def test_the_fisher_score_is_fits_noise_on_squared_gradients():
    """½‖y − t‖² of a linear layer: `∂/∂w_c = (y − t)_c x`; uniform errors have variance Δ²/12."""
    network, x = small("squared")
    tables = weight_tables(network)
    labels = outputs(network.module, x) + torch.randn(len(x), 4)
    none = Sensitivity("gauss-newton", {})
    rows = Rows(x, labels, kind="squared")
    found = channel_losses("fisher", network, none, tables, rows=rows, shrink=False)["0"]
    residual = (outputs(network.module, x) - labels).double()
    trace = (residual.square() * x.double().square().sum(1, keepdim=True)).mean(0)
    w = network.matrix(network.layers[0]).double()
    for bits in (1, 3, 8):
        step = (w.max(1).values - w.min(1).values) / (2**bits - 1)
        assert np.allclose(found[:, bits - 1], 0.5 * trace * step**2 / 12, rtol=1e-5)


def test_forms_are_shrunk_by_their_ratio_to_the_expected_ones():
    value = np.array([[1.0, 4.0], [3.0, 4.0], [8.0, 4.0]])
    expected = np.array([[1.0, 2.0], [1.0, 4.0], [2.0, 8.0]])
    sure = Estimate(value, np.zeros((3, 2)), np.zeros((3, 2)), 10**9)
    assert np.allclose(toward(sure, expected), value)
    unsure = Estimate(value, np.zeros((3, 2)), 10 * value, 10**9)
    ratio = (value / expected).mean(0)
    assert np.allclose(toward(unsure, expected), ratio * expected)
    dead = toward(sure, np.array([[0.0, 2.0], [1.0, 4.0], [2.0, 8.0]]))
    assert dead[0, 0] == 0 and np.isfinite(dead).all()


def test_what_a_score_needs_is_asked_for():
    network, x = small()
    tables = weight_tables(network)
    traces = gauss_newton(network, x, edges=False)
    with pytest.raises(BitwrightError, match="'psychic' is unknown; use one of trace, eigenvalue"):
        channel_problem(network, traces, tables, 100, score="psychic")
    with pytest.raises(BitwrightError, match=r"actual-error looks at data; give rows=Rows\(x\)"):
        channel_problem(network, traces, tables, 100, score="actual-error")
    with pytest.raises(BitwrightError, match="fisher"):
        channel_problem(network, traces, tables, 100, score="fisher", rows=Rows(x))
