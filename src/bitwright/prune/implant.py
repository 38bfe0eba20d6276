"""The neural implant: filters of moderately sensitive channels in low-rank form (HAP, section 3.3).

HAP puts a 1×1 convolution that starts at zero in the place of the k×k filters. Ours starts where
least squares puts it, on calibration data: V of the 1×1 convolution minimizes `E‖y − V x − b‖²` of
the channels' float outputs y, the inputs x in the middle of each window. Of rank r it is r of the
k×k filters and a mixture: `U (Uᵀ W)`, with W the least-squares filters and U the r leading
eigenvectors of `cov(W x)`, which is the best there is (Eckart and Young, for reduced-rank
regression).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bitwright.prune.edit import point, spatial
from bitwright.prune.groups import Group
from bitwright.prune.least_squares import moments, solved

#: what least squares is damped with, relative to the mean square of the inputs
_DAMPING = 1e-3


class Implanted(nn.Module):
    """A convolution whose last channels have low-rank filters.

    Args:
        full: makes the first channels; small: the others, of the same inputs.
    """

    def __init__(self, full: nn.Module, small: nn.Module) -> None:
        super().__init__()
        self.full, self.small = full, small

    def forward(self, x: Tensor) -> Tensor:
        """[n, inputs, …] -> [n, outputs, …]."""
        return torch.cat([self.full(x), self.small(x)], 1)


def implantable(model: nn.Module, group: Group) -> bool:
    """Whether a group's units can have implants: k×k filters, one a unit, of padded windows."""
    makers = [model.get_submodule(m.path) for m in group.members if m.out]
    matrices = [m for m in makers if hasattr(m, "kernel_size") or isinstance(m, nn.Linear)]
    for member in group.members:
        module: Any = model.get_submodule(member.path)
        flat = [c for unit in member.channels for c in unit]
        if getattr(module, "groups", 1) != 1 or sorted(flat) != list(range(len(flat))):
            return False
        if member.out and any(len(unit) != 1 for unit in member.channels):
            return False
        if not member.out and len(flat) != module.weight.shape[1]:
            return False
    if not all(isinstance(m, nn.Conv1d | nn.Conv2d) for m in matrices):
        return False
    return any(spatial(m) for m in matrices) and all(spatial(m) or point(m) for m in matrices)


def split(conv: nn.Conv1d | nn.Conv2d, count: int, rank: int) -> Implanted:
    """The convolution with its last `count` channels in implants of zeros.

    Args:
        conv: left as it is; rank: of the k×k filters, 0 for a 1×1 convolution.
    """
    kind: Any = type(conv)
    stay = conv.out_channels - count
    options: dict[str, Any] = {"stride": conv.stride, "dilation": conv.dilation}
    whole: dict[str, Any] = options | {"kernel_size": conv.kernel_size, "padding": conv.padding}
    full = kind(conv.in_channels, stay, bias=conv.bias is not None, **whole)
    small: nn.Module
    if rank:
        small = nn.Sequential(
            kind(conv.in_channels, rank, bias=False, **whole), kind(rank, count, 1)
        )
    else:
        small = kind(conv.in_channels, count, 1, stride=conv.stride)
    with torch.no_grad():
        full.weight.copy_(conv.weight[:stay])
        if conv.bias is not None:
            full.bias.copy_(conv.bias[:stay])
        for p in small.parameters():
            p.zero_()
    return Implanted(full, small).to(conv.weight).train(conv.training)


def fit(
    model: nn.Module,
    found: nn.Module,
    path: str,
    rows: Tensor,
    pieces: Sequence[Tensor],
    generator: torch.Generator,
) -> None:
    """Fill the implant at `path` of `found`, in place, by least squares.

    Args:
        model: as it was, whose layer at `path` gives the outputs wanted, of the channels `rows`.
        found: pruned; its layer's inputs are what the implant sees.
        pieces: calibration rows; generator: of the positions looked at.
    """
    implanted = found.get_submodule(path)
    assert isinstance(implanted, Implanted)
    small: Any = implanted.small
    if not isinstance(small, nn.Sequential):
        gram, cross = moments(model, found, path, rows, pieces, generator, small)
        weight, bias = solved(torch.zeros_like(small.weight), gram, cross, _DAMPING)
        with torch.no_grad():
            small.weight.copy_(weight)
            small.bias.copy_(bias)
        return
    first: Any = small[0]
    last: Any = small[1]
    gram, cross = moments(model, found, path, rows, pieces, generator, first)
    shape = (len(rows), *first.weight.shape[1:])
    weight, bias = solved(first.weight.new_zeros(shape), gram, cross, _DAMPING)
    basis = _basis(weight, gram, first.out_channels)
    with torch.no_grad():
        first.weight.copy_((basis.T @ weight.flatten(1).double()).reshape(first.weight.shape))
        last.weight.copy_(basis.reshape(last.weight.shape))
        mean = gram[0, :-1, -1]
        lost = weight.flatten(1).double() @ mean - basis @ (
            basis.T @ (weight.flatten(1).double() @ mean)
        )
        last.bias.copy_(bias + lost)


def _basis(weight: Tensor, gram: Tensor, rank: int) -> Tensor:
    """The leading eigenvectors of `cov(W x)`, float64 [rows, rank]."""
    w = weight.detach().flatten(1).double()
    mean = gram[0, :-1, -1]
    covariance = gram[0, :-1, :-1] - mean[:, None] * mean
    _, vectors = torch.linalg.eigh(w @ covariance @ w.T)
    return vectors[:, -rank:]
