"""Fixtures of tests in several folders."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pipeline import tiny


@pytest.fixture(scope="module")
def quick() -> Iterator[None]:
    """Stages without what a test of them need not repeat."""
    with tiny.quickly():
        yield
