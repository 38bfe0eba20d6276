"""Random changes of images, for fine-tuning: mirrored, cut out with a shift, mixed.

The float model answers whatever the images become, so that nothing need be right about them; mixed
images (Zhang et al., arXiv 1710.09412) are those of whose answers it is least certain, and so tell
most (Beyer et al., arXiv 2106.05237).
"""

from __future__ import annotations

import re
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from bitwright.errors import BitwrightError

Augment = Callable[[Tensor, torch.Generator], Tensor]


def parse(text: str) -> Augment:
    """`flip`, `crop4` (shifted by up to 4 pixels), `mixup`, or several with commas between.

    >>> x = torch.arange(3.0).expand(2, 1, 3, 3)
    >>> parse("flip,crop1")(x, torch.Generator().manual_seed(0)).shape
    torch.Size([2, 1, 3, 3])

    Raises:
        BitwrightError: something else.
    """
    steps: list[Augment] = []
    for part in text.split(","):
        shift = re.fullmatch(r"crop([1-9]\d?)", part.strip())
        if part.strip() == "flip":
            steps.append(mirrored)
        elif part.strip() == "mixup":
            steps.append(mixed)
        elif shift:
            steps.append(_shifter(int(shift[1])))
        else:
            raise BitwrightError(
                f"augment {text!r} is unknown; use flip, crop4, mixup or several: flip,crop4"
            )

    def act(x: Tensor, generator: torch.Generator) -> Tensor:
        if x.ndim != 4:
            raise BitwrightError(
                f"--augment changes images [n, channels, height, width], not rows of "
                f"{tuple(x.shape[1:])}; leave it out"
            )
        for step in steps:
            x = step(x, generator)
        return x

    return act


def mirrored(x: Tensor, generator: torch.Generator) -> Tensor:
    """Each image [n, C, H, W] left to right with probability ½."""
    chosen = torch.rand(len(x), generator=generator) < 0.5
    return torch.where(chosen[:, None, None, None], x.flip(3), x)


def mixed(x: Tensor, generator: torch.Generator) -> Tensor:
    """Each image [n, C, H, W] with another one: `w x + (1 − w) x'`, w uniform in 0 to 1."""
    share = torch.rand(len(x), generator=generator)[:, None, None, None]
    return share * x + (1 - share) * x[torch.randperm(len(x), generator=generator)]


def _shifter(most: int) -> Augment:
    return lambda x, generator: shifted(x, most, generator)


def shifted(x: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """Each image [n, C, H, W] moved by up to `most` pixels each way; borders are reflected."""
    n, channels, height, width = x.shape
    padded = F.pad(x, (most,) * 4, mode="reflect")
    down, right = torch.randint(0, 2 * most + 1, (2, n), generator=generator)
    rows = down[:, None] + torch.arange(height)
    columns = right[:, None] + torch.arange(width)
    image = torch.arange(n)[:, None, None, None]
    channel = torch.arange(channels)[:, None, None]
    return padded[image, channel, rows[:, None, :, None], columns[:, None, None, :]]
