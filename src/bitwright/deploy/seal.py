"""One checksum inside the file that it covers, the same for every format we write.

A file holds the words `bitwright-sha256`, a few bytes of its format, and 64 hexadecimal digits: the
SHA-256 of the whole file with those digits as zeros. So every byte of the file is covered, headers
and padding too, and nothing has to be parsed before it is known to be what was written. It guards
against damage and against mistakes; who changes a file on purpose can seal it again.
"""

from __future__ import annotations

import hashlib
import re

from bitwright.errors import BitwrightError

#: the name under which a writer stores the digest, and what it puts there first
KEY, BLANK = "bitwright-sha256", "0" * 64
_PLACE = re.compile(KEY.encode() + rb"[^0-9a-f]{2,5}([0-9a-f]{64})")


def seal(content: bytes) -> bytes:
    """`content` with the digest in place of its `BLANK`.

    Raises:
        ValueError: it has none.
    """
    found = _PLACE.search(content)
    if found is None or found[1] != BLANK.encode():
        raise ValueError("there is no blank seal")
    return content[: found.start(1)] + _digest(content, found) + content[found.end(1) :]


def check(content: bytes, name: object) -> None:
    """Refuse a file that is not as it was sealed.

    Raises:
        BitwrightError: there is no seal, or the contents are not what it was put on.
    """
    found = _PLACE.search(content)
    if found is None:
        raise BitwrightError(f"{name} has no checksum of bitwright; it is another file, or damaged")
    if found[1] != _digest(content, found):
        raise BitwrightError(f"{name} is damaged: its checksum does not match its contents")


def _digest(content: bytes, found: re.Match[bytes]) -> bytes:
    view = memoryview(content)
    digest = hashlib.sha256(view[: found.start(1)])
    digest.update(BLANK.encode())
    digest.update(view[found.end(1) :])
    return digest.hexdigest().encode()
