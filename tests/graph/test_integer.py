"""GCN on bytes equals the network it was made from."""

from __future__ import annotations

import pytest
import torch
from torch_geometric.nn.models import GCN, GIN

from bitwright import BitwrightError
from bitwright.graph import DegreeQuant, Scheme, integer
from bitwright.graph.integer import byte_gcn
from graph.graphs import graph
from mutants import mutated


def check_sums() -> None:
    g = torch.Generator().manual_seed(0)
    edges = torch.randint(30, (2, 200), generator=g)
    edges = edges[:, edges[1] != 7]  # nobody's target
    weights = torch.randn(edges.shape[1], generator=g)
    codes = torch.randint(256, (30, 20), generator=g, dtype=torch.uint8)
    dense = torch.zeros(30, 30, dtype=torch.float64)
    dense.index_put_((edges[1], edges[0]), weights.double(), accumulate=True)
    wanted = dense @ (0.25 * (codes.double() - 100))
    near = integer.neighbourhoods(edges, weights, 30)
    found = integer.sum_rows(integer.byte_rows(codes, 0.25, 100), near)
    torch.testing.assert_close(found.double(), wanted, atol=1e-3, rtol=1e-5)


def test_sums_of_bytes_are_a_matrix_product():
    check_sums()
    with mutated("graph.integer", "-zero * step", "zero * step"), pytest.raises(AssertionError):
        check_sums()


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_on_bytes_it_answers_as_trained(layers: int):
    x, edges = graph(200)
    torch.manual_seed(0)
    net = DegreeQuant(GCN(6, 16, layers, 4), Scheme(8, 8), x, edges).eval()
    found = byte_gcn(net, edges, len(x))(x)
    wanted = net(x, edges).detach()
    # a sum that lies between two levels may go to the other one; two in a row seldom
    step = float(wanted.max() - wanted.min()) / 255
    assert ((found - wanted).abs() < 1e-4 * wanted.abs().max()).float().mean() > 0.9
    assert float((found - wanted).abs().max()) < 4 * step
    assert (found.argmax(1) == wanted.argmax(1)).float().mean() > 0.98


def test_other_networks_are_refused():
    x, edges = graph()
    gin = DegreeQuant(GIN(6, 8, 2, 4), Scheme(8, 8), x, edges)
    with pytest.raises(BitwrightError, match="the network is a GIN; on bytes run GCNs"):
        byte_gcn(gin, edges, len(x))
    narrow = DegreeQuant(GCN(6, 8, 2, 4), Scheme(4, 8), x, edges)
    with pytest.raises(BitwrightError, match="bits are 4; on bytes run networks of 8"):
        byte_gcn(narrow, edges, len(x))
