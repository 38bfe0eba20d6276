"""Rows gathered one after another into one tensor, on the disk where they are many."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import suppress
from typing import BinaryIO, cast

import numpy as np
import torch
from torch import Tensor

from bitwright.errors import BitwrightError

#: bytes of rows that are kept in memory; more go to a file
MEMORY = 2**29
#: bytes that are copied at once
_PART = 2**24


class Spool:
    """Rows [n, ...] of one shape and type, batch by batch.

    More than `MEMORY` bytes of them lie in a file without a name, where temporary files do
    (`TMPDIR`), which is gone with the last tensor of it. It is mapped, copy on write: its pages are
    the system's, which takes them back at need.
    """

    def __init__(self) -> None:
        self._parts: list[Tensor] = []
        self._file: BinaryIO | None = None
        self._bytes = 0
        #: [0, ...], of the rows' shape and type; None before the first
        self.like: Tensor | None = None
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, rows: Tensor) -> None:
        """Append rows [k, ...], on the CPU.

        Raises:
            BitwrightError: no space is left for the file.
        """
        self.like = rows[:0] if self.like is None else self.like
        assert rows.shape[1:] == self.like.shape[1:] and rows.dtype == self.like.dtype
        self._count += len(rows)
        self._bytes += rows.nbytes
        if self._file is None and self._bytes <= MEMORY:
            self._parts.append(rows.clone())  # a loader may fill one buffer again and again
            return
        self._parts.append(rows)
        self._write()

    def rows(self) -> Tensor:
        """All of them [n, ...]; asked for once, at the end."""
        assert self.like is not None
        if self._file is None:
            return torch.cat(self._parts)
        # the map keeps the file
        with self._file:
            shape = (self._count, *self.like.shape[1:])
            return torch.from_numpy(np.memmap(self._file, self.like.numpy().dtype, "c", 0, shape))

    def _write(self) -> None:
        try:
            if self._file is None:
                self._file = cast(BinaryIO, tempfile.TemporaryFile())  # noqa: SIM115
            for part in self._parts:
                self._file.write(part.contiguous().numpy().data)
            self._file.flush()
        except OSError as error:
            if self._file is not None:
                with suppress(OSError):  # what is still to be written
                    self._file.close()
            raise BitwrightError(
                f"{self._bytes / 1e9:.1f} GB of rows do not fit into {tempfile.gettempdir()}: "
                f"{error.strerror}; set TMPDIR to a folder with more space, or give fewer rows"
            ) from error
        self._parts.clear()


def chosen(rows: Tensor, which: Sequence[int]) -> Tensor:
    """`rows[which]`: a view where they follow each other, and else as a :class:`Spool` has it."""
    first = which[0] if len(which) else 0
    if list(which) == list(range(first, first + len(which))):
        return rows[first : first + len(which)]
    found = Spool()
    each = max(1, _PART // max(1, rows[:1].nbytes))
    for start in range(0, len(which), each):
        found.add(rows[list(which[start : start + each])])
    return found.rows()
