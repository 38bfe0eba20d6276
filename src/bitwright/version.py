"""The version: hatch-vcs takes it from git's tags when the package is built."""

from __future__ import annotations

from importlib import metadata


def installed() -> str:
    """The installed version; `0.1.dev0`, as of a build without git, where none is installed."""
    try:
        return metadata.version("bitwright")
    except metadata.PackageNotFoundError:  # the sources on PYTHONPATH
        return "0.1.dev0"
