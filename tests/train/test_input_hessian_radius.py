"""Predicted radii against closed forms."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import bitwright
from bitwright.train import input_hessian
from mutants import mutated


def linear() -> tuple[nn.Linear, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Two classes, rows, the likelier class of each, and its distance from the boundary."""
    torch.manual_seed(3)
    model = nn.Linear(5, 2).double()
    x = 9 * torch.randn(7, 5, dtype=torch.double)
    z = model(x).detach()
    y = z.argmax(1)
    slope = (model.weight[1] - model.weight[0]).detach().norm()
    return model, x, y, (z[:, 0] - z[:, 1]).abs() / slope


def test_two_linear_classes_have_their_distance_as_radius():
    model, x, y, wanted = linear()
    with torch.no_grad():
        curvature = bitwright.hessian_norm(model, nn.CrossEntropyLoss(), x, y, iterations=1)
        z = model(x)
    assert torch.allclose(input_hessian.logistic_radius(z, y, curvature), wanted)
    assert input_hessian.logistic_radius(z, 1 - y, curvature).tolist() == [0.0] * 7
    with mutated("train.input_hessian.radius", "sigmoid(-log_odds)", "sigmoid(log_odds)"):
        assert not torch.allclose(input_hessian.logistic_radius(z, y, curvature), wanted)


def test_more_classes_that_do_not_matter_change_nothing():
    model, x, y, wanted = linear()
    with torch.no_grad():
        z = torch.cat([model(x), torch.full((7, 3), -900.0, dtype=torch.double)], 1)
        curvature = bitwright.hessian_norm(model, nn.CrossEntropyLoss(), x, y, iterations=1)
    assert torch.allclose(input_hessian.logistic_radius(z, y, curvature), wanted)


@pytest.mark.parametrize(("f", "g", "c"), [(0.1, 0.5, 2.0), (0.0, 0.0, 1.0), (0.3, 1.0, 0.0)])
def test_the_quadratic_model_reaches_the_threshold_there(f: float, g: float, c: float):
    loss, gradient, curvature = torch.tensor([[f], [g], [c]], dtype=torch.double)
    r = input_hessian.quadratic_radius(loss, gradient, curvature)
    assert torch.allclose(
        loss + gradient * r + curvature * r**2 / 2, torch.log(torch.tensor(2.0)).double()
    )


def test_a_row_above_the_threshold_has_no_radius():
    ones = torch.ones(2)
    assert input_hessian.quadratic_radius(ones, ones, ones).tolist() == [0.0, 0.0]
