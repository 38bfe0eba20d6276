"""Fixtures of tests in several folders."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator

import pytest

from pipeline import tiny

#: not the real one: commands keep a key in the user's folder for state
STATE = tempfile.TemporaryDirectory(prefix="bitwright-tests-")
os.environ["XDG_STATE_HOME"] = os.environ["LOCALAPPDATA"] = STATE.name


@pytest.fixture(scope="module")
def quick() -> Iterator[None]:
    """Stages without what a test of them need not repeat."""
    with tiny.quickly():
        yield
