"""The wrapper: what it rounds, for whom, and what it leaves alone."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch_geometric.nn import Linear

from bitwright.graph import DegreeQuant, Scheme, degree_quant
from graph.graphs import LAYERS, graph, net
from mutants import mutated

pytestmark = pytest.mark.parametrize("kind", list(LAYERS))
PLAIN = Scheme(4, 4, (0.0, 0.0), 0.01, momentum=1.0)


def test_everybody_protected_and_float_weights_is_the_float_network(kind: str):
    x, edges = graph()
    model = net(kind)
    quantized = DegreeQuant(model, Scheme(4, None, (1.0, 1.0)), x, edges).train()
    assert torch.equal(quantized(x, edges), model.train()(x, edges))
    loose = DegreeQuant(model, Scheme(4, None, (0.5, 0.5)), x, edges).train()
    assert not torch.equal(loose(x, edges), model(x, edges))


def test_nobody_protected_is_plain_quantized_training(kind: str):
    x, edges = graph()
    found = DegreeQuant(net(kind), PLAIN, x, edges)
    plain = found.eval()(x, edges)
    assert torch.equal(found.train()(x, edges), plain)
    masked = DegreeQuant(net(kind), Scheme(4, 4, (0.3, 0.9), 0.01, 1.0), x, edges)
    assert torch.equal(masked.eval()(x, edges), plain)  # all is rounded in evaluation
    assert not torch.equal(masked.train()(x, edges), plain)


def test_permuting_nodes_permutes_answers(kind: str):
    x, edges = graph()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(1))
    place = order.argsort()
    found = DegreeQuant(net(kind), Scheme(8, 8), x, edges).eval()
    there = found(x[order], place[edges])
    torch.testing.assert_close(there, found(x, edges)[order], atol=1e-5, rtol=1e-5)


class Levels:
    """How many different numbers the inputs of linear layers and messages have."""

    def __init__(self, module: nn.Module) -> None:
        self.counts: dict[str, int] = {}
        for path, part in module.named_modules():
            if isinstance(part, Linear | nn.Linear):
                part.register_forward_pre_hook(self._hook(path))

    def _hook(self, path: str) -> Any:
        def hook(part: nn.Module, args: tuple[Tensor, ...]) -> None:
            self.counts[path] = len(args[0].unique())
            self.counts[f"{path}.weight"] = max(len(w.unique()) for w in part.weight)  # type: ignore

        return hook


def check_levels(kind: str) -> None:
    x, edges = graph(300)
    found = degree_quant.DegreeQuant(net(kind, 0.5), Scheme(3, 2, (0, 0)), x, edges).train()
    seen = Levels(found)
    found(x, edges)
    assert seen.counts
    for name, count in seen.counts.items():
        # 3 bits; what a dropout has zeroed is a level already
        assert count <= (3 if name.endswith("weight") else 8), name


def test_operands_of_products_are_low_bit(kind: str):
    check_levels(kind)
    with (
        mutated("graph.degree_quant", "out = self._rounded(x, key, found, now)", "out = x * 1.0"),
        pytest.raises(AssertionError),
    ):
        check_levels(kind)


def test_the_callers_network_stays_as_it_was(kind: str):
    x, edges = graph()
    model = net(kind)
    before = copy.deepcopy(model.state_dict())
    found = DegreeQuant(model, Scheme(4, 4), x, edges).train()
    functional.cross_entropy(found(x, edges), torch.arange(len(x)) % 3).backward()
    torch.optim.SGD(found.parameters(), lr=1.0).step()
    found(x, edges)
    assert model.training
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert not any(m._forward_pre_hooks for m in model.modules())
    assert all(p.grad is not None for p in found.parameters())


def test_state_and_copies_answer_alike(kind: str):
    x, edges = graph()
    found = DegreeQuant(net(kind), Scheme(4, 4), x, edges).train()
    found(2 * x, edges)  # ranges that the example does not have
    again = DegreeQuant(net(kind), Scheme(4, 4), x, edges)
    again.load_state_dict(found.state_dict())
    twin = copy.deepcopy(found)
    wanted = found.eval()(x, edges)
    assert torch.equal(again.eval()(x, edges), wanted)
    with torch.no_grad():
        next(iter(found.parameters())).add_(1.0)
    assert torch.equal(twin.eval()(x, edges), wanted)
