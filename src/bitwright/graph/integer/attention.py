"""GAT's compiled passes: attention of each target's edges as 8-bit factors, and their sums.

    t_ij = exp(leaky(a_j + d_i)) = max(exp(a_j) exp(d_i), exp(λ a_j) exp(λ d_i))     0 ≤ λ ≤ 1

so that exponentials are taken of nodes, not of edges. Both are measured from the largest a, and
what that leaves too small to be exact is computed edge by edge.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from bitwright.graph.integer.kernels import MOST, _code, block_sums

#: below this, products of two exponentials may have lost digits
_LEAST = np.float32(1e-20)

_compiled = numba.njit(nogil=True, cache=True, error_model="numpy")
_inlined = numba.njit(inline="always", error_model="numpy")


@_compiled
def node_scores(sums: Any, less: Any, scale: Any, source: Any, target: Any, out: Any) -> None:
    """`Σ_c a_hc v_hc` for both ends of edges, of `v = (sums − less) · scale`.

    Args:
        sums: int32 [nodes, channels].
        less: int32 [channels].
        scale: float32 [channels].
        source, target: a, float32 [heads, channels of one].
        out: float32 [2, nodes, heads], written: of sources, and of targets.
    """
    heads, each = source.shape
    for i in range(sums.shape[0]):
        for h in range(heads):
            first, last = np.float32(0), np.float32(0)
            for c in range(each):
                at = np.uintp(h * each + c)
                v = np.float32(np.int32(sums[i, at] - less[at])) * scale[at]
                first += v * source[h, c]
                last += v * target[h, c]
            out[0, i, h] = first
            out[1, i, h] = last


@_compiled
def _attend(
    i: Any, count: Any, columns: Any, scores: Any, powers: Any, slope: Any, found: Any, peak: Any,
    total: Any,
) -> None:  # fmt: skip
    """t of the edges into node i, float32 [edges, heads], their largest and their sum by head.

    Args:
        columns: int32, sources.
        scores: float32 [2, nodes, heads].
        powers: float32 [2, nodes, 2 heads], exponentials of the scores and of λ times them.
    """
    heads = scores.shape[2]
    peak[:] = 0
    total[:] = 0
    for e in range(count):
        j = columns[e]
        for h in range(heads):
            t = max(powers[0, j, h] * powers[1, i, h],
                    powers[0, j, heads + h] * powers[1, i, heads + h])  # fmt: skip
            found[e, h] = t
            peak[h] = max(peak[h], t)
            total[h] += t
    for h in range(heads):
        if peak[h] < _LEAST:
            _attend_exactly(i, h, count, columns, scores, slope, found, peak, total)


@_compiled
def _attend_exactly(
    i: Any, h: Any, count: Any, columns: Any, scores: Any, slope: Any, found: Any, peak: Any,
    total: Any,
) -> None:  # fmt: skip
    """The same of one head, by exponentials of edges."""
    most = np.float32(-np.inf)
    for e in range(count):
        z = scores[0, columns[e], h] + scores[1, i, h]
        found[e, h] = max(z, slope * z)
        most = max(most, found[e, h])
    peak[h] = 1
    total[h] = 0
    for e in range(count):
        found[e, h] = np.exp(found[e, h] - most)
        total[h] += found[e, h]


@_inlined
def _pack(count: Any, found: Any, peak: Any, each: Any, words: Any, added: Any) -> None:
    """Factors `round(255 t / peak)` of each group, four bytes a word, and their sums by head.

    Args:
        each: words of a head.
        words: int32 [groups, channels / 4], written.
        added: int64 [heads], written.
    """
    for h in range(len(added)):
        rate = np.float32(255) / peak[h]
        many: Any = 0
        for g in range((count + 3) // 4):
            word: Any = 0
            for e in range(4 * g, min(4 * g + 4, count)):
                k = np.int32(np.rint(found[e, h] * rate))
                many += k
                word |= k << (8 * (e - 4 * g))
            for w in range(each):
                words[g, np.uintp(h * each + w)] = word
        added[h] = many


_block = block_sums(by_channel=True)  # a head's words are under its channels


@_compiled
def attend_and_sum(
    rows: Any, starts: Any, counts: Any, columns: Any, scores: Any, powers: Any, slope: Any,
    lift: Any, step: Any, channels: Any, mean: Any, gain: Any, bias: Any, inverse: Any, zero: Any,
    out: Any,
) -> None:  # fmt: skip
    """`Σ_j Q(α_ij) step (q_j − z)` of all heads, side by side or their mean, `· gain + bias`.

    Args:
        rows: codes q − 128, int8 [nodes, heads × channels of one, padded].
        starts, counts: int64, each node's first group, and its edges.
        columns: int32 [groups × 4] sources, and more to look ahead.
        scores, powers, slope: of :func:`_attend`.
        lift: 128 − z.
        step: of the codes.
        channels: of a head; its codes are padded to a multiple of four.
        mean: whether heads are averaged.
        gain, bias: float32 [channels of the result].
        inverse, zero: of the codes that follow, see :mod:`bitwright.graph.integer.kernels`.
        out: int8 or float32, written.
    """
    heads = scores.shape[2]
    each = (channels + 3) // 4
    most = 0
    for i in range(len(counts)):
        most = max(most, (counts[i] + 3) // 4)
    found = np.empty((4 * most, heads), np.float32)
    peak = np.empty(heads, np.float32)
    total = np.empty(heads, np.float32)
    added = np.empty(heads, np.int64)
    words = np.zeros((most, rows.shape[1] // 4), np.int32)
    stride, width = rows.shape[1], min(rows.shape[1], 64)
    part = np.empty(width, np.int32)
    codes, near = rows.ctypes.data, columns.ctypes.data
    factors, to = words.ctypes.data, part.ctypes.data
    value = np.empty(rows.shape[1], np.float64)
    result = np.zeros(len(gain), np.float32)
    for i in range(len(counts)):
        start, groups = starts[i], (counts[i] + 3) // 4
        _attend(i, counts[i], columns[4 * start :], scores, powers, slope, found, peak, total)
        _pack(counts[i], found, peak, each, words, added)
        value[:] = 0
        for at in range(0, stride, width):
            for first in range(0, groups, MOST):  # as many as 32 bits surely hold
                last = min(first + MOST, groups)
                _block(width, codes + at, stride, near + 16 * start, factors + at, first, last, to)
                for c in range(width):
                    value[np.uintp(at + c)] += part[c]
        if mean:
            result[:] = 0
        for h in range(heads):
            factor = peak[h] / total[h] * step / np.float32(255)
            shift = lift * added[h]
            for c in range(channels):
                v = np.float32(value[np.uintp(4 * h * each + c)] + shift) * factor
                if mean:
                    result[c] += v / np.float32(heads)
                else:
                    result[np.uintp(h * channels + c)] = v
        for c in range(out.shape[1]):
            v = result[c] * gain[c] + bias[c]
            if inverse is None:
                out[i, c] = v
            else:
                out[i, c] = _code(v, inverse, zero)
