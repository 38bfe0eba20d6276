"""Products of byte rows with a matrix, four rows at a time, from codes to codes.

    sum_io = begin_o + Σ_k q_ik w_ko     q unsigned, w signed bytes; 32-bit integers

`vpdpbusd` multiplies and adds four k at once, and the sums of four rows stay in registers until
they are whole; then what they stand for is written. A general product of matrices writes its 32-bit
sums to memory and has to read them again, which takes longer than the products.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from bitwright.graph.integer.kernels import _code

_I8, _I32, _I64 = ir.IntType(8), ir.IntType(32), ir.IntType(64)
_SUMS, _BYTES = ir.VectorType(_I32, 16), ir.VectorType(_I8, 64)
#: rows of a tile
_ROWS = 4

_inlined = numba.njit(inline="always", error_model="numpy")


def _tile(width: int) -> Callable[..., Any]:
    """An intrinsic that multiplies four rows with `width` columns, 16, 32 or 64.

    Called with addresses of rows q − 128 int8 [4, inputs] (and their stride in bytes), the number
    of inputs, a multiple of four, and addresses of the matrix int8 [inputs / 4, width, 4], of begin
    int32 [width] and of int32 [4, width], which is written.
    """
    parts = width // 16

    def emit(context: Any, b: Any, signature: Any, given: Any) -> Any:
        rows, stride, inputs, matrix, begin, out = given
        rows, matrix = (b.inttoptr(p, _I8.as_pointer()) for p in (rows, matrix))
        begin, out = (b.inttoptr(p, _SUMS.as_pointer()) for p in (begin, out))
        dot = cgutils.get_or_insert_function(
            b.module, ir.FunctionType(_SUMS, [_SUMS, _BYTES, _BYTES]),
            "llvm.x86.avx512.vpdpbusd.512",
        )  # fmt: skip

        def number(n: int) -> Any:
            return ir.Constant(_I64, n)

        first = [b.load(b.gep(begin, [number(j)]), align=4) for j in range(parts)]
        before, loop = b.block, b.append_basic_block("inputs")
        end = b.append_basic_block("end")
        b.branch(loop)
        b.position_at_end(loop)
        at = b.phi(_I64)
        at.add_incoming(number(0), before)
        sums = [[b.phi(_SUMS) for _ in range(parts)] for _ in range(_ROWS)]
        near = b.gep(matrix, [b.mul(at, number(width))])
        weights = [
            b.load(b.bitcast(b.gep(near, [number(64 * j)]), _BYTES.as_pointer()), align=1)
            for j in range(parts)
        ]
        found = []
        for own, q in zip(sums, _four_inputs(b, rows, stride, at), strict=True):
            found.append([b.call(dot, [n, q, w]) for n, w in zip(own, weights, strict=True)])
        then = b.add(at, number(4))
        at.add_incoming(then, loop)
        for own, more in zip(sums, found, strict=True):
            for j in range(parts):
                own[j].add_incoming(first[j], before)
                own[j].add_incoming(more[j], loop)
        b.cbranch(b.icmp_signed("<", then, inputs), loop, end)
        b.position_at_end(end)
        for r, more in enumerate(found):
            for j in range(parts):
                b.store(more[j], b.gep(out, [number(r * parts + j)]), align=4)
        return context.get_dummy_value()

    def typed(
        context: Any, rows: Any, stride: Any, inputs: Any, matrix: Any, begin: Any, out: Any
    ) -> Any:
        address, count = types.uintp, types.int64
        return types.void(address, count, count, address, address, address), emit

    return intrinsic(typed)


def _four_inputs(b: Any, rows: Any, stride: Any, at: Any) -> list[Any]:
    """Of each row, the unsigned codes of the inputs at, …, at + 3, sixteen times."""
    every = ir.Constant(_SUMS, [ir.Constant(_I32, 0)] * 16)
    sign = ir.Constant(_I32, -0x7F7F7F80)  # turns q − 128 into q, four times
    found = []
    for r in range(_ROWS):
        place = b.gep(rows, [b.add(b.mul(stride, ir.Constant(_I64, r)), at)])
        word = b.load(b.bitcast(place, _I32.as_pointer()), align=1)
        word = b.xor(word, sign)  # of 16 words at once LLVM makes code for minutes
        one = b.insert_element(ir.Constant(_SUMS, ir.Undefined), word, ir.Constant(_I32, 0))
        found.append(b.bitcast(b.shuffle_vector(one, one, every), _BYTES))
    return found


_tile16, _tile32, _tile64 = (_tile(width) for width in (16, 32, 64))


@_inlined
def _multiply(
    width: Any, rows: Any, stride: Any, inputs: Any, matrix: Any, begin: Any, out: Any
) -> None:
    if width == 64:
        _tile64(rows, stride, inputs, matrix, begin, out)
    elif width == 32:
        _tile32(rows, stride, inputs, matrix, begin, out)
    else:
        _tile16(rows, stride, inputs, matrix, begin, out)


@_inlined
def _all(
    width: Any, rows: Any, matrix: Any, begin: Any, scale: Any, shift: Any, more: Any,
    inverse: Any, zero: Any, out: Any,
) -> None:  # fmt: skip
    """:func:`multiply` with a width that is known when it is compiled."""
    part, other = np.empty((_ROWS, width), np.int32), np.empty((_ROWS, width), np.int32)
    value = np.empty(width, np.float32)
    inputs, channels = rows.shape[1], out.shape[1]
    for i in range(0, len(rows), _ROWS):
        for at in range(0, len(scale), width):
            full = len(rows) - i >= _ROWS
            for r in range(0, min(_ROWS, len(rows) - i)):
                # of the last rows one by one, the tile has the same row four times
                if r == 0 or not full:
                    _multiply(
                        width, rows.ctypes.data + (i + r) * inputs, inputs if full else 0, inputs,
                        matrix.ctypes.data + at * inputs, begin.ctypes.data + 4 * at,
                        part.ctypes.data,
                    )  # fmt: skip
                    if more is not None:
                        _multiply(
                            width, more[0].ctypes.data + (i + r) * more[0].shape[1],
                            more[0].shape[1] if full else 0, more[0].shape[1],
                            more[1].ctypes.data + at * more[0].shape[1],
                            more[2].ctypes.data + 4 * at, other.ctypes.data,
                        )  # fmt: skip
                for c in range(width):
                    p = np.uintp(at + c)
                    value[c] = np.float32(part[r, c]) * scale[p] + shift[p]
                    if more is not None:
                        value[c] += np.float32(other[r, c]) * more[3][p]
                if inverse is None:
                    for c in range(min(width, channels - at)):
                        out[i + r, at + c] = value[c]
                else:
                    for c in range(width):
                        out[i + r, np.uintp(at + c)] = _code(value[c], inverse, zero)


@numba.njit(nogil=True, cache=True, error_model="numpy")
def multiply(
    rows: Any, matrix: Any, begin: Any, scale: Any, shift: Any, more: Any, inverse: Any, zero: Any,
    width: Any, out: Any,
) -> None:  # fmt: skip
    """`(begin + q W) · scale + shift`, and the same of other rows added, without their shift.

    Args:
        rows: codes q − 128, int8 [nodes, inputs].
        matrix: W int8 [outputs / width, inputs / 4, width, 4].
        begin: int32 [outputs].
        scale, shift: float32 [outputs].
        more: rows, matrix, begin and scale of what is added, or None.
        inverse, zero: of the codes, see :mod:`bitwright.graph.integer.kernels`.
        width: of a block of outputs, 16, 32 or 64.
        out: int8 [nodes, outputs] or float32 [nodes, at most outputs], written.
    """
    if width == 64:
        _all(64, rows, matrix, begin, scale, shift, more, inverse, zero, out)
    elif width == 32:
        _all(32, rows, matrix, begin, scale, shift, more, inverse, zero, out)
    else:
        _all(16, rows, matrix, begin, scale, shift, more, inverse, zero, out)
