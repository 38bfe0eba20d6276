"""What an npz file's arrays will take, before any is read: a small file can claim terabytes."""

from __future__ import annotations

import math
import os
import sys
import zipfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import IO

from numpy.lib import format as npy

from bitwright.errors import BitwrightError

#: bounds of a container, which /proc/meminfo does not know
_BOUNDS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def check_npz(path: Path, names: Iterable[str], most: int | None = None) -> None:
    """Refuse a file whose arrays of these names are too large, or claim more than they hold.

    Only the table of the zip and the arrays' headers are read. A member cannot unfold to more than
    that table says: reading stops there.

    Args:
        path: of a zip file.
        names: of the arrays that will be read; those the file lacks are passed over.
        most: bytes that they may take together; default: :func:`free_memory`.

    Raises:
        BitwrightError: with the file and what is wrong.
        Exception: anything that zipfile and numpy raise on damaged files.
    """
    bound = free_memory() if most is None else most
    with zipfile.ZipFile(path) as whole:
        held = set(whole.namelist())
        found = [n if n in held else f"{n}.npy" for n in names]  # as np.load looks for them
        members = [whole.getinfo(name) for name in found if name in held]
        total = sum(member.file_size for member in members)
        if total > bound:
            there = "that they may"
            if most is None:
                there = (
                    "of memory that are free here; give fewer rows, or mapped arrays "
                    "(np.load(file, mmap_mode='c')) from FILE.py:factory"
                )
            raise BitwrightError(
                f"{path}: its arrays take {total:,} bytes, more than the {bound:,} {there}"
            )
        for member in members:
            with whole.open(member) as file:
                claimed = _claimed(file)
            if not 0 <= claimed <= member.file_size:
                raise BitwrightError(
                    f"{path} is damaged: {member.filename} claims an array of {claimed:,} bytes "
                    f"and holds {member.file_size:,}; save it again"
                )


def _claimed(file: IO[bytes]) -> int:
    """Bytes of header and numbers that the header of an array tells of."""
    if file.read(len(npy.MAGIC_PREFIX)) != npy.MAGIC_PREFIX:
        return 0  # no array: its bytes, which the caller will refuse
    file.seek(0)
    version = npy.read_magic(file)
    # version 3 is version 2 in UTF-8, which only names of fields can tell apart
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, _, kind = read(file)
    if kind.hasobject:
        return 0  # refused by np.load, unread
    if min(shape, default=1) < 0:
        return -1
    return file.tell() + math.prod(shape) * kind.itemsize


def free_memory() -> int:
    """Bytes of memory that can be taken without pushing out others, or swapping.

    Of Linux `MemAvailable` (or the bound of a container, if lower); elsewhere all that the machine
    has; where the system does not tell, without a bound.
    """
    found = [sys.maxsize]
    with suppress(OSError, ValueError, AttributeError):  # AttributeError: Windows
        found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    with suppress(OSError, ValueError), open("/proc/meminfo") as lines:
        found += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvail")]
    for bound in _BOUNDS:
        with suppress(OSError, ValueError):  # ValueError: "max"
            found.append(int(Path(bound).read_text()))
    return min(found)
