"""Trained networks on bytes beside float ones on the same sorted edges, one thread.

The peer is the faster of two: FBGEMM's float embedding bag over the same neighbourhoods (of GAT, a
compiled loop with the same attention), and torch's sparse CSR.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from degree_quant_costs import in_turns, power_law
from degree_quant_float_gat import float_gat
from harness import Rows
from torch import Tensor
from torch.nn import functional
from torch_geometric.nn.conv.gcn_conv import gcn_norm

from bitwright.graph import DegreeQuant, Form, Scheme, build
from bitwright.graph.integer import on_bytes
from bitwright.graph.integer.neighbours import neighbourhoods, summed
from bitwright.graph.integer.products import affine

Network = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class FloatEdges:
    """Edges by target with coefficients, for both peers."""

    starts: Tensor
    columns: Tensor
    values: Tensor
    matrix: Tensor

    def bag(self, x: Tensor) -> Tensor:
        """Sums by FBGEMM's embedding bag."""
        return functional.embedding_bag(
            self.columns, x, self.starts, mode="sum", per_sample_weights=self.values
        )

    def csr(self, x: Tensor) -> Tensor:
        """Sums by torch's sparse CSR matrix."""
        return self.matrix @ x


def float_edges(edges: Tensor, values: Tensor, nodes: int) -> FloatEdges:
    """Edges [2, edges] with coefficients float32 [edges]."""
    order = edges[1].argsort(stable=True)
    ends = torch.zeros(nodes + 1, dtype=torch.int64)
    ends[1:] = torch.bincount(edges[1], minlength=nodes).cumsum(0)
    columns, values = edges[0][order].int(), values[order]
    matrix = torch.sparse_csr_tensor(
        ends.int(), columns, values, (nodes, nodes), check_invariants=False
    )
    return FloatEdges(ends[:-1].int(), columns, values, matrix)


def inference(rows: Rows, quick: bool) -> None:
    """Sums over neighbours, and whole networks of two layers, on bytes and in float."""
    torch.set_num_threads(1)
    sizes = [(10_000, 100_000)] if quick else [(100_000, 1_000_000), (1_000_000, 10_000_000)]
    for i, (nodes, count) in enumerate(sizes):
        edges = power_law(nodes, count)
        for channels in (64,) if quick or i else (16, 64, 128):
            _sums(rows, quick, edges, nodes, channels)
        for kind in ("gcn",) if i else ("gcn", "gin", "sage", "gat"):
            _network(rows, quick, kind, edges, nodes)


def _sums(rows: Rows, quick: bool, edges: Tensor, nodes: int, channels: int) -> None:
    """Sums over neighbours alone, coefficients in 8 bits as GCN's, results in float."""
    g, count = torch.Generator().manual_seed(0), edges.shape[1]
    codes = torch.randint(-128, 128, (nodes, channels), generator=g, dtype=torch.int8)
    factors = torch.randint(1, 256, (count,), generator=g, dtype=torch.uint8)
    near, ones = neighbourhoods(edges, nodes, factors), torch.ones(nodes)
    peers = float_edges(edges, factors.float(), nodes)
    x, after = 0.1 * (codes.float() + 28), affine(channels, None, None, None)
    found = in_turns(
        {
            "bytes": lambda: summed(codes, (0.1, 100), near, ones, after),
            "bag": lambda: peers.bag(x),
            "csr": lambda: peers.csr(x),
        },
        3 if quick else 9,
    )
    _add(rows, f"sums over {count:,} edges, {channels} channels: float over bytes", found)


def _network(rows: Rows, quick: bool, kind: str, edges: Tensor, nodes: int) -> None:
    """Two layers, 64 channels everywhere."""
    x = torch.rand(nodes, 64, generator=torch.Generator().manual_seed(0))
    net: Any = build(Form(kind, 64, 64, 64, dropout=0.0)).eval()
    low_bit = DegreeQuant(net, Scheme(8, 8), x, edges).eval()
    on = on_bytes(low_bit, edges, nodes)
    with torch.no_grad():
        found, wanted, whole = on(x), low_bit(x, edges), net(x, edges)
        peers = PEERS[kind](net, edges, nodes)
        for peer in peers.values():
            torch.testing.assert_close(peer(x), whole, atol=1e-3, rtol=1e-3)
        actions = {"bytes": on, **peers}
        taken = in_turns({n: lambda a=a: a(x) for n, a in actions.items()}, 3 if quick else 9)
    _add(
        rows, f"{kind} of 2 layers, 64 channels, {edges.shape[1]:,} edges: float over bytes", taken,
        same=float((found.argmax(1) == wanted.argmax(1)).float().mean()),
    )  # fmt: skip


def _add(rows: Rows, name: str, taken: dict[str, float], **more: object) -> None:
    best = min((n for n in taken if n != "bytes"), key=lambda n: taken[n])
    gain = taken[best] / taken["bytes"]
    seconds = {f"{n}_s": round(t, 5) for n, t in taken.items()}
    rows.add(name, gain, ">= 2", gain >= 2, f"the faster float ({best}), seconds", taken[best],
             **more, **seconds)  # fmt: skip


def _gcn(net: Any, edges: Tensor, nodes: int) -> dict[str, Network]:
    near = float_edges(*gcn_norm(edges, None, nodes), nodes)

    def answer(x: Tensor, sums: Network) -> Tensor:
        for i, conv in enumerate(net.convs):
            x = x.relu_() if i else x
            x = sums(x @ conv.lin.weight.T).add_(conv.bias)
        return x

    return _both(near, answer)


def _gin(net: Any, edges: Tensor, nodes: int) -> dict[str, Network]:
    loops = torch.arange(nodes).expand(2, -1)
    near = float_edges(torch.cat([edges, loops], 1), torch.ones(edges.shape[1] + nodes), nodes)

    def answer(x: Tensor, sums: Network) -> Tensor:
        for i, conv in enumerate(net.convs):
            first, last = conv.nn.lins
            x = last(first(sums(x.relu_() if i else x)).relu_())
        return x

    return _both(near, answer)


def _sage(net: Any, edges: Tensor, nodes: int) -> dict[str, Network]:
    counts = torch.bincount(edges[1], minlength=nodes)
    near = float_edges(edges, 1 / counts[edges[1]], nodes)

    def answer(x: Tensor, sums: Network) -> Tensor:
        for i, conv in enumerate(net.convs):
            x = x.relu_() if i else x
            x = conv.lin_l(sums(x)).addmm_(x, conv.lin_r.weight.T)
        return x

    return _both(near, answer)


def _gat(net: Any, edges: Tensor, nodes: int) -> dict[str, Network]:
    return float_gat(net, edges, nodes, float_edges)


def _both(near: FloatEdges, answer: Callable[[Tensor, Network], Tensor]) -> dict[str, Network]:
    return {"bag": lambda x: answer(x, near.bag), "csr": lambda x: answer(x, near.csr)}


PEERS = {"gcn": _gcn, "gin": _gin, "sage": _sage, "gat": _gat}
