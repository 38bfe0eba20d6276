"""The folder that a command writes to: made where there is none, and one process's at a time."""

from __future__ import annotations

import os
import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from bitwright.errors import BitwrightError

if sys.platform != "win32":  # two processes in one folder are not kept apart there
    import fcntl


class Lock:
    """A folder that this process alone writes to, until the last claim on it here is gone.

    The system gives it back when the process ends, however it ends.
    """

    def __init__(self, folder: Path) -> None:
        if sys.platform == "win32":
            return
        handle = os.open(folder, os.O_RDONLY)
        weakref.finalize(self, os.close, handle)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BitwrightError(
                f"another process works in {folder}; wait for it, or give another --out"
            ) from error
        except OSError:  # a file system without locks
            pass


_held: weakref.WeakValueDictionary[tuple[int, int], Lock] = weakref.WeakValueDictionary()


def claimed(folder: Path) -> Lock:
    """Make a folder where there is none, and lock it; a process may claim what it has already.

    Raises:
        BitwrightError: it cannot be made, or another process works in it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = "a file is in the way" if folder.exists() else error.strerror
        raise BitwrightError(
            f"the output folder {folder} cannot be made: {reason}; give another --out"
        ) from error
    found = folder.stat()
    key = (found.st_dev, found.st_ino)
    lock = _held.get(key)
    if lock is None:
        lock = _held[key] = Lock(folder)
    return lock


@contextmanager
def made(folder: Path) -> Iterator[None]:
    """Claim a folder meanwhile; if the body fails and has left nothing in it, it is gone again.

    Raises:
        BitwrightError: see :func:`claimed`.
    """
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    lock = claimed(folder)
    try:
        yield
    except BaseException:
        with suppress(OSError):
            for path in new:
                path.rmdir()
        raise
    finally:
        del lock
