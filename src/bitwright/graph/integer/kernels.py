"""Compiled passes over rows: floats to codes, 32-bit products to codes, and sums over neighbours.

A number v has the code `q = clip(round(z + v / s), 0, 255)`, rounded as torch's fake quantization
does; what is stored is q − 128. Levels of ReLU's results begin at zero, so that clipping to them is
ReLU. Where a pass takes `inverse`, 1 / s, None stands for results in float.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from bitwright.graph.integer.dots import has_byte_dots, row_sums

#: groups of four rows whose sums Σ k (q − z) surely are in 32 bits
MOST = 2**31 // (4 * 255 * 255) - 1

_compiled = numba.njit(nogil=True, cache=True, error_model="numpy")
_DOTS = has_byte_dots()
_sum16, _sum32, _sum64 = (row_sums(width, False, _DOTS) for width in (16, 32, 64))


@_compiled
def _code(v: Any, inverse: Any, zero: Any) -> Any:
    q = np.rint(zero + v * inverse)
    return np.int8(np.int32(min(max(q, np.float32(0)), np.float32(255))) - 128)


@_compiled
def to_codes(x: Any, inverse: Any, zero: Any, out: Any) -> None:
    """Codes of features float32 [nodes, channels], int8 [nodes, at least as many]; the rest is 0."""
    channels = x.shape[1]
    for i in range(x.shape[0]):
        for c in range(channels):
            out[i, c] = _code(x[i, c], inverse, zero)
        for c in range(channels, out.shape[1]):
            out[i, c] = 0


@_compiled
def finish(
    sums: Any, less: Any, scale: Any, shift: Any, added: Any, inverse: Any, zero: Any, out: Any
) -> None:
    """`(sums − less) · scale + shift + added` of products int32 [nodes, channels].

    Args:
        sums: products.
        less: int32 [channels], what zero points add to each.
        scale, shift: float32 [channels].
        added: float32 [nodes, channels], or None.
        inverse, zero: of the codes.
        out: int8 or float32 [nodes, at most channels], written.
    """
    for i in range(out.shape[0]):
        for c in range(out.shape[1]):
            v = np.float32(sums[i, c] - less[c]) * scale[c] + shift[c]
            if added is not None:
                v += added[i, c]
            if inverse is None:
                out[i, c] = v
            else:
                out[i, c] = _code(v, inverse, zero)


@_compiled
def _block(rows: Any, at: Any, columns: Any, words: Any, first: Any, last: Any, out: Any) -> None:
    """Sums of the channels behind `at`, as many as `out` has."""
    stride, start, to = rows.shape[1], rows.ctypes.data + at, out.ctypes.data
    if len(out) == 64:
        _sum64(start, stride, columns.ctypes.data, words.ctypes.data, first, last, to)
    elif len(out) == 32:
        _sum32(start, stride, columns.ctypes.data, words.ctypes.data, first, last, to)
    else:
        _sum16(start, stride, columns.ctypes.data, words.ctypes.data, first, last, to)


@_compiled
def _long(
    rows: Any, at: Any, columns: Any, words: Any, first: Any, last: Any, part: Any, total: Any
) -> None:
    """The same of so many rows that 32 bits may not hold their sum."""
    total[:] = 0
    for start in range(first, last, MOST):
        _block(rows, at, columns, words, start, min(start + MOST, last), part)
        for c in range(len(part)):
            total[c] += part[c]


@_compiled
def sum_neighbours(
    rows: Any, starts: Any, columns: Any, words: Any, totals: Any, lift: Any, scale: Any, own: Any,
    gain: Any, bias: Any, inverse: Any, zero: Any, width: Any, out: Any,
) -> None:  # fmt: skip
    """`scale_i (Σ_j k_ij (q_j − z) + own (q_i − z)) · gain + bias`.

    Args:
        rows: codes q − 128, int8 [nodes, channels].
        starts: int64 [nodes + 1], each node's first group of four edges.
        columns: int32 [groups, 4] sources, and more to look ahead.
        words: int32 [groups], four factors k each.
        totals: Σ_j k_ij, int64 [nodes].
        lift: 128 − z.
        scale: float32 [nodes].
        own: float32, or None for zero.
        gain, bias: float32 [channels].
        inverse, zero: of the codes.
        width: of a block of channels, 16, 32 or 64.
        out: int8 or float32 [nodes, at most channels], written.
    """
    part = np.empty(width, np.int32)
    long = np.empty(width, np.float64)
    value = np.empty(width, np.float32)
    for i in range(len(starts) - 1):
        first, last = starts[i], starts[i + 1]
        s = scale[i]
        for at in range(0, rows.shape[1], width):
            if last - first <= MOST:
                _block(rows, at, columns, words, first, last, part)
                more = np.int32(lift * totals[i])
                for c in range(width):
                    value[c] = np.float32(part[c] + more)
            else:
                _long(rows, at, columns, words, first, last, part, long)
                for c in range(width):
                    value[c] = np.float32(long[c] + lift * totals[i])
            if own is not None:
                for c in range(width):
                    value[c] += own * np.float32(rows[i, at + c] + lift)
            for c in range(min(width, out.shape[1] - at)):
                v = s * value[c] * gain[at + c] + bias[at + c]
                if inverse is None:
                    out[i, at + c] = v
                else:
                    out[i, at + c] = _code(v, inverse, zero)
