"""One version: the package's, the command's, and what the build is told."""

from __future__ import annotations

import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.version import Version

import bitwright
from bitwright import version
from pipeline.tiny import call

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())


def test_the_command_and_the_package_agree(capsys: pytest.CaptureFixture[str]):
    assert call("--version") == 0
    assert capsys.readouterr().out == f"bitwright {bitwright.__version__}\n"
    assert str(Version(bitwright.__version__)) == bitwright.__version__
    assert "+" not in bitwright.__version__  # files name their producer: no dates, no hashes


def test_without_an_installation_it_is_that_of_a_build_without_git(
    monkeypatch: pytest.MonkeyPatch,
):
    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    assert version.installed() == PROJECT["tool"]["hatch"]["version"]["fallback-version"]
    monkeypatch.setattr(metadata, "version", lambda name: f"{name} 7")
    assert version.installed() == "bitwright 7"


def test_no_other_place_says_a_version():
    assert PROJECT["project"]["dynamic"] == ["version"] and "version" not in PROJECT["project"]
    source = Path(bitwright.__file__).read_text()
    assert not re.search(r"__version__ = [\"']", source)
