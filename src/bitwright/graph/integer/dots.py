"""Sums of byte rows in 32 bits, four rows at a time, in the processor's own dot product of bytes.

    sum_c = Σ_g Σ_{e<4} k_{g,e} q_{columns[4g+e], c}      k unsigned, q signed bytes

Four rows are interleaved, so that the four bytes of a channel lie side by side, and `vpdpbusd`
multiplies and adds them in one step (processors with VNNI); elsewhere the same sums are written as
widening products. Compilers do not find this form in a loop, so it is spelt in LLVM's terms here,
for rows of 16, 32 or 64 bytes. Integers: both give the same numbers, and no rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

#: groups of four rows that are asked for ahead; columns go on for as many behind the last
AHEAD = 16

_I8, _I32, _I64 = ir.IntType(8), ir.IntType(32), ir.IntType(64)


def has_byte_dots() -> bool:
    """Whether this processor multiplies and adds four bytes at once (AVX-512 VNNI)."""
    features = llvm.get_host_cpu_features()
    return all(features.get(name, False) for name in ("avx512vnni", "avx512vl"))


def _vector(kind: ir.Type, count: int) -> ir.VectorType:
    return ir.VectorType(kind, count)


def _places(places: Sequence[int]) -> ir.Constant:
    """Indexes of a shuffle."""
    return ir.Constant(_vector(_I32, len(places)), [ir.Constant(_I32, p) for p in places])


def _pick(b: Any, one: Any, other: Any, places: Sequence[int]) -> Any:
    return b.shuffle_vector(one, other, _places(places))


def _interleaved(b: Any, rows: Sequence[Any], width: int) -> list[Any]:
    """Four vectors of `width` bytes; the k-th has channels 16 l + 4 k to + 3 of all four rows.

    Within each 128 bits l, as the processor's unpacking goes.
    """

    def unpacked(one: Any, other: Any, high: int, size: int) -> Any:
        places = [
            16 * lane + 8 * high + size * i + byte + source
            for lane in range(width // 16)
            for i in range(8 // size)
            for source in (0, width)
            for byte in range(size)
        ]
        return _pick(b, one, other, places)

    first = [unpacked(rows[0], rows[1], high, 1) for high in (0, 1)]
    last = [unpacked(rows[2], rows[3], high, 1) for high in (0, 1)]
    return [unpacked(first[i], last[i], high, 2) for i in (0, 1) for high in (0, 1)]


def _by_dots(b: Any, sums: list[Any], rows: list[Any], words: Any, width: int) -> list[Any]:
    """The four vectors of sums with four more rows; their channels as :func:`_interleaved` has."""
    kind = _vector(_I32, width // 4)
    bytes_ = _vector(_I8, width)
    dot = cgutils.get_or_insert_function(
        b.module, ir.FunctionType(kind, [kind, bytes_, bytes_]),
        f"llvm.x86.avx512.vpdpbusd.{8 * width}",
    )  # fmt: skip
    found = []
    for k, (total, q) in enumerate(zip(sums, _interleaved(b, rows, width), strict=True)):
        own = [4 * lane + k for lane in range(width // 16) for _ in range(4)]
        factor = b.bitcast(_pick(b, words, words, own), bytes_)
        found.append(b.call(dot, [total, factor, q]))
    return found


def _by_products(b: Any, sums: list[Any], rows: list[Any], words: Any, width: int) -> list[Any]:
    """One vector of sums, channels in order, with four more rows."""
    kind = _vector(_I32, width)
    each = _pick(b, words, words, [c // 4 for c in range(width)])
    low = ir.Constant(kind, [ir.Constant(_I32, 255)] * width)
    total = sums[0]
    for e, row in enumerate(rows):
        shift = ir.Constant(kind, [ir.Constant(_I32, 8 * e)] * width)
        factor = b.and_(b.lshr(each, shift), low)
        total = b.add(total, b.mul(factor, b.sext(row, kind)))
    return [total]


def _ordered(b: Any, sums: list[Any], width: int) -> Any:
    """All sums in the order of their channels."""
    if len(sums) == 1:
        return sums[0]
    half, whole = range(width // 2), range(width)
    joined = [_pick(b, sums[i], sums[i + 1], half) for i in (0, 2)]
    places = [
        (width // 4) * (c % 16 // 4) + 4 * (c // 16) + c % 4 for c in whole
    ]  # of channel c: vector, 128 bits, and its place there
    return _pick(b, joined[0], joined[1], places)


def row_sums(width: int, by_channel: bool, dots: bool) -> Callable[..., Any]:
    """An intrinsic that sums rows of `width` bytes, 16, 32 or 64.

    Called with addresses of rows (and their stride in bytes), of columns int32 [groups, 4], of
    words (four factors k as bytes of an int32) and with the first group, the group behind the
    last, and the address of int32 [width], which is written.

    Args:
        width: bytes of a row.
        by_channel: a group has not one word for all channels, but one for each four channels, and
            those of the next group begin `stride / 4` words behind.
        dots: use the processor's products of bytes, see :func:`has_byte_dots`.
    """
    add = _by_dots if dots else _by_products
    parts = 4 if dots else 1

    def emit(context: Any, b: Any, signature: Any, given: Any) -> Any:
        rows, stride, columns, words, first, last, out = given
        rows = b.inttoptr(rows, _I8.as_pointer())
        columns, words = (b.inttoptr(p, _I32.as_pointer()) for p in (columns, words))
        zero = ir.Constant(_vector(_I32, width // parts), None)
        before = b.block
        loop, end = b.append_basic_block("rows"), b.append_basic_block("end")
        b.cbranch(b.icmp_signed("<", first, last), loop, end)
        b.position_at_end(loop)
        group = b.phi(_I64)
        group.add_incoming(first, before)
        sums = [b.phi(zero.type) for _ in range(parts)]
        at = b.shl(group, ir.Constant(_I64, 2))
        some = [_row(b, rows, stride, columns, at, e, width) for e in range(4)]
        factors = _words(b, words, group, stride, width, by_channel)
        more = add(b, sums, some, factors, width)
        then = b.add(group, ir.Constant(_I64, 1))
        group.add_incoming(then, loop)
        b.cbranch(b.icmp_signed("<", then, last), loop, end)
        b.position_at_end(end)
        found = []
        for total, one in zip(sums, more, strict=True):
            total.add_incoming(zero, before)
            total.add_incoming(one, loop)
            result = b.phi(zero.type)
            result.add_incoming(zero, before)
            result.add_incoming(one, loop)
            found.append(result)
        target = b.inttoptr(out, _vector(_I32, width).as_pointer())
        b.store(_ordered(b, found, width), target, align=4)
        return context.get_dummy_value()

    def typed(
        context: Any, rows: Any, stride: Any, columns: Any, words: Any, first: Any, last: Any,
        out: Any,
    ) -> Any:  # fmt: skip
        address, count = types.uintp, types.int64
        return types.void(address, count, address, address, count, count, address), emit

    return intrinsic(typed)


def _row(b: Any, rows: Any, stride: Any, columns: Any, at: Any, e: int, width: int) -> Any:
    """The e-th row of a group; the one that comes so many groups later is asked for."""

    def address(offset: int) -> Any:
        column = b.load(b.gep(columns, [b.add(at, ir.Constant(_I64, e + 4 * offset))]))
        return b.gep(rows, [b.mul(b.zext(column, _I64), stride)])

    ask = cgutils.get_or_insert_function(
        b.module, ir.FunctionType(ir.VoidType(), [_I8.as_pointer(), _I32, _I32, _I32]),
        "llvm.prefetch.p0",
    )  # fmt: skip
    b.call(ask, [address(AHEAD), *(ir.Constant(_I32, n) for n in (0, 3, 1))])
    return b.load(b.bitcast(address(0), _vector(_I8, width).as_pointer()), align=1)


def _words(b: Any, words: Any, group: Any, stride: Any, width: int, by_channel: bool) -> Any:
    """A group's factors, one word for each four channels."""
    kind = _vector(_I32, width // 4)
    if by_channel:
        start = b.mul(group, b.ashr(stride, ir.Constant(_I64, 2)))
        return b.load(b.bitcast(b.gep(words, [start]), kind.as_pointer()), align=4)
    word = b.load(b.gep(words, [group]))
    one = b.insert_element(ir.Constant(kind, ir.Undefined), word, ir.Constant(_I32, 0))
    return _pick(b, one, one, [0] * (width // 4))
