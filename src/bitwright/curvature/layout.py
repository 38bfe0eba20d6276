"""Which rows of an operation's tensors belong to which sample, found by asking the gradient.

Networks merge the batch axis with tokens or frames, or move it: `[n·T, C]`, `[T, n, C]`. The
gradient of one sample's outputs is zero, exactly, wherever another sample's numbers are; a layout
is accepted only if it is. A network that mixes samples (batch-norm in training mode) has none.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bitwright.errors import BitwrightError


@dataclass(frozen=True)
class Layout:
    """Samples lie on `axis`, alone or merged with another axis.

    Attributes:
        axis: of the operation's input and output.
        minor: of merged axes the samples are the inner one.
    """

    axis: int = 0
    minor: bool = False

    def first(self, t: Tensor, n: int) -> Tensor:
        """Samples on axis 0: [n, …]; what they were merged with is axis 1."""
        t = t.movedim(self.axis, 0)
        if len(t) == n and n > 1:
            return t
        m = len(t) // n
        return t.unflatten(0, (m, n)).transpose(0, 1) if self.minor else t.unflatten(0, (n, m))

    def merged(self, t: Tensor, n: int) -> bool:
        """Whether `first` gives the tensor one more axis."""
        return t.shape[self.axis] != n or n == 1

    def channel_sums(self, t: Tensor, channel: int, n: int) -> Tensor:
        """Sums over everything but samples and the axis `channel`: [n, C]."""
        return self._channels_last(t, channel, n).sum(1)

    def squares(self, t: Tensor, channel: int, n: int, grain: str = "channel") -> Tensor:
        """Sums of squares of every sample's numbers, [n, C], [n, P] or [n, 1].

        `grain`: `channel`, along the axis `channel`; `token`, along everything but samples and
        that axis; `tensor`, over all.
        """
        if grain != "channel":
            summed = self._channels_last(t, channel, n).square().sum(2)
            return summed if grain == "token" else summed.sum(1, keepdim=True)
        if channel == 1 and self.axis == 0 and len(t) == n:
            return torch.linalg.vector_norm(t.flatten(2), dim=2).square() if t.ndim > 2 else t**2
        return self._channels_last(t, channel, n).square().sum(1)

    def _channels_last(self, t: Tensor, channel: int, n: int) -> Tensor:
        axis = channel % t.ndim
        t = t.movedim(axis, -1)
        moved = Layout(self.axis - (axis < self.axis), self.minor)
        return moved.first(t, n).reshape(n, -1, t.shape[-1])


def find(name: str, t: Tensor, channel: int, gradient: Tensor | None, n: int) -> Layout:
    """The layout of one tensor.

    Args:
        name: of its weight or edge, for the error.
        t: recorded in a pass over n samples.
        channel: axis of its channels; samples of an image with channels behind it lie on axis 0.
        gradient: at t, of sample 0's outputs alone; None or zero where they do not depend on it.
        n: samples in the pass.

    Raises:
        BitwrightError: other samples' numbers carry the gradient as well.
    """
    if n == 1:
        return Layout()
    choices = _choices(t, channel % t.ndim, n)
    if gradient is None or not gradient.any():
        return choices[0] if choices else Layout()
    for layout in choices:
        if not layout.first(gradient, n)[1:].any():
            return layout
    raise BitwrightError(
        f"{name!r} mixes the samples of a batch (batch-norm in training mode? call .eval()), so "
        "its curvature cannot be told by sample"
    )


def _choices(t: Tensor, channel: int, n: int) -> list[Layout]:
    found = []
    for axis in [0] if channel == 1 and t.ndim > 2 else range(t.ndim):
        if axis != channel and t.shape[axis] % n == 0:
            found.append(Layout(axis))
            if t.shape[axis] > n:
                found.append(Layout(axis, minor=True))
    return found
