"""What multi-bit layers are stored as, and so what they cost: signs, coordinates, counts of bases.

Groups are sorted by falling counts, equal ones in their own order: basis i of a layer stands in its
first Gᵢ groups, whose signs follow one another, n bits each. Counts take four bits a group,
compressed; an empty group is a zero among them and nothing else. Coordinates are float16.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from bitwright.arith.multibit import MOST_BASES, Bases, tidied
from bitwright.arith.packing import pack_plane, unpack_plane


@dataclass(frozen=True)
class Packed:
    """Layers one after another.

    Attributes:
        counts: uint8, zlib: bases of each group, two to a byte.
        alpha: float16, of layer, basis and group, in this order.
        signs: uint8, bits in the same order, n of each coordinate.
    """

    counts: np.ndarray
    alpha: np.ndarray
    signs: np.ndarray

    @property
    def size_bits(self) -> int:
        """All of it: what the weights take in the file."""
        return 8 * (self.counts.nbytes + self.alpha.nbytes + self.signs.nbytes)


def compacted(bases: Bases) -> Bases:
    """The same weights with float16 coordinates, largest first, and no holes between them.

    A coordinate that float16 rounds to zero is a basis less.
    """
    held = tidied(Bases(bases.codes, bases.alpha.half().float()))
    alpha, order = held.alpha.sort(dim=1, descending=True, stable=True)
    codes = torch.zeros_like(held.codes)
    for i in range(alpha.shape[1]):
        bit = (held.codes >> order[:, i : i + 1].to(torch.uint8)) & 1
        codes |= bit << i
    return Bases(codes, alpha)


def falling(counts: np.ndarray) -> np.ndarray:
    """Groups by falling counts, equal ones in their own order."""
    return np.argsort(-counts.astype(np.int64), kind="stable")


def planes(bases: Bases) -> list[tuple[np.ndarray, np.ndarray]]:
    """Of each basis in use: signs uint8 [Gᵢ, n] (0 or 1) and coordinates float16 [Gᵢ].

    `bases` is :func:`compacted`.
    """
    counts = bases.counts.numpy()
    order = falling(counts)
    codes, alpha = bases.codes.numpy()[order], bases.alpha.numpy()[order]
    found = []
    for i in range(int(counts.max(initial=0))):
        many = int((counts > i).sum())
        found.append(((codes[:many] >> i) & 1, alpha[:many, i].astype(np.float16)))
    return found


def pack(layers: Sequence[Bases]) -> Packed:
    """Stored form of layers, each :func:`compacted`."""
    parts = [part for bases in layers for part in planes(bases)]
    counts = np.concatenate([bases.counts.numpy().astype(np.uint8) for bases in layers])
    signs = [bits.ravel() for bits, _ in parts] or [np.zeros(0, np.uint8)]
    alpha = [values for _, values in parts] or [np.zeros(0, np.float16)]
    return Packed(
        np.frombuffer(zlib.compress(pack_plane(counts, 4).tobytes(), 9), np.uint8),
        np.concatenate(alpha),
        pack_plane(np.concatenate(signs), 1),
    )


def unpack(packed: Packed, shapes: Sequence[tuple[int, int]]) -> list[Bases]:
    """The layers of (groups, n); the inverse of :func:`pack`.

    Raises:
        ValueError: sizes that do not fit each other, or coordinates that are none.
    """
    total = sum(groups for groups, _ in shapes)
    engine = zlib.decompressobj()
    nibbles = engine.decompress(packed.counts.tobytes(), -(-total // 2) + 1)
    if not engine.eof or engine.unused_data or len(nibbles) != -(-total // 2):
        raise ValueError(f"counts of {len(nibbles)} bytes for {total} groups")
    counts = unpack_plane(np.frombuffer(nibbles, np.uint8), 4, total)
    if counts.max(initial=0) > MOST_BASES:
        raise ValueError(f"a group of {counts.max()} bases; the most are {MOST_BASES}")
    ends = np.cumsum([0, *(groups for groups, _ in shapes)])
    each = [counts[a:b] for a, b in itertools.pairwise(ends)]
    bits = sum(int(c.sum()) * n for c, (_, n) in zip(each, shapes, strict=True))
    if len(packed.alpha) != int(counts.sum(dtype=np.int64)) or len(packed.signs) != -(-bits // 8):
        raise ValueError(
            f"{len(packed.alpha)} coordinates and {len(packed.signs)} bytes of signs for "
            f"{int(counts.sum(dtype=np.int64))} bases of {bits} bits"
        )
    if not (np.isfinite(packed.alpha).all() and (packed.alpha > 0).all()):
        raise ValueError("coordinates that are not positive numbers")
    flat, found, place, first = unpack_plane(packed.signs, 1, bits), [], 0, 0
    for count, (groups, n) in zip(each, shapes, strict=True):
        order = falling(count)
        codes = np.zeros((groups, n), np.uint8)
        alpha = np.zeros((groups, max(1, int(count.max(initial=0)))), np.float32)
        for i in range(int(count.max(initial=0))):
            rows = order[: int((count > i).sum())]
            size = len(rows) * n
            codes[rows] |= flat[place : place + size].reshape(-1, n) << np.uint8(i)
            alpha[rows, i] = packed.alpha[first : first + len(rows)]
            place, first = place + size, first + len(rows)
        found.append(Bases(torch.from_numpy(codes), torch.from_numpy(alpha)))
    return found
