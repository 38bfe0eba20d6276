"""The folder of a run: which stage is done, for which inputs; files written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from bitwright.files import PART, put
from bitwright.folders import claimed


class Store:
    """Remembers the key each finished stage was run with, in `stages.json`.

    Raises:
        BitwrightError: the folder cannot be made, or another process works in it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = claimed(folder)
        for stale in folder.glob(f"*{PART}"):
            with suppress(FileNotFoundError):
                stale.unlink()

    def path(self, name: str) -> Path:
        """A file of the run."""
        return self.folder / name

    def _read(self, name: str) -> dict[str, Any]:
        try:
            found = json.loads(self.path(name).read_text())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def done(self, stage: str, key: str, file: str, *, edited: bool = False) -> bool:
        """Whether the stage finished with this key and its file is as it left it.

        With `edited`, the file only has to be there.
        """
        found = self._read("stages.json").get(stage)
        if not isinstance(found, dict) or found.get("key") != key:
            return False
        path = self.path(file)
        return path.is_file() and (edited or found.get("sha256") == _digest(path))

    def _record(self, stage: str, entry: dict[str, str] | None) -> None:
        stages = self._read("stages.json")
        before = dict(stages)
        stages.pop(stage, None)
        if entry is not None:
            stages[stage] = entry
        if stages != before:
            put(self.path("stages.json"), json.dumps(stages, indent=1, sort_keys=True))

    @contextmanager
    def stage(self, stage: str, key: str, file: str) -> Iterator[None]:
        """The body writes `file`; the stage is recorded as finished with `key` after it.

        Before it, what was recorded is forgotten: a kill between the writing of the file and the
        recording must not leave the new file under an older key.
        """
        self._record(stage, None)
        with self.timed(stage):
            yield
        self._record(stage, {"key": key, "sha256": _digest(self.path(file))})

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the stage's seconds to `timings.json`."""
        begin = time.perf_counter()
        yield
        timings = self._read("timings.json")
        timings[stage] = round(time.perf_counter() - begin, 3)
        put(self.path("timings.json"), json.dumps(timings, indent=1))

    def timings(self) -> dict[str, float]:
        """Seconds by stage."""
        found = self._read("timings.json").items()
        return {k: float(v) for k, v in found if isinstance(v, int | float)}


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
