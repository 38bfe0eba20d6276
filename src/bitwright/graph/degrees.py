"""Protective masks by in-degree: Degree-Quant (Tailor et al., arXiv 2008.05000), section 3.2.

Nodes into which much is summed are where rounding hurts the gradients most, so they are left in
float more often while training.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch_geometric.utils import degree


def in_degrees(targets: Tensor, nodes: int) -> Tensor:
    """How many edges end in each node, int64 [nodes]; `targets` int64 [edges] are their ends."""
    return degree(targets, nodes, dtype=torch.int64)


def protection(degrees: Tensor, low: float, high: float, graphs: Tensor | None = None) -> Tensor:
    """Probability that a node is protected, float32 [nodes].

        p_i = low + (high − low) · |{j in i's graph : deg_j ≤ deg_i}| / |{j in i's graph}|

    Args:
        degrees: in-degrees, int64 [nodes].
        low: of a node that is below all others, were there infinitely many.
        high: of the nodes with the highest in-degree of their graph.
        graphs: number of each node's graph, int64 [nodes], where they are several.

    Cost: a sort of the nodes.
    """
    if graphs is None:
        graphs = torch.zeros_like(degrees)
    span = int(degrees.max()) + 1 if len(degrees) else 1
    keys = graphs * span + degrees
    order = keys.sort().values
    first = torch.searchsorted(order, graphs * span)
    last = torch.searchsorted(order, (graphs + 1) * span)
    reached = torch.searchsorted(order, keys, right=True)
    return low + (high - low) * (reached - first).float() / (last - first).float()


def degree_classes(degrees: Tensor, bounds: Sequence[int]) -> Tensor:
    """Class of each node: how many of the ascending bounds its in-degree exceeds, int64 [nodes]."""
    return torch.bucketize(
        degrees, torch.tensor(bounds, dtype=degrees.dtype, device=degrees.device)
    )


def degree_bounds(degrees: Tensor, classes: int) -> tuple[int, ...]:
    """Bounds between classes into which about as many edges end each; fewer where degrees tie."""
    order = degrees.sort().values
    ends = order.cumsum(0)
    wanted = ends[-1] * torch.arange(1, classes) / classes
    found = order[torch.searchsorted(ends, wanted.to(ends.dtype))]
    return tuple(sorted({int(d) for d in found} - {int(order[-1])}))
