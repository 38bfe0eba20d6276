"""GAT in float on edges sorted by target: a compiled loop like that on bytes, and sparse CSR."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from torch import Tensor
from torch_geometric.utils import add_self_loops, remove_self_loops

from bitwright.graph.integer.attention import _attend


@intrinsic
def _prefetch(context: Any, address: Any) -> Any:
    """Ask for the cache line at an address, as the loops on bytes do."""

    def emit(context: Any, b: Any, signature: Any, given: Any) -> Any:
        pointer, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        ask = cgutils.get_or_insert_function(
            b.module, ir.FunctionType(ir.VoidType(), [pointer, number, number, number]),
            "llvm.prefetch.p0",
        )  # fmt: skip
        hints = (ir.Constant(number, n) for n in (0, 3, 1))
        b.call(ask, [b.inttoptr(given[0], pointer), *hints])
        return context.get_dummy_value()

    return types.void(types.uintp), emit


@numba.njit(nogil=True, error_model="numpy", fastmath={"contract"})
def _attend_and_sum(
    x: Any, starts: Any, columns: Any, scores: Any, powers: Any, slope: Any, out: Any
) -> None:
    """`Σ_j α_ij x_j` of heads side by side, float32 [nodes, channels]."""
    heads, channels = scores.shape[2], x.shape[1]
    each, most = channels // heads, 0
    for i in range(len(starts) - 1):
        most = max(most, starts[i + 1] - starts[i])
    found = np.empty((most, heads), np.float32)
    peak, total = np.empty(heads, np.float32), np.empty(heads, np.float32)
    factor, sums = np.empty(channels, np.float32), np.empty(channels, np.float32)
    end = len(columns) - 1
    for i in range(len(starts) - 1):
        first, count = starts[i], starts[i + 1] - starts[i]
        _attend(i, count, columns[first:], scores, powers, slope, found, peak, total)
        sums[:] = 0
        for e in range(count):
            later = columns[min(first + e + 16, end)]
            for line in range(0, channels, 16):
                _prefetch(x.ctypes.data + 4 * (np.int64(later) * channels + line))
            for h in range(heads):
                for c in range(h * each, (h + 1) * each):
                    factor[c] = found[e, h]
            j = columns[first + e]
            for c in range(channels):
                sums[c] += factor[c] * x[j, c]
        for h in range(heads):
            for c in range(h * each, (h + 1) * each):
                out[i, c] = sums[c] / total[h]


def float_gat(
    net: Any, edges: Tensor, nodes: int, sorted_edges: Callable[..., Any]
) -> dict[str, Callable[[Tensor], Tensor]]:
    """Both float networks."""
    edges, _ = remove_self_loops(edges)
    edges, _ = add_self_loops(edges, num_nodes=nodes)
    near = sorted_edges(edges, torch.ones(edges.shape[1]), nodes)
    ends = torch.cat([near.starts.long(), torch.tensor([edges.shape[1]])])
    targets = torch.arange(nodes).repeat_interleave(ends.diff())
    columns = near.columns.long()

    def loop(x: Tensor, source: Tensor, target: Tensor, slope: float) -> Tensor:
        most = source.amax(0)
        whole = target + most
        peak = torch.maximum(whole, slope * whole)
        powers = torch.stack([
            torch.cat([source - most, slope * (source - most)], 1),
            torch.cat([whole - peak, slope * whole - peak], 1),
        ]).exp_()  # fmt: skip
        out = torch.empty_like(x)
        _attend_and_sum(
            x.numpy(), ends.numpy(), near.columns.numpy(), torch.stack([source, target]).numpy(),
            powers.numpy(), np.float32(slope), out.numpy(),
        )  # fmt: skip
        return out

    def csr(x: Tensor, source: Tensor, target: Tensor, slope: float) -> Tensor:
        score = torch.nn.functional.leaky_relu(source[columns] + target[targets], slope)
        index = targets[:, None].expand_as(score)
        peak = torch.zeros_like(source).scatter_reduce(0, index, score, "amax", include_self=False)
        score = (score - peak[targets]).exp_()
        total = torch.zeros_like(source).scatter_add(0, index, score)
        parts = x.reshape(nodes, source.shape[1], -1)
        sums = [
            torch.sparse_csr_tensor(
                ends.int(), near.columns, score[:, h].contiguous(), (nodes, nodes),
                check_invariants=False,
            ) @ parts[:, h].contiguous() / total[:, h : h + 1]
            for h in range(source.shape[1])
        ]  # fmt: skip
        return torch.stack(sums, 1).flatten(1)

    def answer(x: Tensor, attend: Callable[..., Tensor]) -> Tensor:
        for i, conv in enumerate(net.convs):
            x = (x.relu_() if i else x) @ conv.lin.weight.T
            parts = x.reshape(nodes, conv.heads, -1)
            source, target = ((parts * att).sum(-1) for att in (conv.att_src, conv.att_dst))
            x = attend(x, source, target, conv.negative_slope)
            if not conv.concat:
                x = x.reshape(nodes, conv.heads, -1).mean(1)
            x = x.add_(conv.bias)
        return x

    return {"loop": lambda x: answer(x, loop), "csr": lambda x: answer(x, csr)}
