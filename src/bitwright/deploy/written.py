"""What writing another form of an artefact gives: files, and what they do not hold."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Written:
    """Files that were written, and a line for everything the form could not hold."""

    files: tuple[Path, ...]
    notes: tuple[str, ...] = ()


def put(path: Path, content: bytes) -> Path:
    """Write a file to a temporary name first; its path."""
    temporary = path.with_name(path.name + ".part")
    temporary.write_bytes(content)
    return temporary.replace(path)
