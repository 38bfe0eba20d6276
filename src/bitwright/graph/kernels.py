"""One pass each, compiled: floats to bytes, and 32-bit sums to the byte rows that are summed next.

`q = clip(round(z + v / s), 0, 255)`, as `torch.fake_quantize_per_tensor_affine` rounds.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

_compiled = numba.njit(nogil=True, cache=True, error_model="numpy")


@_compiled
def to_codes(x: Any, bias: Any, inverse: Any, zero: Any, out: Any) -> None:
    """Features `x + bias` as q − 128, int8 [nodes, channels].

    Args:
        x: float32 [nodes, channels].
        bias: float32 [channels].
        inverse: 1 / s, float32.
        zero: z, float32.
        out: written.
    """
    for i in range(x.shape[0]):
        for c in range(x.shape[1]):
            q = np.rint(zero + (x[i, c] + bias[c]) * inverse)
            out[i, c] = np.int8(np.int32(min(max(q, np.float32(0)), np.float32(255))) - 128)


@_compiled
def to_rows(sums: Any, less: Any, scale: Any, inverse: Any, zero: Any, tail: Any, out: Any) -> None:
    """`(sums − less) · scale` as rows of codes q and an end that tells their step and zero.

    Args:
        sums: int32 [nodes, channels].
        less: int32 [channels], what zero points add to each sum.
        scale: float32 [channels], of the sums.
        inverse, zero: of the codes, as in :func:`to_codes`.
        tail: uint8 [8], float32 numbers s and −z s.
        out: uint8 [nodes, channels + 8], written.
    """
    channels = sums.shape[1]
    for i in range(sums.shape[0]):
        for c in range(channels):
            q = np.rint(zero + np.float32(sums[i, c] - less[c]) * scale[c] * inverse)
            out[i, c] = np.uint8(min(max(q, np.float32(0)), np.float32(255)))
        for c in range(8):
            out[i, channels + c] = tail[c]
