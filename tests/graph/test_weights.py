"""Steps of weights: one for each output channel, of attention one for each head."""

from __future__ import annotations

import pytest
import torch

from bitwright.graph.weights import round_weights, weight_steps


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize(
    ("shape", "steps"),
    [((5, 16), 5), ((1, 16), 1), ((1, 1), 1), ((1, 3, 16), 3), ((1, 1, 16), 1), ((2, 3, 16), 2)],
)
def test_channels_have_one_step_each(shape: tuple[int, ...], steps: int, bits: int):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    top = 2 ** (bits - 1) - 1
    rows = weight.reshape(steps, -1).double()
    wanted = rows.abs().amax(1, keepdim=True) / top
    torch.testing.assert_close(weight_steps(weight, bits)[0].double(), wanted[:, 0])
    found = round_weights(weight, bits).reshape(steps, -1).double()
    torch.testing.assert_close(found, (rows / wanted).round() * wanted)
