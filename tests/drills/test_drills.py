"""Each drill in its quick form: a figure that does not hold is a failure."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
SKIP = {"harness", "test_drills", "test_stages"}
NAMES = sorted(p.stem for p in HERE.glob("*.py") if p.stem not in SKIP)


def test_all_drills_are_there():
    assert NAMES == ["damage", "disk", "interrupt", "kills", "size", "together", "training"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="forks, and reads /proc")
@pytest.mark.parametrize("name", NAMES)
def test_a_quick_drill(name: str):
    found = subprocess.run(
        [sys.executable, HERE / f"{name}.py", "--quick"], capture_output=True, text=True
    )
    rows = [json.loads(line) for line in found.stdout.splitlines() if line.startswith("{")]
    assert found.returncode == 0, found.stdout[-3000:] + found.stderr[-3000:]
    assert rows and all(row["drill"] == name for row in rows)
    assert not [row for row in rows if row["holds"] is False]
