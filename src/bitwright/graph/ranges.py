"""Ranges of activations by percentiles: Degree-Quant (Tailor et al., arXiv 2008.05000), 3.2.

A range is what lies between the p-th and the (1 − p)-th percentile of the values seen, followed by
an exponential mean; outside of it values are clipped and pass no gradient. Departure from the
paper's code: percentiles are of the numbers that are not zero. Zero is a level of every grid and
needs no range, and of features with 99 % zeros the percentiles themselves would be zero, which
leaves no range at all (Citeseer with p = 0.01).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

#: numbers that percentiles are taken of; more are sampled, which adds an error of a few per cent
#: to the share outside the range
SAMPLES = 32768


class Range(nn.Module):
    """The range of one activation, always around zero.

    Args:
        percentile: share of the numbers left out on each side; 0: none, the extremes count.
        momentum: weight of new extremes.
    """

    low: Tensor
    high: Tensor
    seen: Tensor

    def __init__(self, percentile: float, momentum: float) -> None:
        super().__init__()
        self.percentile, self.momentum = percentile, momentum
        self.register_buffer("low", torch.zeros(()))
        self.register_buffer("high", torch.zeros(()))
        self.register_buffer("seen", torch.zeros((), dtype=torch.bool))

    @torch.no_grad()
    def update(self, x: Tensor, protected: Tensor | None, generator: torch.Generator) -> None:
        """Take the values x [rows, ...] in, those of rows that are protected (bool [rows]) out."""
        if not x.numel():
            return
        low, high = extremes(x, protected, self.percentile, generator)
        if not (bool(low) or bool(high)):
            return  # all is protected, or zero: nothing to be seen of a range
        if bool(self.seen):
            self.low.lerp_(low, self.momentum)
            self.high.lerp_(high, self.momentum)
        elif bool(high > low):
            self.low.copy_(low)
            self.high.copy_(high)
            self.seen.fill_(True)

    def forget(self) -> None:
        """The next values are the first."""
        self.seen.fill_(False)

    def grid(self, bits: int) -> tuple[Tensor, Tensor]:
        """Step (float32) and zero point (int32, 0 to 2^bits − 1), tensors without axes."""
        top = 2**bits - 1
        step = ((self.high - self.low) / top).clamp(min=torch.finfo(torch.float32).tiny)
        return step, (-self.low / step).round().clamp(0, top).to(torch.int32)

    def round(self, x: Tensor, bits: int) -> Tensor:
        """Rounded to `bits` bits and clipped; what is clipped passes no gradient."""
        step, zero = self.grid(bits)
        found: Tensor = torch.fake_quantize_per_tensor_affine(x, step, zero, 0, 2**bits - 1)
        return found

    def round_rows(self, x: Tensor, bits: Tensor) -> Tensor:
        """Each row of x [rows, ...] rounded to its own bits, int64 [rows] of at most 8."""
        own = [((bits == b).nonzero()[:, 0], int(b)) for b in bits.unique()]
        parts = torch.cat([self.round(x.index_select(0, rows), b) for rows, b in own])
        return parts.index_select(0, torch.cat([rows for rows, _ in own]).argsort())


def extremes(
    x: Tensor, protected: Tensor | None, percentile: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """The percentiles of the numbers that are not zero, but for protected rows; 0 lies between.

    Cost: two selections from at most :data:`SAMPLES` numbers; one pass where `percentile` is 0.
    """
    width = x.numel() // len(x)
    if percentile == 0:
        low, high = x.reshape(len(x), width).aminmax(dim=1)
        if protected is not None:
            low, high = low.masked_fill(protected, 0), high.masked_fill(protected, 0)
        return low.min().clamp(max=0), high.max().clamp(min=0)
    values = x.reshape(-1)
    if len(values) > SAMPLES:
        places = torch.randint(len(values), (SAMPLES,), generator=generator).to(x.device)
        values = values[places]
        rows = places // width
    else:
        rows = torch.arange(len(x), device=x.device).repeat_interleave(width)
    keep = values != 0
    if protected is not None:
        keep &= ~protected[rows]
    values = values[keep]
    if not len(values):
        return x.new_zeros(()), x.new_zeros(())
    k = max(1, round(percentile * len(values)))
    low = values.kthvalue(k).values
    high = values.kthvalue(len(values) + 1 - k).values
    return low.clamp(max=0), high.clamp(min=0)
