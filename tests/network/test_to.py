"""A network on another device: every tensor of the graph moves, the original stays."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bitwright.network import build
from bitwright.network.capture import attribute


class Created(nn.Module):
    """A buffer, and a tensor that the graph itself creates."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3)
        self.register_buffer("shift", torch.randn(3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x) + self.shift
        return y + torch.arange(y.shape[-1], device=x.device, dtype=y.dtype)


def test_everything_moves_and_the_original_stays() -> None:
    network = build(Created().eval(), torch.randn(4, 2, 6, 6))
    moved = network.to("meta")
    tensors = [n.target for n in moved.module.graph.nodes if n.op == "get_attr"]
    assert len(tensors) >= 2
    assert all(attribute(moved.module, name).is_meta for name in tensors)
    assert not any(attribute(network.module, name).is_meta for name in tensors)
    created = [n.kwargs["device"] for n in moved.module.graph.nodes if "device" in n.kwargs]
    assert all(place == torch.device("meta") for place in created)
    assert moved.device.type == "meta" and network.device.type == "cpu"
    assert moved.layers == network.layers and moved.edges == network.edges
    assert network.to("cpu") is network
    assert moved.module(torch.empty(4, 2, 6, 6, device="meta")).shape == (4, 3, 4, 4)
