"""The public API has types that `mypy --strict` accepts, and that refuse misuse, in a file."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, get_type_hints

import pytest

import bitwright
from bitwright.pipeline.keep import PruneOptions, PruneSettings
from bitwright.pipeline.settings import Options, Settings, known
from bitwright.task import Task, TaskOptions

ROOT = Path(__file__).parents[1]


def test_the_package_says_that_it_is_typed():
    assert (Path(bitwright.__file__).parent / "py.typed").is_file()


def typed(kind: type[Any], *but: str) -> dict[str, Any]:
    """Fields and their types, those named left out; layers may come as a list as well."""
    found = {name: hint for name, hint in get_type_hints(kind).items() if name not in but}
    if "skip" in found:
        found["skip"] |= list[str]
    return found


@pytest.mark.parametrize(
    ("options", "fields", "act"),
    [
        (Options, typed(Settings, "budget"), bitwright.compress),
        (PruneOptions, typed(PruneSettings, "keep"), bitwright.prune),
    ],
)
def test_options_are_the_settings_and_documented(options: Any, fields: dict[str, Any], act: Any):
    assert get_type_hints(options) == fields
    said = act.__doc__.split("**options:")[1].split("Raises:")[0]
    names = re.findall(r"\w+", said.split("`:", 1)[1])
    assert sorted(names) == sorted(fields)


def test_a_tasks_options_are_its_other_fields():
    rows = ("model", "calibration", "calibration_labels", "test", "test_labels")
    assert get_type_hints(TaskOptions) == typed(Task, *rows)


def test_layers_may_come_as_a_list():
    for kind in (Settings, PruneSettings):
        assert known(kind, {"skip": ["a", "b"]}, "compress") == {"skip": ("a", "b")}


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
