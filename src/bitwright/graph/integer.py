"""GCN on bytes: int8 products in 32 bits, and sums over neighbours that read bytes.

A layer `Q(Â) Q(x̂ Ŵᵀ) + b` is one matrix product of int8 in int32, one pass that rounds it to the
grid of the messages, and FBGEMM's embedding bag of byte rows, whose bags are neighbourhoods:
`Σ_j Q(Â)_ij · s (q_j − z)`. It reads a quarter of the bytes that float features have, which is what
sums over neighbours wait for, and adds in float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch_geometric.nn.conv.gcn_conv import gcn_norm
from torch_geometric.nn.models import GCN

from bitwright.errors import BitwrightError
from bitwright.graph.degree_quant import DegreeQuant
from bitwright.graph.kernels import to_codes, to_rows
from bitwright.graph.weights import round_edges, weight_steps

#: nodes whose sums of 64 channels take a quarter of a megabyte
_BLOCK = 1024


@dataclass(frozen=True)
class Neighbourhoods:
    """Coefficients of edges by target.

    Attributes:
        starts: int32 [nodes], the first edge into each.
        columns: int32 [edges], sources.
        coefficients: float32 [edges].
    """

    starts: Tensor
    columns: Tensor
    coefficients: Tensor


@dataclass(frozen=True)
class _Layer:
    """One layer: weights int8 [inputs, outputs], their sums by output, scales of products."""

    weight: Tensor
    less: Tensor
    scale: Tensor
    bias: Tensor
    inputs: tuple[float, int]
    messages: tuple[float, int]


@dataclass(frozen=True)
class ByteGCN:
    """A trained GCN, called with features float32 [nodes, inputs] of the graph it was made for."""

    layers: tuple[_Layer, ...]
    near: Neighbourhoods

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        """Logits float32 [nodes, classes]."""
        bias = torch.zeros(x.shape[1])
        for layer in self.layers:
            x, bias = sum_rows(_messages(x, bias, layer), self.near), layer.bias
        return x.add_(bias)


def neighbourhoods(edge_index: Tensor, coefficients: Tensor, nodes: int) -> Neighbourhoods:
    """Edges [2, edges] from sources to targets, and their coefficients, sorted by target."""
    order = edge_index[1].argsort(stable=True)
    counts = torch.bincount(edge_index[1], minlength=nodes)
    return Neighbourhoods(
        (counts.cumsum(0) - counts).int(), edge_index[0][order].int(), coefficients[order]
    )


def byte_rows(codes: Tensor, step: float, zero: int) -> Tensor:
    """Rows for :func:`sum_rows` of codes uint8 [nodes, channels] that mean `step (q − zero)`."""
    return torch.cat([codes, _tail(step, zero).expand(len(codes), 8)], dim=1)


def sum_rows(rows: Tensor, near: Neighbourhoods) -> Tensor:
    """`Σ_j c_ij x_j` of what byte rows stand for, float32 [nodes, channels]."""
    found: Tensor = torch.ops.quantized.embedding_bag_byte_rowwise_offsets(
        rows, near.columns, near.starts, False, 0, False, near.coefficients, None, False
    )
    return found


def _messages(x: Tensor, bias: Tensor, layer: _Layer) -> Tensor:
    """Byte rows of the layer's products with x + bias, float32 [nodes, inputs].

    Levels of ReLU's results begin at zero, so that clipping to them is ReLU. Blocks of nodes stay
    in the processor's cache from floats to rows.
    """
    (step, zero), (out_step, out_zero) = layer.inputs, layer.messages
    given = (bias.numpy(), np.float32(1) / np.float32(step), np.float32(zero))
    ends = (layer.less.numpy(), layer.scale.numpy(), np.float32(1) / np.float32(out_step),
            np.float32(out_zero), _tail(out_step, out_zero).numpy())  # fmt: skip
    rows = torch.empty(len(x), layer.weight.shape[1] + 8, dtype=torch.uint8)
    for part, out in zip(x.split(_BLOCK), rows.split(_BLOCK), strict=True):
        codes = torch.empty(part.shape, dtype=torch.int8)
        to_codes(part.numpy(), *given, codes.numpy())
        to_rows(torch._int_mm(codes, layer.weight).numpy(), *ends, out.numpy())
    return rows


def _tail(step: float, zero: int) -> Tensor:
    """Where the kernel looks for a row's step and least value, uint8 [8]."""
    return torch.tensor([step, -zero * step], dtype=torch.float32).view(torch.uint8)


def byte_gcn(net: DegreeQuant, edge_index: Tensor, nodes: int) -> ByteGCN:
    """The trained network `net` for one graph.

    Raises:
        BitwrightError: it is no plain GCN of PyTorch Geometric, or has not 8 bits everywhere.
    """
    body = net.net
    plain = isinstance(body, GCN) and body.norm is None and body.jk_mode is None
    if not plain or not isinstance(body.act, nn.ReLU):
        raise BitwrightError(
            f"the network is a {type(body).__name__}; on bytes run GCNs with ReLU, without norms"
        )
    if (net.scheme.bits, net.scheme.weight_bits) != (8, 8):
        raise BitwrightError(f"bits are {net.scheme.bits}; on bytes run networks of 8")
    edges, weights = gcn_norm(edge_index, None, nodes)
    rounded = round_edges(weights, edges[1], nodes, 8)
    layers = []
    convs: Any = body.convs
    for i, conv in enumerate(convs):
        weight = conv.lin.weight.detach()
        steps, _ = weight_steps(weight, 8)
        codes = (weight / steps[:, None]).round().to(torch.int8)
        inputs = _grid(net, "dropout" if i else "convs/0")
        less = (inputs[1] - 128) * codes.sum(1, dtype=torch.int32)
        layers.append(
            _Layer(
                codes.T.contiguous(), less, inputs[0] * steps, conv.bias.detach(), inputs,
                _grid(net, f"convs/{i}:x"),
            )
        )  # fmt: skip
    return ByteGCN(tuple(layers), neighbourhoods(edges, rounded, nodes))


def _grid(net: DegreeQuant, site: str) -> tuple[float, int]:
    found: Any = net.ranges[site]
    step, zero = found.grid(8)
    return float(step), int(zero)
