"""Parts of a network compute what the whole does."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitwright.network import build, join, run
from bitwright.network.segments import segments


class Residual(nn.Module):
    """A stem, two residual blocks, a pooling and a head; a constant made on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        self.a, self.b, self.c = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(3))
        self.scale = nn.Parameter(torch.rand(1, 4, 1, 1))
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        factor = self.scale.exp()
        x = F.relu(self.stem(x)) * factor
        x = F.relu(x + self.b(F.relu(self.a(x))))
        x = F.relu(x + self.c(x) * factor)
        return self.head(x.mean((2, 3)))


def test_parts_one_after_another_are_the_whole():
    torch.manual_seed(0)
    x = torch.randn(6, 2, 8, 8)
    network = build(Residual().eval(), x)
    names = {e.name for e in network.edges}
    found = segments(network, names)
    assert [[la.name for la in part.layers] for part in found] == [
        ["stem"],
        ["a", "b"],
        ["c"],
        ["head"],
    ]
    value = x
    for part in found:
        value = join(run(part.module, value))
    torch.testing.assert_close(value, join(run(network.module, x)), rtol=0, atol=0)
    assert [part.end is None for part in found] == [False, False, False, True]


def test_a_cut_is_only_where_it_may_be():
    torch.manual_seed(0)
    x = torch.randn(6, 2, 8, 8)
    network = build(Residual().eval(), x)
    (whole,) = segments(network, ())
    assert len(whole.layers) == 5 and whole.end is None
    ends = [p.end for p in segments(network, {e.name for e in network.edges})]
    first, second = segments(network, {ends[1]})
    assert first.end == ends[1]
    assert [la.name for la in second.layers] == ["c", "head"]


def test_a_layer_used_in_two_parts_is_in_neither():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.again = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.again(F.relu(self.again(F.relu(self.first(x)))))

    torch.manual_seed(0)
    x = torch.randn(6, 4)
    network = build(Twice().eval(), x)
    found = segments(network, {e.name for e in network.edges})
    assert [[la.name for la in part.layers] for part in found] == [["first"], [], []]
