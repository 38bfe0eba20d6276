"""The wrapper against dense algebra, on batches, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.data import Batch, Data
from torch_geometric.nn import GCNConv

from bitwright import BitwrightError
from bitwright.graph import DegreeQuant, Scheme
from graph.graphs import graph, net
from mutants import mutated


def nearest(x: Tensor, low: float, high: float, bits: int) -> Tensor:
    """The nearest of the levels between low and high, by looking at each."""
    step = (high - low) / (2**bits - 1)
    levels = step * (torch.arange(2**bits, dtype=torch.float64) + round(low / step))
    return levels[(x.double()[..., None] - levels).abs().argmin(-1)]


def dense(conv: GCNConv, x: Tensor, edges: Tensor, bits: int) -> Tensor:
    """GCN in matrices of float64: Q(Â) Q(Q(x) Q(W)ᵀ) + b, Â and W by row, ranges full."""
    n, top = len(x), 2 ** (bits - 1) - 1
    a = torch.eye(n, dtype=torch.float64)
    a[edges[1], edges[0]] = 1.0
    scale = a.sum(1).rsqrt()
    a = scale[:, None] * a * scale
    a_step = a.amax(1, keepdim=True) / (2**bits - 1)
    w = conv.lin.weight.detach().double()
    w_step = w.abs().amax(1, keepdim=True) / top
    low_x = nearest(x, min(float(x.min()), 0), max(float(x.max()), 0), bits)
    h = low_x @ ((w / w_step).round() * w_step).T
    low_h = nearest(h, min(float(h.min()), 0), max(float(h.max()), 0), bits)
    return ((a / a_step).round() * a_step) @ low_h + conv.bias.detach().double()


def check_dense(bits: int) -> None:
    x, edges = graph()
    torch.manual_seed(0)
    conv = GCNConv(6, 5)
    torch.nn.init.normal_(conv.bias)
    found = DegreeQuant(conv, Scheme(bits, bits, (0, 0), 0.0), x, edges).eval()
    torch.testing.assert_close(
        found(x, edges).double(), dense(conv, x, edges, bits), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_it_is_the_dense_formula(bits: int):
    check_dense(bits)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"amax"', '"sum"'),
        ("else 2**bits - 1\n    index", "else 2 ** (bits - 1)\n    index"),
        ("2 ** (bits - 1) - 1\n    return (weight", "2 ** (bits - 1)\n    return (weight"),
    ],
)
def test_other_steps_are_seen(old: str, new: str):
    with mutated("graph.weights", old, new), pytest.raises(AssertionError):
        check_dense(4)


def test_coefficients_of_a_hub_keep_their_bits():
    from bitwright.graph.weights import round_edges

    share = torch.cat([torch.full((1000,), 1e-3), torch.tensor([0.5, 0.5])])
    targets = torch.cat([torch.zeros(1000, dtype=torch.int64), torch.ones(2, dtype=torch.int64)])
    torch.testing.assert_close(round_edges(share, targets, 3, 4), share)
    signed = round_edges(-share, targets, 3, 4)
    torch.testing.assert_close(signed, -share)


def test_protected_rows_alone_stay():
    x, edges = graph()
    found = DegreeQuant(net("gcn"), Scheme(3, 3, (0.2, 0.8)), x, edges).train()
    inputs = []
    found.net.first.register_forward_hook(lambda m, args, out: inputs.append(args[0]))
    different = []
    for _ in range(100):
        found(x, edges)
        different.append((inputs[-1] == x).all(1))
    share = torch.stack(different).float().mean(0)
    degrees = torch.bincount(edges[1], minlength=len(x))
    wanted = torch.tensor([0.2 + 0.6 * float((degrees <= d).float().mean()) for d in degrees])
    error = (wanted * (1 - wanted) / 100).sqrt()
    assert ((share - wanted).abs() <= 4.5 * error).all()


class Pooled(nn.Module):
    """Takes a whole `Data`."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = net("gin"), nn.Linear(3, 2)

    def forward(self, data: Data) -> Tensor:
        hidden = self.body(data.x, data.edge_index)
        sums = hidden.new_zeros(data.num_graphs, 3).index_add(0, data.batch, hidden)
        found: Tensor = self.head(sums)
        return found


def test_a_batch_is_its_graphs():
    graphs = [Data(x=x, edge_index=e) for x, e in (graph(20, 1), graph(30, 2), graph(25, 3))]
    whole = Batch.from_data_list(graphs)
    found = DegreeQuant(Pooled(), Scheme(8, 8, (0.1, 0.9)), whole).eval()
    one_by_one = torch.cat([found(Batch.from_data_list([g])) for g in graphs])
    torch.testing.assert_close(found(whole), one_by_one, atol=1e-5, rtol=1e-5)
    assert found.train()(whole).shape == (3, 2)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"bits": 1}, "bits is 1; use 2 to 8"),
        ({"weight_bits": 9}, "weight_bits is 9"),
        ({"protect": (0.5, 0.1)}, r"protect is 0.5:0.1; use 0 <= low <= high <= 1"),
        ({"percentile": 0.5}, "percentile is 0.5"),
        ({"momentum": 0.0}, "momentum is 0.0"),
    ],
)
def test_a_scheme_that_is_none_is_refused(options: dict, says: str):
    with pytest.raises(BitwrightError, match=says):
        Scheme(**options)


def test_networks_and_graphs_that_do_not_fit_are_refused():
    x, edges = graph()
    with pytest.raises(BitwrightError, match="flow nowhere"):
        DegreeQuant(nn.Linear(6, 2), Scheme(), x)
    with pytest.raises(BitwrightError, match="has no shape yet"):
        DegreeQuant(GCNConv(-1, 4), Scheme(), x, edges)
    found = DegreeQuant(net("gcn"), Scheme(), x, edges)
    adjacency = torch.sparse_coo_tensor(
        edges, torch.ones(edges.shape[1]), (40, 40), check_invariants=True
    )
    with pytest.raises(BitwrightError, match=r"give a tensor \[2, edges\]"):
        found(x, adjacency)
    with pytest.raises(BitwrightError, match="give the features of nodes"):
        found(None, edges)
