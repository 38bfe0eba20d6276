"""The one exception that means: the input is wrong, and here is what to do."""

from __future__ import annotations


class BitwrightError(Exception):
    """A mistake in what bitwright was given, told in one line: what, where, and what to do.

    The command line prints the line and exits with status 2; nothing is written.
    """

    def __init__(self, message: str) -> None:
        line = " ".join(message.split())  # what a file's names could do to a terminal is left out
        super().__init__("".join(c if c.isprintable() else "�" for c in line))
