"""A small encoder of tokens: embedding, attention, layer norm and GELU around integer matrices."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bitwright.deploy import agree, artefact, onnx_file, runtime, verify
from bitwright.network import build
from bitwright.quantize import Quantized, calibrate, round_weights, weight_tables


class Block(nn.Module):
    def __init__(self, width: int, inner: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = (
            f(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for f in (self.query, self.key, self.value)
        )
        seen = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = self.norm1(x + self.out(seen.transpose(1, 2).flatten(2)))
        return self.norm2(x + self.down(F.gelu(self.up(x))))


class Encoder(nn.Module):
    """Token ids, 0 for padding -> classes."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(50, 16, padding_idx=0), nn.Embedding(12, 16)
        self.norm = nn.LayerNorm(16)
        self.blocks = nn.ModuleList(Block(16, 32, 2) for _ in range(2))
        self.head = nn.Linear(16, 3)

    def forward(self, ids: Tensor) -> Tensor:
        mask = ids != 0
        x = self.norm(self.words(ids) + self.places(torch.arange(ids.shape[1])))
        for block in self.blocks:
            x = block(x, mask[:, None, None, :])
        weight = mask[..., None].to(x.dtype)
        return self.head((x * weight).sum(1) / weight.sum(1))


@pytest.fixture(scope="module")
def encoder() -> tuple[Quantized, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Encoder().eval()
    ids = torch.randint(1, 50, (64, 12), generator=torch.Generator().manual_seed(1))
    ids[::3, 7:] = 0
    network = build(model, ids)
    rng = np.random.default_rng(0)
    widths = {la.name: rng.integers(1, 9, la.rows) for la in network.layers}
    layers = round_weights(network, weight_tables(network), widths)
    return Quantized(network, layers, calibrate(network, ids[:32])), ids


def network_edges(quantized: Quantized) -> list[str]:
    return [e.name for e in quantized.network.edges if e.group in quantized.edges]


def test_every_linear_layer_runs_on_integers(encoder: tuple[Quantized, Tensor], tmp_path: Path):
    quantized, ids = encoder
    path, stored = tmp_path / "model.onnx", tmp_path / "model.safetensors"
    onnx_file.save(quantized, path)
    artefact.save(quantized, stored, {})
    loaded = artefact.load(stored).quantized
    assert not agree(quantized, loaded, ids)
    found = verify(loaded, path, ids)
    assert found.tensors == 2 + len(network_edges(quantized))  # two lookups, by their bits
    assert found.ok and found.integer_linears == found.linears == 13, found
    assert found.operations["QGemm"] == 13 and found.operations["Gelu"] == 2
    assert found.operations.get("MatMul", 0) + found.operations["FusedMatMul"] == 4  # attention
    for count in (1, 5):  # a free batch
        outputs = runtime.outputs(runtime.session(path), ids[:count])
        assert outputs.shape == (count, 3)


def test_a_table_stays_in_bytes(encoder: tuple[Quantized, Tensor], tmp_path: Path):
    """The runtime gathers int8 rows; a table of float32 is nowhere in what it executes."""
    quantized, _ = encoder
    path, optimized = tmp_path / "model.onnx", tmp_path / "optimized.onnx"
    onnx_file.save(quantized, path)
    runtime.session(path, optimized=optimized)
    graph = onnx.load(optimized).graph
    tables = [t for t in graph.initializer if list(t.dims) == [50, 16]]
    assert [t.data_type for t in tables] == [onnx.TensorProto.INT8]
    gathers = [n for n in graph.node if n.op_type == "Gather" and n.input[0] == tables[0].name]
    assert len(gathers) == 1


def test_a_wrong_row_is_found(encoder: tuple[Quantized, Tensor], tmp_path: Path):
    """One code of one token, one step of another: each is told with its lookup and its place."""
    quantized, ids = encoder
    path = tmp_path / "model.onnx"
    onnx_file.save(quantized, path)
    stored = quantized.layers["words"]
    token, other = (int(ids[i, 2]) for i in (0, 1))
    codes, scale = stored.codes.clone(), stored.grid.scale.clone()
    codes[token, 5] ^= 1
    scale[other] *= 1 + 2**-10
    for changed in (
        replace(stored, codes=codes),
        replace(stored, grid=replace(stored.grid, scale=scale)),
    ):
        wrong = replace(quantized, layers={**quantized.layers, "words": changed})
        first = verify(wrong, path, ids).differing[0]
        assert first.layer == "words" and first.name == "embedding.rows" and not first.reason


def test_a_difference_names_layer_index_and_values(encoder: tuple[Quantized, Tensor]):
    quantized, ids = encoder
    name = "blocks.0.up"
    stored = quantized.layers[name]
    codes = stored.codes.clone()
    codes[3] = 2 ** int(stored.grid.bits[3]) - 1 - codes[3]
    other = replace(quantized, layers={**quantized.layers, name: replace(stored, codes=codes)})
    found = agree(quantized, other, ids)
    first = found[0]
    assert first.name == "gelu" and first.where[-1] == 3 and len(first.where) == 3
    assert first.expected != first.found and "computed in float32" in first.reason
    assert len(found) == 1  # what follows is the same of the same
    assert first.name in str(first) and f"{first.expected} expected" in str(first)
    assert not agree(quantized, quantized, ids)
