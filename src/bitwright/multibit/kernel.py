"""Products of multi-bit weights with multi-bit activations by XNOR and popcount.

For signs a, b ∈ {−1, +1}ⁿ stored as bits, `⟨a, b⟩ = n − 2 · popcount(a xor b)`; so

    y_o = Σ_g Σ_i Σ_k α_{o,g,i} β_k (n − 2 popcount(A_{o,g,i} xor B_{k,g}))

needs no multiplication but those of coordinates (Rastegari et al., arXiv 1603.05279, for one basis;
ALQ, sec. 3). Signs lie in 64-bit words. A group without bases takes no time.
"""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np
import torch
from torch import Tensor

from bitwright.arith.multibit import Bases


@dataclass(frozen=True)
class BinaryMatrix:
    """Rows of groups of n weights, by basis that is there: what the kernel reads.

    Attributes:
        words: uint64 [K, ceil(n / 64)], signs of each coordinate; bits behind n are 0.
        alpha: float32 [K].
        group: int32 [K], which group of its row each coordinate belongs to.
        first: int64 [rows + 1], where each row's coordinates begin.
        size: n.
    """

    words: np.ndarray
    alpha: np.ndarray
    group: np.ndarray
    first: np.ndarray
    size: int


def to_words(bits: np.ndarray) -> np.ndarray:
    """Bits uint8 [m, n], 0 or 1, as uint64 [m, ceil(n / 64)], first bit lowest."""
    m, n = bits.shape
    padded = np.zeros((m, -(-n // 64) * 64), np.uint8)
    padded[:, :n] = bits
    return np.packbits(padded, axis=1, bitorder="little").view("<u8")


def matrix(bases: Bases, rows: int) -> BinaryMatrix:
    """The matrix [rows, groups · n] that bases of channels or parts of channels stand for."""
    there = bases.alpha.numpy() > 0
    where, which = np.nonzero(there)  # by group, so by row
    bits = (bases.codes.numpy()[where] >> which[:, None].astype(np.uint8)) & 1
    each = len(there) // rows
    first = np.concatenate([[0], np.cumsum(there.sum(1).reshape(rows, each).sum(1))])
    return BinaryMatrix(
        to_words(bits), bases.alpha.numpy()[where, which].astype(np.float32),
        (where % each).astype(np.int32), first.astype(np.int64), bases.codes.shape[1],
    )  # fmt: skip


def product(weights: BinaryMatrix, x: Bases, batch: int) -> Tensor:
    """y [batch, rows] of activations whose groups are cut as the weights' are.

    Args:
        weights: of :func:`matrix`.
        x: bases of [batch · groups, n], one row's groups after another; all have the same count.
        batch: rows of x.
    """
    count = x.alpha.shape[1]
    signs = [to_words((x.codes.numpy() >> i) & 1) for i in range(count)]
    words = np.stack(signs, 1).reshape(batch, -1, count, weights.words.shape[1])
    beta = np.ascontiguousarray(x.alpha.numpy(), np.float32).reshape(batch, -1, count)
    found = np.empty((batch, len(weights.first) - 1), np.float32)
    _multiply(
        weights.words, weights.alpha, weights.group, weights.first, weights.size, words, beta, found
    )
    return torch.from_numpy(found)


@numba.njit(cache=True, inline="always")
def _ones(v: np.uint64) -> np.uint64:
    """Bits of v that are 1; LLVM makes one instruction of it where there is one."""
    v = v - ((v >> np.uint64(1)) & np.uint64(0x5555555555555555))
    v = (v & np.uint64(0x3333333333333333)) + ((v >> np.uint64(2)) & np.uint64(0x3333333333333333))
    v = (v + (v >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return (v * np.uint64(0x0101010101010101)) >> np.uint64(56)


@numba.njit(cache=True)
def _multiply(words, alpha, group, first, size, x, beta, found):  # type: ignore[no-untyped-def]
    for b in range(x.shape[0]):
        for row in range(len(first) - 1):
            total = np.float32(0)
            for k in range(first[row], first[row + 1]):
                g = group[k]
                for i in range(x.shape[2]):
                    different = np.uint64(0)
                    for w in range(words.shape[1]):
                        different += _ones(words[k, w] ^ x[b, g, i, w])
                    agreeing = np.float32(size - 2 * np.int64(different))
                    total += alpha[k] * beta[b, g, i] * agreeing
            found[b, row] = total
