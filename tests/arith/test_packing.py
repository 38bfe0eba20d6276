"""Codes of any widths, packed into four streams and back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitwright.arith.packing import (
    PLANES,
    codes_by_width,
    pack,
    pack_plane,
    parts,
    rows_by_width,
    unpack,
    unpack_plane,
)

counts = st.dictionaries(st.integers(1, 8), st.integers(0, 70), max_size=8)


def draw(widths: dict[int, int], seed: int) -> dict[int, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {b: rng.integers(0, 2**b, n).astype(np.uint8) for b, n in widths.items()}


@settings(max_examples=150, deadline=None)
@given(counts, st.integers(0, 2**31))
def test_unpack_inverts_pack(widths: dict[int, int], seed: int):
    codes = draw(widths, seed)
    found = unpack(pack(codes), widths)
    assert found.keys() == codes.keys()
    for bits, values in codes.items():
        assert found[bits].dtype == np.uint8
        assert np.array_equal(found[bits], values), bits


@settings(max_examples=100, deadline=None)
@given(counts)
def test_size_is_the_bits_rounded_up_once_a_stream(widths: dict[int, int]):
    streams = pack(draw(widths, 0))
    assert set(streams) == {8, *PLANES}
    for plane in (8, *PLANES):
        values = sum(n for b, n in widths.items() if b & plane)
        assert streams[plane].dtype == np.uint8
        assert len(streams[plane]) == -(-values * plane // 8)
    bits = sum(b * n for b, n in widths.items())
    assert bits <= 8 * sum(map(len, streams.values())) < bits + 3 * 8


@settings(max_examples=100, deadline=None)
@given(counts, st.sampled_from([8, 4, 2, 1]), st.sampled_from([-1, 1, 7]))
def test_a_stream_of_a_wrong_length_is_refused(widths: dict[int, int], plane: int, change: int):
    streams = pack(draw(widths, 0))
    size = len(streams[plane]) + change
    streams[plane] = np.resize(streams[plane], max(size, 0)) if size > 0 else np.zeros(0, np.uint8)
    if size < 0:
        streams[plane] = np.zeros(1, np.uint8)
    with pytest.raises(ValueError, match="stream of"):
        unpack(streams, widths)


@pytest.mark.parametrize("bits", range(1, 8))
def test_parts_add_up_to_the_width(bits: int):
    found = parts(bits)
    assert sum(plane for plane, _ in found) == bits
    used = [bit for plane, shift in found for bit in range(shift, shift + plane)]
    assert sorted(used) == list(range(bits))  # every bit of the code once, none twice
    assert [shift for _, shift in found] == sorted((s for _, s in found), reverse=True)


def test_value_i_lies_in_byte_i_mod_m():
    values = np.array([1, 2, 3, 0, 2], np.uint8)
    packed = pack_plane(values, 2)  # two bytes: values 0, 2, 4 and values 1, 3
    assert packed.tolist() == [1 | 3 << 2 | 2 << 4, 2]
    assert unpack_plane(packed, 2, 5).tolist() == values.tolist()


def test_other_widths_do_not_fit_the_same_streams():
    streams = pack({3: np.full(40, 5, np.uint8)})
    with pytest.raises(ValueError):
        unpack(streams, {5: 40})
    assert not np.array_equal(unpack(streams, {1: 40, 2: 40})[2], np.full(40, 5))


def test_codes_by_width_follow_their_rows():
    widths = [np.array([3, 1, 3]), np.array([8, 1])]
    codes = [
        np.arange(6, dtype=np.uint8).reshape(3, 2),
        10 + np.arange(6, dtype=np.uint8).reshape(2, 3),
    ]
    rows = rows_by_width(widths)
    assert [(b, [(i, r.tolist()) for i, r in m]) for b, m in rows.items()] == [
        (1, [(0, [1]), (1, [1])]),
        (3, [(0, [0, 2])]),
        (8, [(1, [0])]),
    ]
    found = codes_by_width(codes, rows)
    assert {b: c.tolist() for b, c in found.items()} == {
        1: [2, 3, 13, 14, 15],
        3: [0, 1, 4, 5],
        8: [10, 11, 12],
    }
    assert rows_by_width([]) == {}
