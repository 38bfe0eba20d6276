"""Scores: the shrinkage of noisy traces against what is true, and the predicted losses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from bitwright.curvature import Estimate, Sensitivity
from bitwright.network import build
from bitwright.quantize import channel_problem, trace_order, weight_tables
from bitwright.quantize.scores import shrunk


def estimate(value, data=0.0, probe=0.0, samples=10**9) -> Estimate:
    value = np.asarray(value, dtype=float)
    return Estimate(value, np.full_like(value, probe), np.full_like(value, data), samples)


def test_traces_without_error_stay():
    assert np.allclose(shrunk(estimate([1.0, 2.0, 6.0])), [1, 2, 6])


def test_traces_that_are_all_error_become_their_mean():
    # var_c = 14/3 lies below se² = 9
    assert np.allclose(shrunk(estimate([1.0, 2.0, 6.0], data=3.0)), 3)


def test_the_weight_is_one_minus_error_over_spread():
    # var = 14/3; se² = 7/6 by either error -> w = 3/4
    wanted = 3 + 0.75 * (np.array([1.0, 2.0, 6.0]) - 3)
    assert np.allclose(shrunk(estimate([1.0, 2.0, 6.0], data=np.sqrt(7 / 6))), wanted)
    assert np.allclose(shrunk(estimate([1.0, 2.0, 6.0], probe=np.sqrt(7 / 6))), wanted)
    both = estimate([1.0, 2.0, 6.0], data=np.sqrt(0.5), probe=np.sqrt(2 / 3))
    assert np.allclose(shrunk(both), wanted)


def test_errors_that_were_not_measured_count_as_none():
    assert np.allclose(shrunk(estimate([1.0, 2.0, 6.0], data=np.nan)), [1, 2, 6])


def test_the_sum_over_a_layer_is_kept_and_a_dead_channel_is_not_free():
    found = shrunk(estimate([0.0, 2.0, 4.0], samples=9))
    assert found.sum() == pytest.approx(6) and np.allclose(found, [0.2, 2.0, 3.8])
    assert np.allclose(shrunk(estimate([2.0, 2.0], data=1.0)), 2)


def test_shrinking_brings_noisy_traces_closer_to_the_true_ones():
    """Sample means of skewed per-image curvatures, as the measurement yields them."""
    rng = np.random.default_rng(0)
    gains = []
    for _ in range(50):
        true = rng.gamma(4.0, 0.25, 200)
        samples = true[:, None] * rng.gamma(0.1, 10.0, (200, 30))
        value, error = samples.mean(1), samples.std(1, ddof=1) / np.sqrt(30)
        found = shrunk(Estimate(value, np.zeros(200), error, 30))
        gains.append(((found - true) ** 2).mean() / ((value - true) ** 2).mean())
    assert np.mean(gains) < 0.6  # the best weight for these, τ²/(τ² + σ²) = 0.43, leaves 0.43


def problem(**options):
    torch.manual_seed(0)
    x = torch.randn(8, 2, 6, 6)
    net = build(nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten()).eval(), x)
    traces = Sensitivity("gauss-newton", {"0": estimate([1.0, 2.0, 6.0], data=3.0)})
    tables = weight_tables(net)
    return net, traces, tables, channel_problem(net, traces, tables, 100, **options)


@pytest.mark.parametrize("shrink", [True, False])
def test_the_predicted_loss_is_half_the_mean_trace_times_the_squared_error(shrink):
    _, _, tables, found = problem(shrink=shrink)
    trace = [3, 3, 3] if shrink else [1, 2, 6]
    for c in range(3):
        wanted = 0.5 * trace[c] / 18 * tables["0"].error[:, c].numpy()
        assert np.allclose(found.loss[c], wanted)
    assert found.cost[0].tolist() == [18 * b for b in range(1, 9)] and found.budget == 100


def test_the_order_falls_with_the_trace_or_with_trace_times_squared_step():
    net, traces, tables, _ = problem()
    sure = Sensitivity("gauss-newton", {"0": estimate([1.0, 2.0, 6.0])})
    assert trace_order(net, sure).tolist() == [2, 1, 0]
    error = tables["0"].error[3].numpy()
    assert trace_order(net, traces, tables).tolist() == np.argsort(-error).tolist()
    scaled = np.array([1.0, 2.0, 6.0]) * error
    assert trace_order(net, sure, tables).tolist() == np.argsort(-scaled).tolist()
