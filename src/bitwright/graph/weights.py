"""Low-bit weights and edge coefficients: symmetric grids by row, rounded straight through.

Weights w of an output channel c have the step s_c = max |w_c| / (2^(b−1) − 1). Coefficients of
edges (the normalization of GCN, the attention of GAT) have one step for each target node, so that
those of a node with many neighbours, which are all small, keep their bits; the step is a factor of
the node's sum, and costs an integer kernel one multiplication a row.
"""

from __future__ import annotations

import torch
from torch import Tensor


def weight_steps(weight: Tensor, bits: int) -> tuple[Tensor, int]:
    """Steps float32 [channels] and the axis that the channels lie on.

    It is the first one, but of attention vectors [1, heads, channels of one], which have a step for
    each head.
    """
    axis = 1 if weight.dim() > 2 and weight.shape[0] == 1 else 0
    rest = [i for i in range(weight.dim()) if i != axis]
    top = 2 ** (bits - 1) - 1
    return (weight.detach().abs().amax(rest) / top).clamp(min=1e-12), axis


def round_weights(weight: Tensor, bits: int) -> Tensor:
    """Weights [channels, ...] on their grids; gradients go straight through."""
    steps, axis = weight_steps(weight, bits)
    top = 2 ** (bits - 1) - 1
    zeros = torch.zeros_like(steps, dtype=torch.int32)
    found: Tensor = torch.fake_quantize_per_channel_affine(weight, steps, zeros, axis, -top, top)
    return found


def edge_steps(values: Tensor, targets: Tensor, nodes: int, bits: int) -> tuple[Tensor, int]:
    """Steps by target node, float32 [nodes, ...], and the lowest level.

    Levels are 0 to 2^bits − 1 where no coefficient is negative, else ± (2^(bits−1) − 1).
    """
    values = values.detach()
    signed = bool((values < 0).any())
    top = 2 ** (bits - 1) - 1 if signed else 2**bits - 1
    index = targets.reshape(-1, *[1] * (values.dim() - 1)).expand_as(values)
    peaks = values.new_zeros(nodes, *values.shape[1:])
    peaks = peaks.scatter_reduce(0, index, values.abs(), "amax")
    return torch.where(peaks > 0, peaks / top, torch.ones_like(peaks)), -top if signed else 0


def round_edges(values: Tensor, targets: Tensor, nodes: int, bits: int) -> Tensor:
    """Coefficients [edges, ...] on the grids of their targets, int64 [edges] below `nodes`."""
    steps, lowest = edge_steps(values, targets, nodes, bits)
    own = steps[targets]
    top = -lowest if lowest else 2**bits - 1
    levels: Tensor = torch.fake_quantize_per_tensor_affine(values / own, 1.0, 0, lowest, top)
    return levels * own
