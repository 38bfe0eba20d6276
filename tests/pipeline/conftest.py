"""What tests of runs share: one thread, and a folder where the tiny task is measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from bitwright import Settings
from bitwright.pipeline import Run
from pipeline import tiny


@pytest.fixture(scope="module", autouse=True)
def _quick(quick: None) -> None:
    """All of these tests run stages."""


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder where seed 0 is measured."""
    folder = tmp_path_factory.mktemp("measured")
    _ = Run(tiny.task(), Settings(), folder).sensitivity
    return folder
