"""Sums as narrow accumulators compute them, product by product, and what they meet on the way."""

from __future__ import annotations

import numba
import numpy as np
import numpy.typing as npt

from bitwright.arith.accumulator import Accumulator

Ints = npt.NDArray[np.int64]
Narrow = npt.NDArray[np.int32]
_exact = numba.njit(cache=True, nogil=True)


@_exact
def _saturating(x: Ints, w: Ints, lowest: int, highest: int, sums: Ints) -> None:
    for i in range(x.shape[0]):
        for row in range(w.shape[0]):
            total = 0
            for k in range(x.shape[1]):
                total = min(max(total + x[i, k] * w[row, k], lowest), highest)
            sums[i, row] = total


@_exact
def _pairs(x: Ints, w: Ints, lowest: int, highest: int, sums: Ints) -> None:
    for i in range(x.shape[0]):
        for row in range(w.shape[0]):
            total = 0
            for k in range(0, x.shape[1], 2):
                pair = x[i, k] * w[row, k]
                if k + 1 < x.shape[1]:
                    pair += x[i, k + 1] * w[row, k + 1]
                total += min(max(pair, lowest), highest)
            sums[i, row] = total


def narrow_sums(x: Ints, w: Ints, accumulator: Accumulator) -> Ints:
    """`x @ wᵀ` as the accumulator computes it, in the order of K: int64 [n, rows].

    Args:
        x: [n, K] integers, zero point taken off; for `pairs` as stored.
        w: [rows, K] integers; for `pairs` in the kernel's order (channels of a position together).
        accumulator: how sums are kept.
    """
    x, w = np.ascontiguousarray(x, np.int64), np.ascontiguousarray(w, np.int64)
    if accumulator.kind == "wrap":
        half = np.int64(2 ** (accumulator.bits - 1))
        wrapped: Ints = (x @ w.T + half) % (2 * half) - half
        return wrapped
    sums = np.empty((len(x), len(w)), np.int64)
    kernel = _pairs if accumulator.kind == "pairs" else _saturating
    kernel(x, w, accumulator.lowest, accumulator.highest, sums)
    return sums


@_exact
def _partial(x: Narrow, w: Narrow, limits: tuple[int, int], found: Ints) -> None:
    """Every partial sum; products with zero change none."""
    rows = w.shape[1]
    least, most = np.zeros(rows, np.int32), np.zeros(rows, np.int32)
    total = np.zeros(rows, np.int32)
    for i in range(x.shape[0]):
        total[:], least[:], most[:] = 0, 0, 0
        for k in range(x.shape[1]):
            value = x[i, k]
            if value == 0:
                continue
            for row in range(rows):
                now = np.int32(total[row] + np.int32(value * w[k, row]))
                total[row] = now
                least[row] = min(least[row], now)
                most[row] = max(most[row], now)
        _keep(least, most, limits, found)


@_exact
def _neighbours(x: Narrow, w: Narrow, limits: tuple[int, int], found: Ints) -> None:
    """Every sum of two neighbours, an odd last one by itself."""
    rows = w.shape[1]
    least, most = np.zeros(rows, np.int32), np.zeros(rows, np.int32)
    for i in range(x.shape[0]):
        least[:], most[:] = 0, 0
        for k in range(0, x.shape[1] - 1, 2):
            a, b = x[i, k], x[i, k + 1]
            for row in range(rows):
                now = np.int32(np.int32(a * w[k, row]) + np.int32(b * w[k + 1, row]))
                least[row] = min(least[row], now)
                most[row] = max(most[row], now)
        _keep(least, most, limits, found)


@_exact
def _keep(least: Narrow, most: Narrow, limits: tuple[int, int], found: Ints) -> None:
    for row in range(len(least)):
        found[0, row] = min(found[0, row], least[row])
        found[1, row] = max(found[1, row], most[row])
        found[2, row] += least[row] < limits[0] or most[row] > limits[1]


def met(x: Ints, w: Ints, accumulator: Accumulator) -> tuple[Ints, Ints, Ints]:
    """What a `saturate` or `pairs` accumulator meets on its way through K, were it wide enough.

    Args: as for :func:`narrow_sums`; no sum may pass 2³¹.

    Returns:
        The least and the greatest number, 0 among them, and how many of the n sums meet one that
        does not fit; int64 [rows] each.
    """
    found = np.zeros((3, len(w)), np.int64)
    x, w = np.asarray(x, np.int32), np.asarray(w, np.int32)
    kernel = _partial
    if accumulator.kind == "pairs":
        kernel, odd = _neighbours, ((0, 0), (0, x.shape[1] % 2))
        x, w = np.pad(x, odd), np.pad(w, odd)
    limits = accumulator.lowest, accumulator.highest
    kernel(np.ascontiguousarray(x), np.ascontiguousarray(w.T), limits, found)
    return found[0], found[1], found[2]
