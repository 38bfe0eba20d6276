"""The folder of a run: which stage is done, for which inputs; files written whole or not at all."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def write_text(path: Path, text: str) -> None:
    """Write to a temporary name, then rename."""
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(text)
    os.replace(temporary, path)


class Store:
    """Remembers the key each finished stage was run with, in `stages.json`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        for stale in folder.glob("*.part"):
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

    def done(self, stage: str, key: str, *files: str) -> bool:
        """Whether the stage finished with this key and its files are there."""
        same = self._read("stages.json").get(stage) == key
        return same and all(self.path(f).is_file() for f in files)

    def finish(self, stage: str, key: str) -> None:
        """Record a finished stage; what was built on an older result of it no longer counts."""
        stages = self._read("stages.json")
        stages[stage] = key
        write_text(self.path("stages.json"), json.dumps(stages, indent=1, sort_keys=True))

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the stage's seconds to `timings.json`."""
        begin = time.perf_counter()
        yield
        timings = self._read("timings.json")
        timings[stage] = round(time.perf_counter() - begin, 3)
        write_text(self.path("timings.json"), json.dumps(timings, indent=1))

    def timings(self) -> dict[str, float]:
        """Seconds by stage."""
        return {str(k): float(v) for k, v in self._read("timings.json").items()}
