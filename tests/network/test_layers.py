"""The roster of layers: what every kind of weight that is quantized keeps to."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx import Node
from torch.utils.flop_counter import FlopCounterMode

from bitwright.network import Network
from bitwright.network.ops import LAYERS, TABLES
from bitwright.network.run import default_call, run
from deploy import nets

KINDS = {str(target): target for target in (*LAYERS, *TABLES)}


def of_kind(kind: str) -> list[tuple[Network, Tensor, Node]]:
    """Networks of the roster with such a layer, six rows, and its first call."""
    found = []
    for name in nets.ROSTER:
        quantized, x = nets.quantized(name)
        network = quantized.network
        nodes = [n for n in network.module.graph.nodes if n.target is KINDS[kind]]
        found += [(network, x[:6], node) for node in nodes[:1]]
    return found


def arguments(network: Network, node: Node, x: Tensor) -> tuple[Any, ...]:
    """What one call is given in the float network."""
    seen: list[tuple[Any, ...]] = []

    def call(n: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if n is node:
            seen.append(args)
        return default_call(n, args, kwargs)

    with torch.no_grad():
        run(network.module, x, call)
    return seen[0]


@pytest.mark.parametrize("kind", KINDS)
def test_a_network_of_the_deployed_roster_has_it(kind: str):
    """Files, runtime, integers and the reader for C are tested on all of that roster."""
    assert of_kind(kind), f"add a network with {kind} to tests/deploy/nets.py"


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_output_channels_or_tokens(kind: str):
    """With another row c of the weight, channel c of the answer is another one, and no other is."""
    for network, x, node in of_kind(kind):
        layer = next(la for la in network.layers if node.name in la.calls)
        assert layer.kind in {*LAYERS.values(), *TABLES.values()}
        assert network.matrix(layer).shape == (layer.rows, layer.fan_in)
        place = 1 if KINDS[kind] in LAYERS else 0
        args = arguments(network, node, x)
        full = node.target(*args)  # type: ignore[operator]
        for c in range(layer.rows):
            weight = args[place].clone()
            assert weight.shape == layer.shape
            weight[c] += 1
            other = node.target(*args[:place], weight, *args[place + 1 :])  # type: ignore[operator]
            touched = full != other
            if KINDS[kind] in TABLES:
                assert not touched[args[1] != c].any()
                assert touched[args[1] == c].any() or not (args[1] == c).any()
                continue
            others = [
                touched.index_select(axis, torch.tensor([i for i in range(size) if i != c])).any()
                for axis, size in enumerate(full.shape)
                if axis and size == layer.rows
            ]
            assert touched.any() and not all(others)


@pytest.mark.parametrize("kind", KINDS)
def test_multiply_accumulates_are_those_that_torch_counts(kind: str):
    for network, x, _ in of_kind(kind):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            run(network.module, x[:1])
        assert 2 * sum(layer.macs for layer in network.layers) == counter.get_total_flops()
