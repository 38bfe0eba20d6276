"""Control-C at any moment of a command: one line and status 130.

Imports nothing but what Python has loaded by itself, or loads in a moment.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

STATUS = 130
_LINE = "bitwright: interrupted; the same command continues"


def watch() -> None:
    """From now on, until a command begins, Control-C ends the process at once.

    An exception would not do while modules are imported: C code turns it into another one, or a
    callback swallows it. Nothing has been begun yet that would have to be put away.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where it is ignored
        signal.signal(signal.SIGINT, _end)


def _end(number: int, frame: object) -> None:
    os.write(2, f"{_LINE}\n".encode())
    os._exit(STATUS)


@contextmanager
def interruptible() -> Iterator[None]:
    """Around a command: what is open is put away first (typer would say "Aborted!" and 1)."""
    watched = signal.getsignal(signal.SIGINT) is _end
    try:
        if watched:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        yield
        sys.stdout.flush()
    except KeyboardInterrupt:
        print(_LINE, file=sys.stderr)
        raise SystemExit(STATUS) from None
    finally:
        if watched:  # nothing is open any more
            signal.signal(signal.SIGINT, _end)
