"""Groups of weights that share bases (ALQ, sec. 4): kernels, pixels, channels, parts of channels.

No group reaches over two output channels, so that batch-norm folds into the coordinates.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from torch import Tensor

from bitwright.errors import BitwrightError

KINDS = ("kernel", "pixel", "channel", "sub-channel")


@dataclass(frozen=True)
class Grouping:
    """How a weight [O, …] is cut into groups of `size` numbers.

    Attributes:
        kind: `kernel`: the k×k numbers of one input; `pixel`: all inputs at one place of the
            kernel; `channel`: all of one output; `sub-channel`: `size` consecutive ones of it.
        size: n.
    """

    kind: str
    size: int

    def cut(self, weight: Tensor) -> Tensor:
        """[O, …] as groups [G, n]."""
        if self.kind == "pixel" and weight.ndim > 2:
            weight = weight.flatten(2).transpose(1, 2)
        return weight.reshape(-1, self.size)

    def join(self, groups: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Groups [G, n] as the weight of that shape."""
        if self.kind == "pixel" and len(shape) > 2:
            places = math.prod(shape[2:])
            return groups.reshape(shape[0], places, shape[1]).transpose(1, 2).reshape(shape)
        return groups.reshape(shape)


def parse(text: str, shape: tuple[int, ...], layer: str) -> Grouping:
    """`kernel`, `pixel`, `channel`, or a number: sub-channels of so many weights.

    >>> parse("kernel", (8, 4, 3, 3), "conv1")
    Grouping(kind='kernel', size=9)

    Raises:
        BitwrightError: something else, or a size that does not divide the layer's channels.
    """
    fan_in = math.prod(shape[1:])
    if text == "kernel":
        return Grouping(text, math.prod(shape[2:]))
    if text == "pixel":
        return Grouping(text, shape[1])
    if text == "channel":
        return Grouping(text, fan_in)
    if not re.fullmatch(r"[1-9]\d{0,8}", text):
        raise BitwrightError(
            f"layer {layer!r} has groups {text!r}; use kernel, pixel, channel, or a number of "
            "weights that divides its channels"
        )
    size = int(text)
    if fan_in % size:
        near = nearest_divisor(fan_in, size)
        raise BitwrightError(
            f"layer {layer!r} has {fan_in} weights a channel, which groups of {size} do not "
            f"divide; use {near}, say"
        )
    return Grouping("sub-channel", size)


def nearest_divisor(number: int, wanted: int) -> int:
    """The divisor of `number` that is nearest to `wanted`, as a ratio.

    >>> nearest_divisor(800, 60)
    50
    """
    divisors = {d for k in range(1, math.isqrt(number) + 1) if number % k == 0
                for d in (k, number // k)}  # fmt: skip
    return min(sorted(divisors), key=lambda d: abs(math.log(d / wanted)))


def usual(shape: tuple[int, ...], wanted: int) -> Grouping:
    """Sub-channels of about `wanted` weights; whole channels where those are not larger."""
    fan_in = math.prod(shape[1:])
    size = nearest_divisor(fan_in, min(wanted, fan_in))
    return Grouping("channel" if size == fan_in else "sub-channel", size)
