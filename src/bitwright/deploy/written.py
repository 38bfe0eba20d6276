"""What writing another form of an artefact gives: files, and what they do not hold."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Written:
    """Files that were written, and a line for everything the form could not hold."""

    files: tuple[Path, ...]
    notes: tuple[str, ...] = ()
