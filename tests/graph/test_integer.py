"""Networks on bytes equal the fake-quantized networks that they were made from."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import pytest
import torch
from torch import Tensor
from torch_geometric.nn.models import GAT, GCN, GIN, GraphSAGE

from bitwright import BitwrightError
from bitwright.graph import DegreeQuant, Form, Scheme, build, integer
from bitwright.graph.integer import dots, gat, gcn, gin, neighbours, products, sage
from bitwright.graph.integer import network as network_of
from graph.graphs import graph
from mutants import mutated
from small import refused

KINDS = ("gcn", "gin", "sage", "gat")


def check_sums(channels: int) -> None:
    """Sums of codes are a dense float64 product; exact but for the last rounding to float32."""
    g = torch.Generator().manual_seed(0)
    edges = torch.randint(30, (2, 200), generator=g)
    edges = edges[:, edges[1] != 7]  # nobody's target
    factors = torch.randint(256, (edges.shape[1],), generator=g, dtype=torch.uint8)
    codes = torch.randint(-128, 128, (30, products.padded(channels)), generator=g).to(torch.int8)
    dense = torch.zeros(30, 30, dtype=torch.float64)
    dense.index_put_((edges[1], edges[0]), factors.double(), accumulate=True)
    wanted = 0.25 * (dense + 0.5 * torch.eye(30)) @ (codes.double() + 28)[:, :channels]
    near = neighbours.neighbourhoods(edges, 30, factors)
    after = products.affine(channels, None, None, None)
    found = neighbours.summed(codes, (0.25, 100), near, torch.ones(30), after, 0.5)
    torch.testing.assert_close(found.double(), wanted, atol=0, rtol=1e-6)


@pytest.mark.parametrize("channels", [1, 16, 20, 64, 100])
def test_sums_of_codes_are_a_matrix_product(channels: int):
    check_sums(channels)


def test_shifted_zero_points_of_sums_are_seen():
    wrong = mutated("graph.integer.neighbours", "128 - zero", "127 - zero")
    with wrong, pytest.raises(AssertionError):
        check_sums(20)


def test_sums_longer_than_32_bits_hold():
    """40,000 edges of the largest codes and coefficients into one node."""
    count = 40_000
    edges = torch.zeros(2, count, dtype=torch.int64)
    codes = torch.full((2, 16), 127, dtype=torch.int8)
    near = neighbours.neighbourhoods(edges, 2, torch.full((count,), 255, dtype=torch.uint8))
    after = products.affine(16, None, None, None)
    found = neighbours.summed(codes, (1.0, 0), near, torch.ones(2), after)
    assert 255 * 255 * count > 2**31
    torch.testing.assert_close(found[0], torch.full((16,), 255.0 * 255 * count))
    assert not found[1].any()


@pytest.mark.parametrize("by_channel", [False, True])
@pytest.mark.parametrize("width", [16, 32, 64])
def test_without_byte_products_sums_are_the_same(width: int, by_channel: bool):
    """What other processors run, and what this one does, against numpy's integers."""
    rng = np.random.default_rng(0)
    rows = rng.integers(-128, 128, (9, width)).astype(np.int8)
    columns = rng.integers(0, 9, (5 + dots.AHEAD, 4)).astype(np.int32)
    factors = rng.integers(0, 256, (5, width // 4 if by_channel else 1, 4)).astype(np.uint8)
    each = np.repeat(factors, 4 if by_channel else width, axis=1).astype(np.int64)
    wanted = np.einsum("gce,gec->c", each[1:4], rows[columns[1:4]].astype(np.int64))
    words = np.ascontiguousarray(factors).view(np.int32).reshape(5, -1)
    for fast in {False, dots.has_byte_dots()}:
        add: Any = dots.row_sums(width, by_channel, fast)

        @numba.njit
        def run(rows: Any, columns: Any, words: Any, out: Any, add: Any = add) -> None:
            add(rows.ctypes.data, rows.shape[1], columns.ctypes.data, words.ctypes.data, 1, 4,
                out.ctypes.data)  # fmt: skip

        out = np.zeros(width, np.int32)
        run(rows, columns, words, out)
        np.testing.assert_array_equal(out, wanted)


def check_products(inputs: int, outputs: int, coded: bool) -> None:
    """Two layers' products, added, are those in float64; of codes, no more than one level away."""
    g = torch.Generator().manual_seed(0)
    bias = torch.randn(outputs, generator=g)
    after = products.affine(outputs, None, bias, (0.05, 100) if coded else None)
    plain = products.affine(outputs, None, None, None)
    given = [torch.randn(11, inputs + more, generator=g) for more in (0, 30)]
    weights = [torch.randn(outputs, x.shape[1], generator=g) / x.shape[1] ** 0.5 for x in given]
    grids = [(0.025, 90), (0.03, 131)]
    codes = [products.coded(x, grid) for x, grid in zip(given, grids, strict=True)]
    wanted = bias.double()
    for q, weight, (step, zero) in zip(codes, weights, grids, strict=True):
        x = step * (q[:, : weight.shape[1]].double() + 128 - zero)
        scale = weight.abs().amax(1, keepdim=True) / 127
        wanted = wanted + x @ ((weight / scale).round() * scale).double().T
    one = products.product(weights[0], grids[0], after)
    found = one(codes[0], (products.product(weights[1], grids[1], plain), codes[1]))
    if coded:
        wanted = (100 + wanted / 0.05).round().clip(0, 255) - 128
        wide = (found[:, :outputs] - wanted).abs()
        assert float(wide.max()) <= 1 and float(wide.mean()) < 0.01
    else:
        torch.testing.assert_close(found.double(), wanted, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("dots", [True, False])
@pytest.mark.parametrize("coded", [True, False])
@pytest.mark.parametrize("outputs", [7, 16, 20, 64, 100])
def test_joined_products_are_those_of_matrices(
    outputs: int, coded: bool, dots: bool, monkeypatch: pytest.MonkeyPatch
):
    """Rows that are no multiple of four; by the processor's dot products, and by blocks."""
    monkeypatch.setattr(products, "_DOTS", dots and products._DOTS)
    monkeypatch.setattr(products, "BLOCK", 4)
    check_products(50, outputs, coded)


@pytest.mark.parametrize("dots", [True, False])
def test_products_up_to_32_bits_hold_and_longer_ones_are_refused(
    dots: bool, monkeypatch: pytest.MonkeyPatch
):
    """All codes and weights are the largest; one of either sign, whose sums are the largest."""
    monkeypatch.setattr(products, "_DOTS", dots and products._DOTS)
    count = (2**31 - 1) // (255 * 127)
    weight = torch.ones(2, count + 1) * torch.tensor([[1.0], [-1.0]])
    plain = products.affine(2, None, None, None)
    for zero, x in ((0, 1.0), (255, -1.0)):
        held = products.product(weight[:, :count], (1 / 255, zero), plain)
        found = held(products.coded(torch.full((5, count), x), (1 / 255, zero)))
        torch.testing.assert_close(found, (x * count * torch.tensor([1.0, -1.0])).expand(5, 2))
    with refused("a layer of 66312 inputs reach 2,147,514,120", "beyond 32-bit integers"):
        products.product(weight, (1 / 255, 0), plain)


@pytest.mark.skipif(not dots.has_byte_dots(), reason="this processor multiplies by blocks")
@pytest.mark.parametrize(
    ("module", "old", "new"),
    [
        ("products", "- 128 * self.weight", "- 127 * self.weight"),
        ("products", "permute(2, 0, 3, 1)", "permute(2, 0, 1, 3)"),
    ],
)
def test_wrong_joined_products_are_seen(module: str, old: str, new: str):
    with mutated(f"graph.integer.{module}", old, new), pytest.raises(AssertionError):
        check_products(50, 20, False)


def check_network(net: DegreeQuant, x: Tensor, edges: Tensor, **more: Any) -> None:
    """Nearly all numbers agree to 1e-4 of the largest; few hidden codes are one level away.

    A sum between two levels is decided by the order of additions in float. One such level moves a
    result by less than four of 255 steps of the results' range.
    """
    found = integer.on_bytes(net, edges, len(x), **more)(x)
    wanted = net(x, edges, **more).detach()
    step = float(wanted.max() - wanted.min()) / 255
    assert found.shape == wanted.shape
    assert ((found - wanted).abs() < 1e-4 * wanted.abs().max()).float().mean() > 0.85
    assert float((found - wanted).abs().max()) < 4 * step


def network(kind: str, layers: int, hidden: int = 24, **more: Any) -> DegreeQuant:
    x, edges = graph(200)
    form = Form(kind, 6, hidden, 7, layers, **more)
    return DegreeQuant(build(form), Scheme(8, 8), x, edges).eval()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_on_bytes_it_answers_as_trained(kind: str, layers: int):
    check_network(network(kind, layers), *graph(200))


@pytest.mark.parametrize("kind", KINDS)
def test_one_output_has_one_step(kind: str):
    """Of its weights [1, inputs]: one for each input would be float weights, and no product's."""
    x, edges = graph(200)
    form = Form(kind, 6, 16, 1)
    check_network(DegreeQuant(build(form), Scheme(8, 8), x, edges).eval(), x, edges)


@pytest.mark.parametrize("kind", KINDS)
def test_without_byte_products_it_answers_as_trained(kind: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(products, "_DOTS", False)
    check_network(network(kind, 2), *graph(200))


@pytest.mark.parametrize("kind", KINDS)
def test_wide_layers_and_dropped_features(kind: str):
    check_network(network(kind, 2, 96, input_dropout=0.5), *graph(200))


@pytest.mark.parametrize("kind", KINDS)
def test_graphs_with_batch_norms_and_a_readout(kind: str):
    x, edges = graph(200)
    batch = torch.arange(200) // 20
    net: Any = build(Form(kind, 6, 16, 3, 3, graphs=True), seed=1)
    g = torch.Generator().manual_seed(0)
    for module in net.modules():  # statistics that are not those of the start
        if isinstance(module, torch.nn.BatchNorm1d):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.copy_(torch.randn(module.num_features, generator=g) / 4)
            module.running_var.copy_(0.5 + torch.rand(module.num_features, generator=g))
            torch.nn.init.uniform_(module.weight, 0.5, 1.5, generator=g)
            torch.nn.init.normal_(module.bias, std=0.2, generator=g)
    low_bit = DegreeQuant(net, Scheme(8, 8), x, edges, batch=batch).eval()
    check_network(low_bit, x, edges, batch=batch)


@pytest.mark.parametrize(
    ("kind", "module", "old", "new"),
    [
        ("gcn", "gcn", "(weights / steps[edges[1]]).round()", "(weights / steps[edges[1]])"),
        ("gin", "gin", "own = 1 + float(place.conv.eps)", "own = float(place.conv.eps)"),
        ("sage", "sage", "near.counts.clamp(min=1)", "near.counts.clamp(min=2)"),
        ("gat", "gat", "np.float32(self.slope), 128 - zero", "np.float32(self.slope), 127 - zero"),
        ("gat", "gat", "self.slope * whole - peak", "whole - peak"),
        ("sage", "products", "(grid[1] - 128)", "(grid[1] - 127)"),
    ],
)
def test_wrong_variants_are_seen(kind: str, module: str, old: str, new: str):
    net = network(kind, 2)
    maker: Any = {"gcn": gcn, "gin": gin, "sage": sage, "gat": gat}[kind]
    with mutated(f"graph.integer.{module}", old, new), pytest.MonkeyPatch.context() as patch:
        patch.setitem(network_of.KINDS, type(net.net), maker.layer)  # a table holds the old one
        with pytest.raises(AssertionError):
            check_network(net, *graph(200))


def test_attention_far_below_the_largest_score_is_exact():
    """Scores of some targets' neighbours lie 200 below others': their exponentials underflow."""
    x, edges = graph(200)
    x[:150] *= 60
    net: Any = build(Form("gat", 6, 16, 4, 1))
    low_bit = DegreeQuant(net, Scheme(8, 8), x, edges).eval()
    made: Any = integer.on_bytes(low_bit, edges, 200)
    check_network(low_bit, x, edges)
    scores = net.convs[0].lin(x).reshape(200, 8, -1).mul(net.convs[0].att_src).sum(-1)
    assert float(scores.max() - scores.min()) > 100
    assert torch.isfinite(made(x)).all()


@pytest.mark.parametrize(
    "options", [{"improved": True}, {"add_self_loops": False}, {"cached": True}], ids=str
)
def test_the_normalizations_of_gcn(options: dict[str, Any]):
    x, edges = graph(200)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = GCN(6, 16, 2, 4, **options)
    low_bit = DegreeQuant(net, Scheme(8, 8), x, edges).eval()
    check_network(low_bit, x, edges)
    if "cached" in options:
        with pytest.raises(BitwrightError, match="convs/0 is cached and keeps other edges"):
            integer.on_bytes(low_bit, edges[:, 1:], 200)


def test_other_networks_are_refused():
    x, edges = graph()

    def check(net: torch.nn.Module, text: str, scheme: Scheme | None = None) -> None:
        wrapped = DegreeQuant(net, scheme or Scheme(8, 8), x, edges)
        with pytest.raises(BitwrightError, match=text):
            integer.on_bytes(wrapped, edges, len(x))

    check(GCN(6, 8, 2, 4), "bits are 4; on bytes run networks of 8", Scheme(4, 8))
    check(GCN(6, 8, 2, 4, act="tanh"), "has no ReLU")
    check(GIN(6, 8, 2, 4, jk="cat"), "joins its layers")
    check(GIN(6, 8, 2, 4, norm="layer_norm"), "a norm is a LayerNorm; on bytes run batch-norms")
    check(GAT(6, 8, 2, 4, v2=True), "GATv2Conv; on bytes run GATConv")
    check(GCN(6, 8, 2, 4, add_self_loops=False, normalize=False), "convs/0 has normalize=False")
    for kind in (GCN, GIN, GraphSAGE, GAT):
        check(kind(6, 8, 2, 4, flow="target_to_source"), "flow target_to_source; on bytes run")
        check(kind(6, 8, 2, 4, aggr="max"), "convs/0 has the aggregation MaxAggregation")
    check(GraphSAGE(6, 8, 2, 4, aggr="sum"), "SumAggregation .* on bytes run MeanAggregation")
    check(GraphSAGE(6, 8, 2, 4, project=True), "convs/0 is no plain GraphSAGE")
    check(GCN(6, 8, 2, 4).convs[0], "a GCNConv; on bytes run GCN, GIN, GraphSAGE, GAT")


@pytest.mark.parametrize("kind", KINDS)
def test_other_features_are_refused(kind: str):
    """Compiled passes would read behind them."""
    x, edges = graph(200)
    net = integer.on_bytes(network(kind, 2), edges, 200)
    for other in (x[1:], x[:, 1:], x[None], torch.cat([x, x]), torch.cat([x, x], 1), x.double()):
        with refused("this network is for float32 [200, 6]", str(list(other.shape))):
            net(other)


@pytest.mark.parametrize("kind", KINDS)
def test_edges_outside_the_graph_are_refused(kind: str):
    net = network(kind, 2)
    edges = graph(200)[1]
    for other in (edges + 1, edges - 1, edges.int(), edges[0], edges[:1], edges.double()):
        with refused("edge_index is", "use int64 [2, edges] of 0 to 199"):
            integer.on_bytes(net, other, 200)
    with refused("use int64 [2, edges] of 0 to -1"):
        integer.on_bytes(net, edges[:, :0], 0)


def test_graphs_outside_the_batch_are_refused():
    x, edges = graph(200)
    batch = torch.arange(200) // 20
    net = build(Form("gcn", 6, 16, 3, graphs=True))
    low_bit = DegreeQuant(net, Scheme(8, 8), x, edges, batch=batch).eval()
    for other in (batch - 1, batch + 191, batch[1:], batch.double()):
        with refused("batch is", "use int64 [200] of 0 to 199"):
            integer.on_bytes(low_bit, edges, 200, other)
