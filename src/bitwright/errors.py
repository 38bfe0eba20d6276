"""The one exception that means: the input is wrong, and here is what to do."""

from __future__ import annotations

import difflib
from collections.abc import Sequence


class BitwrightError(Exception):
    """A mistake in what bitwright was given, told in one line: what, where, and what to do.

    The command line prints the line and exits with status 2; nothing is written.
    """

    def __init__(self, message: str) -> None:
        line = " ".join(message.split())  # what a file's names could do to a terminal is left out
        super().__init__("".join(c if c.isprintable() else "�" for c in line))


def advice(name: str, known: Sequence[str]) -> str:
    """What to write in the place of an unknown name: the nearest known one, or one of all."""
    near = difflib.get_close_matches(name, known, 1)
    return f"did you mean {near[0]!r}?" if near else f"use {', '.join(known)}"
