"""Edges: which activations live in 8 bits, which share a grid, and what their grids must hold."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitwright.curvature import gauss_newton
from bitwright.network import Edge, Network, build
from bitwright.network.ops import aten
from small import Fn


def conv(i: int = 3, o: int = 4) -> nn.Conv2d:
    return nn.Conv2d(i, o, 3, padding=1)


def image(forward: Callable[..., Tensor], **parts: nn.Module | Tensor) -> Network:
    torch.manual_seed(0)
    return build(Fn(forward, **parts).eval(), torch.randn(2, 3, 8, 8))


class Look:
    """Edges by operation: `look("relu")` is the list of edges that a relu computes, in order."""

    def __init__(self, network: Network) -> None:
        self.nodes = {n.name: n for n in network.module.graph.nodes}
        self.edges = {e.name: e for e in network.edges}

    def __call__(self, op: str) -> list[Edge]:
        return [e for e in self.edges.values() if self.op(e.name) == op]

    def op(self, name: str) -> str:
        node = self.nodes[name]
        return "input" if node.op == "placeholder" else str(node.target).split(".")[1]

    @property
    def ops(self) -> list[str]:
        return [self.op(name) for name in self.edges]


def head(m: Fn, h: Tensor) -> Tensor:
    return m.head(h.mean((2, 3)))


def test_residual_add_is_quantized_and_relu_fused():
    look = Look(
        image(
            lambda m, x: head(m, F.relu(m.b(h := F.relu(m.a(x))) + h)),
            a=conv(),
            b=conv(4, 4),
            head=nn.Linear(4, 3),
        )
    )
    # conv a and the add are folded into their ReLUs; conv b has no clip and is an edge itself
    assert look.ops == ["input", "relu", "conv2d", "relu", "mean"]
    assert len({e.group for e in look.edges.values()}) == 5
    assert [e.at_zero for e in look.edges.values()] == [False, True, False, True, True]
    assert all(e.ceiling == math.inf for e in look.edges.values())
    assert [e.shape for e in look.edges.values()] == [(3, 8, 8), *[(4, 8, 8)] * 3, (4,)]


def test_a_relu_with_a_second_reader_of_its_source_is_not_fused():
    look = Look(
        image(
            lambda m, x: head(m, m.b(F.relu(h := m.a(x))) + h),
            a=conv(),
            b=conv(4, 4),
            head=nn.Linear(4, 3),
        )
    )
    assert look.ops.count("conv2d") == 2
    first, _ = look("conv2d")
    assert not first.at_zero and look("relu")[0].at_zero
    assert first.group != look("relu")[0].group


def test_reshapes_pools_and_pads_share_the_group():
    def forward(m: Fn, x: Tensor) -> Tensor:
        h = F.max_pool2d(F.relu(m.a(x)), 2)
        h = F.pad(h, (1, 1, 1, 1))[:, 1:, :, :-1].permute(0, 1, 3, 2).reshape(-1, 3 * 6 * 5)
        return m.head(h)

    look = Look(image(forward, a=conv(), head=nn.Linear(90, 3)))
    rest = [e for e in look.edges.values() if look.op(e.name) != "input"]
    assert {look.op(e.name) for e in rest} >= {"relu", "max_pool2d", "pad", "slice", "permute"}
    assert len({e.group for e in rest}) == 1
    assert all(e.at_zero for e in rest)
    assert look("input")[0].group != rest[0].group


def test_padding_with_another_constant_leaves_the_group():
    network = image(
        lambda m, x: m.b(F.pad(F.relu(m.a(x)), (1, 0, 0, 0), value=-1.0)), a=conv(), b=conv(4, 4)
    )
    look = Look(network)
    padded = look("constant_pad_nd")[0]
    assert not padded.at_zero
    assert padded.group != look("relu")[0].group and look("relu")[0].at_zero
    for zero in (0.0, None):  # zero is on every grid
        look = Look(
            image(
                lambda m, x, z=zero: m.b(F.pad(F.relu(m.a(x)), (1, 0, 0, 0), value=z)),
                a=conv(),
                b=conv(4, 4),
            )
        )
        assert look("pad")[0].group == look("relu")[0].group and look("pad")[0].at_zero


CAT = [
    # first, second, tied, at_zero of the concatenation
    (F.relu, F.relu, True, True),
    (F.relu6, F.relu6, True, True),
    (F.relu, None, False, False),
    (None, None, True, False),
    (F.relu6, F.relu, False, True),  # a common grid would clip the ReLU at 6, too
]


@pytest.mark.parametrize(("one", "two", "tied", "at_zero"), CAT)
def test_concatenation(one, two, tied: bool, at_zero: bool):
    def same(h: Tensor) -> Tensor:
        return h

    look = Look(
        image(
            lambda m, x: m.c(torch.cat([(one or same)(m.a(x)), (two or same)(m.b(x))], 1)),
            a=conv(),
            b=conv(),
            c=conv(8, 4),
        )
    )
    first, second, joined = [e for e in look.edges.values() if look.op(e.name) != "input"]
    assert look.op(joined.name) == "cat"
    assert joined.at_zero is at_zero
    assert (first.group == second.group) is tied
    assert (first.group == joined.group) is tied
    assert (first.at_zero, second.at_zero) == (one is not None, two is not None)
    assert first.ceiling == (6 if one is F.relu6 else math.inf)
    assert second.ceiling == (6 if two is F.relu6 else math.inf)
    assert joined.ceiling == (6 if one is two is F.relu6 else math.inf)


@pytest.mark.parametrize(
    ("clip", "at_zero", "ceiling"),
    [
        (nn.ReLU(), True, math.inf),
        (nn.ReLU6(), True, 6),
        (nn.Hardtanh(0.0, 4.0), True, 4),
        (nn.Hardtanh(-2.0, 4.0), False, 4),
        (nn.Hardtanh(), False, 1),
        (Fn(lambda m, x: x.clamp(0, 3)), True, 3),
        (Fn(lambda m, x: x.clamp(min=0)), True, math.inf),
        (Fn(lambda m, x: x.clamp(min=0.5)), False, math.inf),
        (Fn(lambda m, x: x.clamp(max=2)), False, 2),
    ],
)
def test_clips(clip: nn.Module, at_zero: bool, ceiling: float):
    look = Look(image(lambda m, x: m.b(m.pool(m.clip(m.a(x)))), a=conv(), clip=clip, b=conv(4, 2),
                      pool=nn.MaxPool2d(2)))  # fmt: skip
    pooled = look("max_pool2d")[0]
    (before,) = [e for e in look.edges.values() if e.group == pooled.group and e is not pooled]
    assert (pooled.at_zero, pooled.ceiling) == (at_zero, ceiling)
    assert (before.at_zero, before.ceiling) == (at_zero, ceiling)
    # saturation is the clip itself where it clips at zero, or only from above
    assert (look("conv2d") == []) is (at_zero or ceiling == 2)


@pytest.mark.parametrize(
    ("f", "at_zero"),
    [
        (torch.sigmoid, True),
        (torch.tanh, False),
        (F.gelu, False),
        (lambda h: F.softmax(h, 1), True),
        (lambda h: F.leaky_relu(h, 0.1), False),
        (lambda h: F.avg_pool2d(F.relu(h), 2), True),
        (lambda h: F.avg_pool2d(h, 2), False),
        (lambda h: F.relu(h) + torch.sigmoid(h), False),
        (lambda h: F.relu(h) - 1, False),
        (lambda h: F.relu(h) * h, False),
    ],
)
def test_at_zero_only_where_nothing_negative_can_be(f: Callable[[Tensor], Tensor], at_zero: bool):
    network = image(lambda m, x: m.b(f(m.a(x))), a=conv(), b=conv(4, 2))
    last = [n for n in network.module.graph.nodes if n.target is aten.conv2d.default][-1]
    (edge,) = [e for e in network.edges if e.name == last.args[0].name]
    assert edge.at_zero is at_zero


def test_the_input_is_an_edge_and_logits_are_not():
    torch.manual_seed(0)
    x = torch.randn(2, 5)
    network = build(nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)), x)
    look = Look(network)
    assert look.ops == ["input", "relu"]
    look = Look(image(lambda m, x: m.b(F.relu(m.a(x))), a=conv(), b=conv(4, 2)))
    assert look.ops == ["input", "relu"]  # a map of logits is an output as well
    look = Look(image(lambda m, x: m.b(F.relu(m.a(x))).flatten(2), a=conv(), b=conv(4, 2)))
    assert "reshape" not in look.ops and "flatten" not in look.ops


def test_float_operations_stay_float():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.GELU(), nn.LayerNorm(4), nn.Linear(4, 3))
    look = Look(build(model, torch.randn(2, 5)))
    assert look.ops == ["input", "layer_norm"]


def test_skipped_layers_need_no_edges():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
    network = build(model, torch.randn(2, 5), skip=["0", "2"])
    assert Look(network).ops == ["tanh"]


@pytest.mark.parametrize(
    "forward",
    [
        lambda m, x: m.head(m.a(x) + m.pos[:, :3]).mean(1),
        lambda m, x: m.head(torch.cat([m.cls.expand(x.shape[0], -1, -1), m.a(x)], 1)).mean(1),
        lambda m, x: m.head(m.a(x) + m.pos[:, :3].sigmoid()).mean(1),
    ],
)
def test_constants_are_no_edges(forward: Callable[[Fn, Tensor], Tensor]):
    """A slice of position codes, a class token: computed, but the same for every row."""
    torch.manual_seed(0)
    model = Fn(
        forward,
        a=nn.Linear(5, 4),
        head=nn.Linear(4, 3),
        pos=torch.randn(1, 7, 4),
        cls=torch.randn(1, 1, 4),
    )
    x = torch.randn(6, 3, 5)
    network = build(model.eval(), x)
    names = {e.name for e in network.edges}
    for node in network.module.graph.nodes:  # what reads parameters only
        if node.all_input_nodes and all(n.op == "get_attr" for n in node.all_input_nodes):
            assert node.name not in names
    assert not [n for n in names if n.startswith("expand")]
    found = gauss_newton(network, x, tolerance=0)
    assert set(found.edges) == {e.name for e in network.edges}
    assert all((e.value > 0).all() for e in found.edges.values())
