"""Codes of 1 to 8 bits as four byte streams: whole bytes, nibbles, pairs and single bits.

A width is a sum of powers of two (7 = 4 + 2 + 1), so three unpackers serve every width: the code's
high part comes from the nibble stream, the middle from the pairs, the low bit from the bits. Each
stream holds widths in ascending order. Inside a stream of M bytes, value i lies in byte i mod M at
bit position p · (i div M), so that unpacking is a shift, a mask and a concatenation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

PLANES = (4, 2, 1)


def rows_by_width(widths: Sequence[np.ndarray]) -> dict[int, list[tuple[int, np.ndarray]]]:
    """For each width in use, ascending: who has such rows, and their indexes.

    Args:
        widths: of each member's rows, integers [rows].
    """
    found: dict[int, list[tuple[int, np.ndarray]]] = {}
    for bits in np.unique(np.concatenate(widths)) if widths else ():
        for member, own in enumerate(widths):
            rows = np.flatnonzero(own == bits)
            if rows.size:
                found.setdefault(int(bits), []).append((member, rows))
    return found


def codes_by_width(
    codes: Sequence[np.ndarray], rows: Mapping[int, Sequence[tuple[int, np.ndarray]]]
) -> dict[int, np.ndarray]:
    """All codes of each width, flat, in the order of :func:`rows_by_width`.

    Args:
        codes: of each member, uint8 [rows, fan_in].
        rows: width -> (member, indexes).
    """
    return {
        bits: np.concatenate([codes[member][own].ravel() for member, own in members])
        for bits, members in rows.items()
    }


def parts(bits: int) -> tuple[tuple[int, int], ...]:
    """(plane, shift) pairs that make up a width below 8, high part first: 7 -> 4@3, 2@1, 1@0."""
    found, shift = [], bits
    for plane in PLANES:
        if bits & plane:
            shift -= plane
            found.append((plane, shift))
    return tuple(found)


def pack_plane(values: np.ndarray, plane: int) -> np.ndarray:
    """Values below 2^plane, uint8 [N], as uint8 [ceil(N · plane / 8)]."""
    per_byte = 8 // plane
    size = -(-len(values) // per_byte)
    padded = np.zeros(size * per_byte, dtype=np.uint8)
    padded[: len(values)] = values
    packed = np.zeros(size, dtype=np.uint8)
    for j, column in enumerate(padded.reshape(per_byte, size)):
        packed |= column << np.uint8(plane * j)
    return packed


def unpack_plane(packed: np.ndarray, plane: int, count: int) -> np.ndarray:
    """The first `count` values of a stream, uint8."""
    mask = np.uint8(2**plane - 1)
    columns = [(packed >> np.uint8(plane * j)) & mask for j in range(8 // plane)]
    return np.concatenate(columns)[:count] if columns else packed[:0]


def pack(codes: Mapping[int, np.ndarray]) -> dict[int, np.ndarray]:
    """Streams by plane (8, 4, 2, 1) from codes by width, each uint8 and flat.

    Total size: Σ bits · count / 8 rounded up once for each stream.
    """
    streams = {8: codes.get(8, np.zeros(0, np.uint8))}
    for plane in PLANES:
        pieces = []
        for bits in range(1, 8):
            for p, shift in parts(bits):
                if p == plane and bits in codes:
                    pieces.append((codes[bits] >> np.uint8(shift)) & np.uint8(2**plane - 1))
        joined = np.concatenate(pieces) if pieces else np.zeros(0, np.uint8)
        streams[plane] = pack_plane(joined, plane)
    return streams


def unpack(streams: Mapping[int, np.ndarray], counts: Mapping[int, int]) -> dict[int, np.ndarray]:
    """Codes by width from streams; the inverse of :func:`pack`.

    Args:
        streams: plane -> uint8 bytes.
        counts: width -> number of codes.

    Raises:
        ValueError: a stream's length does not fit the counts.
    """
    totals = {p: sum(n for b, n in counts.items() if b < 8 and b & p) for p in PLANES}
    for plane, total in {8: counts.get(8, 0), **totals}.items():  # before anything is allocated
        if len(streams[plane]) != -(-total * plane // 8):
            raise ValueError(
                f"stream of {plane}-bit parts has {len(streams[plane])} bytes, "
                f"{total} codes need {-(-total * plane // 8)}"
            )
    codes = {b: np.zeros(n, np.uint8) for b, n in counts.items() if b < 8}
    for plane, total in totals.items():
        values, start = unpack_plane(streams[plane], plane, total), 0
        for bits in range(1, 8):
            if bits in codes and bits & plane:
                shift = dict(parts(bits))[plane]
                codes[bits] |= values[start : start + counts[bits]] << np.uint8(shift)
                start += counts[bits]
    if 8 in counts:
        codes[8] = np.asarray(streams[8])
    return codes
