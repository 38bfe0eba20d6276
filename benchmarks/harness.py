"""What the benchmarks share: JSON lines, full results on disk, options."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent


class Rows:
    """Prints one JSON object a line; keeps them by part for `results/NAME.json` in full mode."""

    def __init__(self, name: str, quick: bool) -> None:
        self.name, self.quick = name, quick
        self.rows: list[dict[str, Any]] = []

    def add(
        self,
        name: str,
        value: float | None,
        bar: str = "",
        holds: bool | None = None,
        peer: str = "",
        peer_value: float | None = None,
        **more: Any,
    ) -> None:
        """One measured figure, its bar, and a peer measured in the same run."""
        row = {
            "name": name,
            "value": None if value is None else float(f"{value:.6g}"),
            "bar": bar,
            "holds": holds,
            "peer": peer,
            "peer_value": None if peer_value is None else float(f"{peer_value:.6g}"),
            **more,
        }
        self.rows.append(row)
        print(json.dumps(row), flush=True)

    def save(self, part: str) -> None:
        """Put a finished part's rows, date and commit into the results; quick runs are not kept."""
        rows, self.rows = self.rows, []
        if self.quick:
            return
        commit = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=HERE, capture_output=True, text=True
        ).stdout.strip()
        day = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d")
        path = HERE / "results" / f"{self.name}.json"
        content = json.loads(path.read_text()) if path.is_file() else {}
        content[part] = {"date": day, "commit": commit, "rows": rows}
        path.write_text(json.dumps(content, indent=1) + "\n")


def kept(path: Path, key: str, make: Callable[[], Any]) -> Any:
    """What was measured under this key before, as `path` has it, or what `make` measures now.

    One JSON object a line; a line that a kill cut short is measured again.
    """
    if path.is_file():
        for line in path.read_text().splitlines():
            try:
                found = json.loads(line)
            except ValueError:
                continue
            if found["key"] == key:
                return found["value"]
    value = make()
    broken = path.is_file() and not path.read_bytes().endswith(b"\n")
    with path.open("a") as file:
        file.write("\n" * broken + json.dumps({"key": key, "value": value}) + "\n")
    return value


def run(name: str, doc: str, parts: Mapping[str, Callable[[Rows, bool], None]]) -> None:
    """Run the parts asked for on the command line; each one's rows are kept as it ends."""
    chosen = options(doc)
    rows = Rows(name, chosen.quick)
    for part in chosen.only.split(",") if chosen.only else parts:
        parts[part](rows, chosen.quick)
        rows.save(part)


def options(doc: str) -> argparse.Namespace:
    """`--data-root`, `--quick`, `--only`."""
    parser = argparse.ArgumentParser(description=doc)
    parser.add_argument("--data-root", type=Path, default=HERE.parent.parent / "shared" / "data")
    parser.add_argument("--quick", action="store_true", help="a subset, under a minute")
    parser.add_argument("--only", default="", help="comma-separated parts to run")
    found = parser.parse_args()
    os.environ["BITWRIGHT_DATA_ROOT"] = str(found.data_root.resolve())
    return found
