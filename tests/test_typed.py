"""The public API has types that `mypy --strict` accepts, and that refuse misuse, in a file."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import bitwright

ROOT = Path(__file__).parents[1]


def test_the_package_says_that_it_is_typed():
    assert (Path(bitwright.__file__).parent / "py.typed").is_file()


@pytest.mark.slow
def test_a_users_file_passes_mypy_strict():
    found = subprocess.run(
        [
            *(sys.executable, "-m", "mypy", "--strict", "--config-file="),
            *("--follow-imports=silent", "--cache-dir", ROOT / ".mypy_cache" / "user"),
            ROOT / "tests" / "typed_user.py",
        ],
        env={**os.environ, "MYPYPATH": str(ROOT / "src")},
        cwd=ROOT / "tests",  # away from pyproject.toml
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stdout + found.stderr
