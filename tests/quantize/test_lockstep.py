"""Both networks side by side, in stages of more and of fewer rows."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from bitwright.network import Network, build, outputs
from bitwright.quantize import lockstep
from mutants import mutated
from small import Fn


def net() -> tuple[Network, Tensor]:
    """Large images, then small, then large ones; sums that reach across; a view by batch size."""
    torch.manual_seed(0)
    parts = {
        "a": nn.Conv2d(2, 8, 3, padding=1),
        "b": nn.Conv2d(8, 4, 3, stride=4),
        "c": nn.Conv2d(4, 4, 1),
        "d": nn.Linear(36, 6),
        "e": nn.Linear(6, 800),
        "g": nn.Linear(800, 3),
    }

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        y = torch.relu(m.b(torch.relu(m.a(x))))
        y = y + m.c(y)
        z = m.d(y.reshape(x.shape[0], -1))
        return m.g(torch.relu(m.e(z))) + z[:, :3] + x.mean((1, 2, 3))[:, None]

    x = torch.randn(64, 2, 13, 13)
    return build(Fn(forward, **parts).eval(), x), x


def seen(limit: float) -> tuple[list[tuple[int, int]], list[str]]:
    """The stages, and the layers whose values are not the networks' own (rounded: x2 inside)."""
    network, x = net()
    names = {name for la in network.layers for name in la.calls}
    wanted: dict[str, list[Tensor]] = {}
    for factor in (1, 2):

        def note(node, args, kwargs, factor=factor):
            value = node.target(*args, **kwargs)
            if node.name in names:
                value = value * factor
                wanted.setdefault(node.name, []).append(value)
            return value

        outputs(network.module, x, note, chunk=len(x))
    bad = set()

    def call(node, args, kwargs):
        value = lockstep.operate(node, args, kwargs)
        if node.name not in names:
            return value
        value = value.map(lambda t: 2 * t)
        if len(value.floats) > 1:
            for got, want in zip((value.floats, value.rounded), wanted[node.name], strict=True):
                joined = torch.cat(got)
                if not torch.allclose(joined, want[: len(joined)], atol=1e-4):
                    bad.add(node.name)
            rows[node.name] = len(joined)
        return value

    rows: dict[str, int] = {}
    with torch.no_grad():
        found = lockstep.stages(network, len(x), limit)
        lockstep.run_both(network, x, call, lambda node, value: value, limit)
    bad |= names - set(rows)
    return found, sorted(bad)


def test_with_room_for_all_there_is_one_stage():
    found, bad = seen(1e9)
    assert len(found) == 1 and found[0][1] == 64 and bad == []


def test_later_layers_see_more_rows_and_wide_ones_fewer():
    found, bad = seen(9e5)
    rows = [r for _, r in found]
    assert bad == [] and rows[1] == 64 and 16 < rows[0] < rows[2] < 64


def test_a_layer_sees_some_rows_however_little_room():
    network, _ = net()
    assert {r for _, r in lockstep.stages(network, 64, 1.0)} == {16}
    assert {r for _, r in lockstep.stages(network, 5, 1.0)} == {5}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("Both(a.floats + b.floats, a.rounded", "Both(b.floats + a.floats, a.rounded"),
        ("value.floats[:count]", "value.floats[-count:]"),
        ("Both(self.floats, [act(value)", "Both([act(v) for v in self.floats], [act(value)"),
    ],
)
def test_rows_in_the_wrong_place_are_seen(old: str, new: str):
    with mutated("quantize.lockstep", old, new):
        assert seen(9e5)[1]
