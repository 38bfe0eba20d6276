"""Rescaled channels: the same function, for every factor that the groups say is free."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bitwright.network import build, doubled, outputs
from bitwright.network import scaling as module
from mutants import mutant


class Residual(nn.Module):
    """Sums, a shortcut that pads channels and drops pixels, pooling, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.b, self.c = nn.Conv2d(4, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        """[n, 2, 8, 8] -> [n, 3]."""
        x = F.relu(self.stem(x))
        x = F.relu(x + self.a(x))
        y = self.c(F.relu(self.b(x)))
        x = F.relu(y + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2)))
        return self.head(F.avg_pool2d(x, 4).flatten(1))


class Fire(nn.Module):
    """A concatenation, max-pooling, a depthwise layer, a gate, leaky ReLU, flattened pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(2, 3, 1)
        self.one, self.three = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 2, 3, padding=1)
        self.depth = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.down, self.up = nn.Conv2d(6, 2, 1), nn.Conv2d(2, 6, 1)
        self.grouped = nn.Conv2d(6, 4, 3, padding=1, groups=2)
        self.head = nn.Linear(4 * 4 * 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        """[n, 2, 8, 8] -> [n, 3]."""
        x = F.relu(self.squeeze(x))
        x = F.max_pool2d(torch.cat([F.relu(self.one(x)), F.relu(self.three(x))], 1), 2)
        x = F.leaky_relu(self.depth(x), 0.1)
        gate = F.relu(self.up(F.relu(self.down(F.adaptive_avg_pool2d(x, 1)))))
        return self.head(F.relu(self.grouped(x * gate)).flatten(1))


class Twice(nn.Module):
    """A layer used twice, and GELU, which lets nothing through."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.again = nn.Linear(6, 5), nn.Linear(5, 5)
        self.middle, self.last = nn.Linear(5, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        """[n, 6] -> [n, 3]."""
        x = F.relu(self.again(F.relu(self.again(F.relu(self.first(x))))))
        return self.last(F.gelu(self.middle(x)))


CASES: dict[str, tuple[type[nn.Module], tuple[int, ...], int]] = {
    # free groups: the stem's 4 are also 4 of the 8 behind the padding; conv b's 8
    "residual": (Residual, (2, 8, 8), 8 + 8),
    # squeeze 3, one and three 6, depth's 6, down 2, grouped 4; the gate is held
    "fire": (Fire, (2, 8, 8), 3 + 6 + 6 + 2 + 4),
    # one width for all three values of the layer used twice
    "twice": (Twice, (6,), 5),
}


def the_function_stays(module: ModuleType, name: str) -> None:
    model, shape, free = CASES[name]
    torch.manual_seed(0)
    network = build(model().eval(), torch.randn(2, *shape))
    exact = doubled(network)
    assert exact is not None
    groups = module.scaling(exact)
    assert int(groups.free.sum()) == free
    rng = np.random.default_rng(0)
    factors = np.where(groups.free, np.exp(rng.standard_normal(groups.count)), 1.0)
    x = torch.randn(16, *shape, dtype=torch.float64)
    before = outputs(exact.module, x)
    changed = module.rescaled(exact, groups, factors)
    assert torch.allclose(outputs(changed.module, x), before, rtol=1e-10, atol=1e-12)
    moved = [
        not torch.allclose(changed.tensor(la.weight), exact.tensor(la.weight), rtol=1e-3)
        for la in exact.layers
    ]
    assert sum(moved) >= len(moved) - 1  # the last layer's columns, the first one's rows …
    assert torch.equal(outputs(exact.module, x), before)  # left as it was


@pytest.mark.parametrize("name", CASES)
def test_any_factors_of_free_groups_leave_the_function(name: str):
    the_function_stays(module, name)


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("residual", "builder.join(builder.ids[b], made)", "pass"),
        ("residual", "[before : before + len(ids)]", "[: len(ids)]"),
        ("residual", "weight / rows", "weight * rows"),
        ("residual", ".double() / rows", ".double()"),
        ("fire", "start += len(ids)", "start = 0"),
        ("fire", "np.repeat(builder.ids[source], each)", "np.tile(builder.ids[source], each)"),
        ("fire", "builder.hold(g)", "pass"),
        ("fire", "columns.reshape(layer.groups, 1", "columns.reshape(1, 1"),
        ("twice", "builder.join(inputs.setdefault(layer.name, read), read)", "pass"),
        ("twice", "builder.new(node, 0)\n            builder.hold(node)",
         "builder.new(node, 0)"),
        ("twice", "                builder.hold(source)\n            builder.new",
         "                pass\n            builder.new"),
    ],
)  # fmt: skip
def test_other_groups_are_seen(name: str, old: str, new: str):
    with pytest.raises((AssertionError, RuntimeError, IndexError)):
        the_function_stays(mutant("network.scaling", old, new), name)


def test_a_clip_from_above_lets_smaller_factors_through():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU6(), nn.Conv2d(4, 3, 3), nn.Flatten())
    network = build(model.eval(), torch.randn(2, 1, 8, 8))
    groups = module.scaling(network)
    assert int(groups.free.sum()) == 4
    x = torch.randn(16, 1, 8, 8)
    first = next(e.name for e in network.edges if e.ceiling == 6)
    largest = torch.relu(model[0](x)).detach().amax((0, 2, 3))
    assert float(largest.max()) < 6  # nothing is cut
    for share, same in ((1.01, True), (0.5, False)):
        factors = np.ones(groups.count)
        factors[groups.groups[first]] = share * largest.double().numpy() / 6
        changed = module.rescaled(network, groups, factors)
        close = torch.allclose(outputs(changed.module, x), outputs(network.module, x), atol=1e-5)
        assert close == same


def test_factors_of_held_groups_are_refused():
    network = build(Twice().eval(), torch.randn(2, 6))
    groups = module.scaling(network)
    for factors in (np.full(groups.count, 2.0), np.where(groups.free, -1.0, 1.0)):
        with pytest.raises(ValueError, match="factors must be positive"):
            module.rescaled(network, groups, factors)


def tokens_stay(module: ModuleType) -> None:
    """Values of tokens count another axis than the rows of the layers on them, and are held."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.GELU(), nn.Linear(5, 3)).eval()
    x = torch.randn(8, 4, 6)
    network = build(model, x)
    groups = module.scaling(network)
    assert not groups.free.any()
    same = module.rescaled(network, groups, np.ones(groups.count))
    assert torch.equal(outputs(same.module, x), outputs(network.module, x))


def test_tokens_stay():
    tokens_stay(module)


@pytest.mark.parametrize("name", ["call", "source.name"])
def test_other_tokens_are_seen(name: str):
    wrong = mutant(
        "network.scaling", f"if _moves(factors, groups, {name})", f"if {name} in groups.groups"
    )
    with pytest.raises(RuntimeError):
        tokens_stay(wrong)
