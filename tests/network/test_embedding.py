"""Embeddings as layers: what is captured, stored and refused."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor, nn

from bitwright.errors import BitwrightError
from bitwright.network import build, run
from bitwright.network.program import from_json, to_json
from bitwright.quantize.tokens import token_counts
from small import Fn


class Places(nn.Module):
    """Tokens with padding, positions that every row shares, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(9, 6, padding_idx=0), nn.Embedding(7, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids) + self.places(torch.arange(ids.shape[1]))
        return self.head(torch.tanh(x).mean(1))


IDS = torch.tensor([[0, 1, 1, 5], [5, 2, 0, 0], [8, 8, 8, 8]])


def test_a_table_is_a_layer_whose_channels_are_its_rows():
    torch.manual_seed(0)
    model = Places().eval()
    network = build(model, IDS)
    words, places, head = network.layers
    assert (words.kind, words.shape, words.bias, words.macs) == ("embedding", (9, 6), "", 0)
    assert (places.name, places.rows, head.kind) == ("places", 7, "linear")
    assert not network.skipped and len(network.bias(words)) == 0
    node = next(n for n in network.module.graph.nodes if n.name == words.calls[0])
    assert node.args[2] == 0  # the padding's row is still not trained
    torch.testing.assert_close(run(network.module, IDS), model(IDS))
    program = json.loads(json.dumps(to_json(network.module)))
    tensors = {n.target: network.tensor(n.target) for n in network.module.graph.nodes
               if n.op == "get_attr"}  # fmt: skip
    again = from_json(program, tensors, network.input_shape)
    assert torch.equal(run(again, IDS), run(network.module, IDS))


def test_tokens_are_counted_by_the_rows_that_hold_them():
    network = build(Places(), IDS)
    counts = token_counts(network, IDS, chunk=2)
    assert counts["words"].tolist() == [2, 1, 1, 0, 0, 2, 0, 0, 1]
    assert counts["places"].tolist() == [3, 3, 3, 3, 0, 0, 0]  # of every row


def test_a_table_looked_up_twice_is_one_layer():
    model = Fn(lambda m, x: m.head(m.e(x).mean(1) * m.e(x + 1).sum(1)),
               e=nn.Embedding(10, 6), head=nn.Linear(6, 3))  # fmt: skip
    table, _ = build(model, IDS).layers
    assert len(table.calls) == 2


def test_a_table_tied_to_the_head_is_that_linear_layer():
    model = Fn(lambda m, x: nn.functional.linear(torch.tanh(m.e(x).mean(1)), m.e.weight, m.b),
               e=nn.Embedding(10, 6), b=torch.zeros(10))  # fmt: skip
    (layer,) = build(model, IDS).layers
    assert (layer.kind, layer.bias, layer.rows) == ("linear", "b", 10)
    assert [name.split("_")[0] for name in layer.calls] == ["linear", "embedding"]


def test_a_table_read_otherwise_is_refused():
    model = Fn(lambda m, x: torch.tanh(m.e(x).mean(1)) @ m.e.weight.T, e=nn.Embedding(10, 6))
    with pytest.raises(BitwrightError, match="--skip e"):
        build(model, IDS)
