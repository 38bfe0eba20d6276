"""Squared norms of every sample's gradient for every output channel, from uses and gradients.

With the output gradients g_c(p) at positions p and the inputs x(p) a channel multiplies there,

    ‖∂/∂w_c‖² = ‖Σ_p g_c(p) x(p)‖² = Σ_{p,q} g_c(p) g_c(q) ⟨x(p), x(q)⟩ .

The first form costs positions × fan-in for each channel and direction, the second positions² (with
the Gram matrix made once for all directions): the cheaper one is taken. A weight used several times
has its gradients summed over uses before they are squared.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from bitwright.curvature.layout import Layout
from bitwright.curvature.tape import Use

#: floats of per-sample gradients formed at once
_LIMIT = 32_000_000
#: floats worked on at once where samples are taken one after another anyway
_BLOCK = 1_000_000


@dataclass(frozen=True)
class Placed:
    """A use, and where the samples are in it."""

    use: Use
    layout: Layout
    n: int

    @property
    def rows(self) -> slice:
        """Channels of the weight it takes."""
        return self.use.rows


def row_squares(
    shape: Sequence[int], uses: Sequence[Placed], gradients: Sequence[Sequence[Tensor | None]]
) -> list[Tensor | None]:
    """For each direction, [n, channels]: every sample's squared gradient norm by output channel.

    Args:
        shape: of the weight.
        uses: all uses of one weight.
        gradients: for each direction and use, the gradient at `y` (None where it has none).
    """
    count = channels(shape, uses[0].use)
    parts = sorted((u.rows.start, u.rows.stop) for u in uses)
    if any(a[1] > b[0] for a, b in pairwise(parts)):
        if all(u.use.kind == "embedding" and u.rows == uses[0].rows for u in uses):
            return [_tokens(uses, each) for each in gradients]
        return [
            _joint(shape, count, uses, each) if any(g is not None for g in each) else None
            for each in gradients
        ]
    found: list[Tensor | None] = [None] * len(gradients)  # disjoint channels: nothing to add
    for i, use in enumerate(uses):
        for k, squares in enumerate(_single(use, [g[i] for g in gradients])):
            if squares is not None and squares.shape[1] == count:
                found[k] = squares
            elif squares is not None:
                wide = found[k]
                if wide is None:
                    wide = found[k] = squares.new_zeros(len(squares), count)
                wide[:, use.rows] = squares
    return found


def channels(shape: Sequence[int], use: Use) -> int:
    """Output channels of a weight: axis 0, or axis 1 where the operation has them there."""
    if use.kind == "matmul":
        return shape[1]
    if use.kind == "transposed":
        return shape[1] * use.groups
    return shape[0]


def owners(shape: Sequence[int], use: Use | None) -> Tensor:
    """Which output channel each number of a weight is of, int64 of its shape.

    Without a use, axis 0 counts the channels.
    """
    if not shape:
        return torch.zeros((), dtype=torch.int64)
    if use is None or use.kind not in ("matmul", "transposed"):
        owner = torch.arange(shape[0]).reshape(-1, *[1] * (len(shape) - 1))
    else:  # [in, out / groups, …]: channels are (group, out)
        group = torch.arange(shape[0]) // (shape[0] // use.groups)
        owner = group[:, None] * shape[1] + torch.arange(shape[1])
        owner = owner.reshape(*shape[:2], *[1] * (len(shape) - 2))
    return owner.expand(tuple(shape))


def _single(placed: Placed, gradients: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Squares of a weight used once."""
    live = [(k, g) for k, g in enumerate(gradients) if g is not None]
    found: list[Tensor | None] = [None] * len(gradients)
    if not live:
        return found
    kind = placed.use.kind
    if kind in ("scale", "embedding"):
        for k, g in live:
            found[k] = _scale(placed, g).square() if kind == "scale" else _tokens([placed], [g])
        return found
    g = torch.cat([outputs(placed, g) for _, g in live], 2)  # all directions in one product
    n, groups, r, positions = g.shape
    fan_in = inputs(placed, slice(0, 1)).shape[-1]
    grams = positions * (fan_in + r) < r * fan_in
    # what is cut out of one block should stay in the processor's cache
    floats = groups * (positions * fan_in + (positions**2 if grams else r * fan_in))
    size = max(1, _BLOCK // floats)
    pieces = []
    for a in range(0, n, size):
        some, x = g[a : a + size], inputs(placed, slice(a, a + size))
        if positions == 1:
            norms = torch.linalg.vector_norm(x, dim=-1)
            pieces.append((some[..., 0] * norms).square_())
        elif grams:
            pieces.append(((some @ (x @ x.mT)) * some).sum(-1).clamp_(min=0))
        else:
            pieces.append(torch.linalg.vector_norm(some @ x, dim=-1).square_())
    squares = torch.cat(pieces).unflatten(2, (len(live), -1)).movedim(2, 0).flatten(2)
    for (k, _), each in zip(live, squares, strict=True):
        found[k] = each
    return found


def _joint(
    shape: Sequence[int], count: int, uses: Sequence[Placed], gradients: Sequence[Tensor | None]
) -> Tensor:
    """Squares of the summed gradients of several uses, formed for all channels."""
    n, numbers = uses[0].n, math.prod(shape)
    size = max(1, _LIMIT // max(numbers, 1))
    live = [(use, g) for use, g in zip(uses, gradients, strict=True) if g is not None]
    pieces = []
    for a in range(0, n, size):
        some = slice(a, min(a + size, n))
        total = live[0][1].new_zeros(some.stop - a, count, numbers // count)
        for use, g in live:
            total[:, use.rows] += _formed(use, g, some)
        pieces.append(total.square_().sum(-1))
    return torch.cat(pieces)


def _formed(placed: Placed, g: Tensor, some: slice) -> Tensor:
    """[n, channels, fan_in]: per-sample gradients of one use."""
    if placed.use.kind == "scale":
        return _scale(placed, g)[some, :, None]
    if placed.use.kind == "embedding":
        index, g = (t[some] for t in indexed(placed, g))
        count = placed.rows.stop - placed.rows.start
        zero = g.new_zeros(len(g), count + 1, g.shape[-1])  # one row more, for padding
        place = torch.where(index < 0, count, index)[..., None].expand_as(g)
        return zero.scatter_add_(1, place, g)[:, :count]
    return (outputs(placed, g)[some] @ inputs(placed, some)).flatten(1, 2)


def _scale(placed: Placed, g: Tensor) -> Tensor:
    """[n, C]: Σ over positions of g ⊙ x."""
    return placed.layout.channel_sums(g * placed.use.x, placed.use.channel, placed.n)


def indexed(placed: Placed, g: Tensor) -> tuple[Tensor, Tensor]:
    """An embedding's indices [n, P] and gradients [n, P, D]."""
    n, layout = placed.n, placed.layout
    index = layout.first(placed.use.x, n).reshape(n, -1)
    return index, layout.first(g, n).reshape(n, index.shape[1], -1)


def _tokens(uses: Sequence[Placed], gradients: Sequence[Tensor | None]) -> Tensor | None:
    """[n, rows] of an embedding: gradients of a token met twice, in any use, are summed."""
    live = [indexed(u, g) for u, g in zip(uses, gradients, strict=True) if g is not None]
    if not live:
        return None
    index, g = (torch.cat(parts, 1) for parts in zip(*live, strict=True))
    count = uses[0].rows.stop - uses[0].rows.start
    found = g.new_zeros(len(g), count + 1)
    same = (index[:, :, None] == index[:, None, :]).to(g.dtype)
    summed = (same @ g).square().sum(-1) / same.sum(-1)  # each token's share at each position
    found.scatter_add_(1, torch.where(index < 0, count, index), summed)
    return found[:, :count]


# ------------------------------------------------------------------ inputs and outputs as matrices


def inputs(placed: Placed, some: slice) -> Tensor:
    """What a channel's weights multiply for `some` samples: [n, groups, positions, fan_in].

    For a transposed convolution: its input, gathered where each output position reads it.
    """
    use, n = placed.use, placed.n
    x = use.x.detach()
    if use.kind in ("linear", "matmul"):
        x = placed.layout.first(x, n)[some]
        return x.reshape(len(x), 1, -1, x.shape[-1])
    cut = _spread if use.kind == "transposed" else patches
    if not placed.layout.merged(x, n):
        return cut(x[some], use)
    frames = placed.layout.first(x, n)[some]  # [n, frames, C, …]: frames are positions
    found = cut(frames.flatten(0, 1), use).unflatten(0, frames.shape[:2])
    return found.transpose(1, 2).flatten(2, 3)


def outputs(placed: Placed, g: Tensor) -> Tensor:
    """Output gradients: [n, groups, channels of a group, positions]."""
    use, n = placed.use, placed.n
    if use.kind in ("linear", "matmul"):
        return placed.layout.first(g, n).reshape(n, 1, -1, g.shape[-1]).mT
    g = g.reshape(len(g), use.groups, g.shape[1] // use.groups, -1)
    if not placed.layout.merged(g, n):
        return g
    return placed.layout.first(g, n).movedim(1, 3).flatten(3, 4)


def patches(x: Tensor, use: Use) -> Tensor:
    """[n, groups, positions, fan_in] for convolutions of any dimension.

    One strided copy, several times faster on a CPU than `torch.nn.functional.unfold`.
    """
    if any(p for pair in use.padding for p in pair):
        x = torch.nn.functional.pad(x, [p for pair in reversed(use.padding) for p in pair])
    return _windows(x, use, use.stride).mT


def _windows(x: Tensor, use: Use, stride: Sequence[int]) -> Tensor:
    """All windows of x, [n, groups, fan_in, positions]."""
    size = [
        (s - d * (k - 1) - 1) // t + 1
        for s, k, t, d in zip(x.shape[2:], use.kernel, stride, use.dilation, strict=True)
    ]
    n, c, *steps = x.stride()
    view = x.as_strided(
        (*x.shape[:2], *use.kernel, *size),
        (
            *(n, c),
            *(s * d for s, d in zip(steps, use.dilation, strict=True)),
            *(s * t for s, t in zip(steps, stride, strict=True)),
        ),
        x.storage_offset(),
    )
    if use.kind == "transposed":
        view = view.flip(tuple(range(2, 2 + len(size))))
    return view.reshape(len(x), use.groups, -1, math.prod(size))


def _spread(x: Tensor, use: Use) -> Tensor:
    """A transposed convolution as a convolution: zeros between inputs, then patches.

    `y_c(p) = Σ_{i,k} w_{i,c,k} x_i((p + pad − k·dilation) / stride)`, where that is whole.
    """
    n, c = x.shape[:2]
    wide = [(s - 1) * t + 1 for s, t in zip(x.shape[2:], use.stride, strict=True)]
    spread = x.new_zeros(n, c, *wide)
    spread[(slice(None), slice(None), *(slice(None, None, t) for t in use.stride))] = x
    pads: list[int] = []
    for s, k, d, (before, _), out in zip(
        wide, use.kernel, use.dilation, use.padding, use.y.shape[2:], strict=True
    ):
        left = d * (k - 1) - before
        pads = [left, out + d * (k - 1) - left - s, *pads]
    spread = torch.nn.functional.pad(spread, pads)
    return _windows(spread, use, (1,) * len(use.stride)).mT
