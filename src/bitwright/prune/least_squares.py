"""Least squares for a layer: what it reads in one network, what it gave in another, and the fit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
#: positions of a sample that are looked at, of more than these a random choice
_POSITIONS = 32


class _Enough(Exception):
    """The layer of interest has been reached."""


def _seen(model: nn.Module, path: str, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Input and output of a layer's first call."""
    found: list[tuple[Tensor, Tensor]] = []

    def hook(_: nn.Module, inputs: Any, output: Tensor) -> None:
        found.append((inputs[0], output))
        raise _Enough

    handle = model.get_submodule(path).register_forward_hook(hook)
    try:
        with torch.no_grad():
            model(rows)
    except _Enough:
        pass
    finally:
        handle.remove()
    return found[0]


def moments(
    model: nn.Module,
    pruned: nn.Module,
    path: str,
    rows: Tensor,
    pieces: Sequence[Tensor],
    generator: torch.Generator,
    reader: nn.Module | None = None,
) -> tuple[Tensor, Tensor]:
    """`E[(x, 1)(x, 1)ᵀ]` and `E[(x, 1) yᵀ]`, float64 [groups, fan_in + 1, fan_in + 1 or rows].

    Args:
        model, path, rows: y are the channels `rows` of what its layer gives.
        pruned: x is what its layer reads there.
        pieces: rows of data; generator: of the positions looked at.
        reader: the layer that lays x out; default that of `pruned` at the path.
    """
    gram = cross = torch.zeros(())
    count = 0
    module = reader or pruned.get_submodule(path)
    for piece in pieces:
        _, wanted = _seen(model, path, piece)
        x, _ = _seen(pruned, path, piece)
        for a, y in columns(module, x, wanted, rows, generator):
            one = torch.cat([a, a.new_ones(*a.shape[:2], 1)], 2)
            gram = gram + (one.mT @ one).double()
            cross = cross + (one.mT @ y).double()
            count += a.shape[1]
    return gram / count, cross / count


def columns(
    module: nn.Module, x: Tensor, y: Tensor, rows: Tensor, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """What the weights multiply and what came out: [groups, samples, fan_in] and [… , rows].

    Args:
        module: linear, or a convolution of any dimension; x: its input.
        y: outputs, of which the channels `rows` count; generator: of the positions looked at.
    """
    if isinstance(module, nn.Linear):
        yield x.reshape(1, -1, x.shape[-1]), y[..., rows].reshape(1, -1, len(rows))
        return
    groups = module.groups
    wanted = y[:, rows].flatten(2)
    some = torch.randperm(wanted.shape[2], generator=generator)[:_POSITIONS]
    found = windows(module, x, y.shape[2:], some)
    found = found.unflatten(1, (groups, -1)).permute(1, 0, 3, 2, 4)  # groups, n, positions, …
    wanted = wanted[:, :, some].unflatten(1, (groups, -1)).permute(1, 0, 3, 2)
    yield found.flatten(3).flatten(1, 2), wanted.flatten(1, 2)


def windows(module: Any, x: Tensor, size: Sequence[int], some: Tensor) -> Tensor:
    """What a convolution's kernel covers at some output positions: [n, C, positions, kernel].

    Args:
        module: a convolution; x: [n, C, ...] its input.
        size: of its output's space; some: positions there, counted row by row.
    """
    x = F.pad(x, [p for pair in reversed(module.padding) for p in (pair, pair)])
    index = torch.zeros(len(some), 1, dtype=torch.int64)
    rest = some
    stride = 1
    axes = list(zip(size, x.shape[2:], module.kernel_size, module.stride, module.dilation,
                    strict=True))  # fmt: skip
    for out, width, kernel, step, dilation in reversed(axes):
        at = (rest % out * step)[:, None] + torch.arange(kernel) * dilation
        index = (at[:, :, None] * stride + index[:, None, :]).flatten(1)
        rest, stride = rest // out, stride * width
    return x.flatten(2)[:, :, index]


def fill(module: nn.Module, gram: Tensor, cross: Tensor, damping: float) -> None:
    """Put the minimizer near the module's weight into its weight and bias."""
    assert isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)
    weight, bias = solved(module.weight.detach(), gram, cross, damping)
    with torch.no_grad():
        module.weight.copy_(weight)
        assert module.bias is not None
        module.bias.copy_(bias)


def solved(weight: Tensor, gram: Tensor, cross: Tensor, damping: float) -> tuple[Tensor, Tensor]:
    """The minimizer of the module's equation near `weight`: a weight of its shape, and a bias."""
    groups, fan_in = len(gram), gram.shape[1] - 1
    before = weight.flatten(1).double().unflatten(0, (groups, -1)).mT  # [groups, fan_in, rows]
    before = torch.cat([before, before.new_zeros(groups, 1, before.shape[2])], 1)
    diagonal = gram.diagonal(dim1=1, dim2=2)[:, :fan_in].mean(1).clamp(min=1e-30)
    ridge = torch.ones(groups, fan_in + 1, dtype=torch.float64) * damping * diagonal[:, None]
    ridge[:, fan_in] = 1e-12  # the bias is free
    found = before + torch.linalg.solve(gram + torch.diag_embed(ridge), cross - gram @ before)
    return found[:, :fan_in].mT.flatten(0, 1).reshape(weight.shape), found[:, fan_in].flatten()
