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
#: calls cost more than what most of these do, and lengths given as literals make loops fast
_inlined = numba.njit(inline="always", error_model="numpy")


@_inlined
def _code(v: Any, inverse: Any, zero: Any) -> Any:
    q = np.rint(zero + v * inverse)
    return np.int8(np.int32(min(max(q, np.float32(0)), np.float32(255))) - 128)


@_compiled
def to_codes(x: Any, inverse: Any, zero: Any, out: Any) -> None:
    """Codes of features float32 [nodes, channels], int8 [nodes, as many or more, which are 0]."""
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
            v = np.float32(np.int32(sums[i, c] - less[c])) * scale[c] + shift[c]
            if added is not None:
                v += added[i, c]
            if inverse is None:
                out[i, c] = v
            else:
                out[i, c] = _code(v, inverse, zero)


def block_sums(by_channel: bool) -> Any:
    """Sums of `width` channels, 16, 32 or 64, with :func:`~.dots.row_sums`, to be inlined.

    Everything goes by address, as counting references takes longer.
    """
    sum16, sum32, sum64 = (row_sums(width, by_channel, has_byte_dots()) for width in (16, 32, 64))

    @_inlined
    def block(
        width: Any, rows: Any, stride: Any, columns: Any, words: Any, first: Any, last: Any,
        out: Any,
    ) -> None:  # fmt: skip
        if width == 64:
            sum64(rows, stride, columns, words, first, last, out)
        elif width == 32:
            sum32(rows, stride, columns, words, first, last, out)
        else:
            sum16(rows, stride, columns, words, first, last, out)

    return block


_block = block_sums(by_channel=False)


@_inlined
def _sum_all(
    width: Any, rows: Any, starts: Any, columns: Any, words: Any, totals: Any, lift: Any,
    scale: Any, own: Any, gain: Any, bias: Any, inverse: Any, zero: Any, out: Any,
) -> None:  # fmt: skip
    """:func:`sum_neighbours` with a width that is known when it is compiled."""
    part = np.empty(width, np.int32)
    value = np.empty(width, np.float32)
    long = np.empty(width, np.float64)
    codes, stride = rows.ctypes.data, rows.shape[1]
    near, factors, to = columns.ctypes.data, words.ctypes.data, part.ctypes.data
    channels = out.shape[1]
    for i in range(len(starts) - 1):
        first, last, s = starts[i], starts[i + 1], scale[i]
        whole = lift * totals[i]
        for at in range(0, stride, width):
            if last - first <= MOST:
                _block(width, codes + at, stride, near, factors, first, last, to)
                more = np.int32(whole)
                for c in range(width):
                    value[c] = np.float32(np.int32(part[c] + more))
            else:  # 32 bits may not hold the sum
                long[:] = whole
                for start in range(first, last, MOST):
                    end = min(start + MOST, last)
                    _block(width, codes + at, stride, near, factors, start, end, to)
                    for c in range(width):
                        long[c] += part[c]
                for c in range(width):
                    value[c] = np.float32(long[c])
            if own is not None:
                for c in range(width):
                    value[c] += own * np.float32(np.int32(rows[i, np.uintp(at + c)] + lift))
            # unsigned places, as negative ones would be counted from the end, one by one
            if channels - at >= width:
                for c in range(width):
                    p = np.uintp(at + c)
                    v = s * value[c] * gain[p] + bias[p]
                    if inverse is None:
                        out[i, p] = v
                    else:
                        out[i, p] = _code(v, inverse, zero)
            else:
                for c in range(channels - at):
                    p = np.uintp(at + c)
                    v = s * value[c] * gain[p] + bias[p]
                    if inverse is None:
                        out[i, p] = v
                    else:
                        out[i, p] = _code(v, inverse, zero)


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
    if width == 64:
        _sum_all(64, rows, starts, columns, words, totals, lift, scale, own, gain, bias, inverse,
                 zero, out)  # fmt: skip
    elif width == 32:
        _sum_all(32, rows, starts, columns, words, totals, lift, scale, own, gain, bias, inverse,
                 zero, out)  # fmt: skip
    else:
        _sum_all(16, rows, starts, columns, words, totals, lift, scale, own, gain, bias, inverse,
                 zero, out)  # fmt: skip
