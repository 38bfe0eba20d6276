"""Equalized ranges: against ranges counted by hand, and the error that they save."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from torch import nn

from bitwright.network import build, outputs
from bitwright.network.scaling import scaling
from bitwright.quantize import calibrate
from bitwright.quantize import equalize as module
from bitwright.quantize.activations import fake_quantize, watch
from mutants import mutant
from small import one_thread  # noqa: F401


def uneven() -> nn.Module:
    """Channels whose ranges differ by a factor of fifty, one of them always zero."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(5 * 36, 4),
    ).eval()  # fmt: skip
    with torch.no_grad():
        model[0].weight *= torch.logspace(-1.2, 0.5, 6)[:, None, None, None]
        model[0].weight[3] = 0
        model[0].bias *= 0
    return model


def ranges(network: object, x: torch.Tensor) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    names = [e.name for e in network.edges]  # type: ignore[attr-defined]

    def note(name: str, value: torch.Tensor) -> None:
        if value.ndim == 4:
            found[name] = value.amax((0, 2, 3))

    watch(network, x, names, note)  # type: ignore[arg-type]
    return found


def ranges_are_equal(module: ModuleType) -> None:
    model, x = uneven(), torch.randn(32, 2, 8, 8)
    network = build(model, x)
    before = ranges(network, x)
    first = next(n for n, v in before.items() if len(v) == 6)
    for strength in (0.0, 0.5, 1.0):
        changed = module.equalized(network, x, strength, chunk=7)
        assert torch.allclose(outputs(changed.module, x), outputs(network.module, x), atol=1e-4)
        after = ranges(changed, x)[first]
        live = before[first] > 0
        share = (before[first] / before[first].max())[live]
        wanted = before[first][live] / (share**strength).clamp(min=1 / 64)
        assert torch.allclose(after[live], wanted, rtol=1e-3)
        assert torch.all(after[~live] == 0)


def test_ranges_become_equal_by_strength():
    ranges_are_equal(module)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("np.exp(strength * total", "np.exp(total"),
        ("np.maximum(count, 1)", "2"),
        (".abs().movedim(axis, 0)", ".abs().movedim(0, 0)"),
        ("torch.maximum(top[name], found) if name in top else found", "found"),
        ("reach / max(reach.max(), 1e-30)", "reach"),
    ],
)
def test_other_ranges_are_seen(old: str, new: str):
    with pytest.raises((AssertionError, ValueError, IndexError, RuntimeError)):
        ranges_are_equal(mutant("quantize.equalize", old, new))


def test_a_channel_that_hardly_fires_is_not_blown_up():
    model, x = uneven(), torch.randn(32, 2, 8, 8)
    with torch.no_grad():
        model[0].weight[0] *= 1e-6
    network = build(model, x)
    groups = scaling(network)
    found = module.factors(network, groups, x, 1.0)
    assert found.min() == module.LEAST and found.max() == 1.0


def test_it_saves_error_at_few_bits():
    """Each channel's error relative to its size, 4 bits; zero for a channel of zeros."""
    model, x = uneven(), torch.randn(64, 2, 8, 8)
    network = build(model, x)
    error = {}
    for strength in (0.0, 1.0):
        changed = module.equalized(network, x, strength)
        grids = calibrate(changed, x, bits=4)
        edge = next(e for e in changed.edges if e.shape == (6, 8, 8))
        total = torch.zeros(6)

        def note(name: str, value: torch.Tensor, total: torch.Tensor = total) -> None:
            wrong = (fake_quantize(value, grids[edge.group]) - value).square().mean((0, 2, 3))  # noqa: B023
            total += wrong / value.square().mean((0, 2, 3)).clamp(min=1e-12)

        watch(changed, x, [edge.name], note)
        error[strength] = float(total.sum())
    assert error[1.0] < 0.2 * error[0.0]
