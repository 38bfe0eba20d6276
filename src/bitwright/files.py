"""Files written whole or not at all: under a temporary name beside them first, then renamed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

#: behind the name of a file that is being written
PART = ".part"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name, which takes the place of `path` if the body ends without an error."""
    temporary = path.with_name(path.name + PART)
    try:
        yield temporary
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)  # a full disk does not say which file
        raise
    os.replace(temporary, path)


def put(path: Path, content: bytes | str) -> Path:
    """Write a file; text as UTF-8. Its path."""
    with replacing(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    return path
