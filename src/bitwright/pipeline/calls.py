"""The Python call that asks for a run again, in one line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np

from bitwright.pipeline.settings import Settings


def compress_call(given: Sequence[str], settings: Settings) -> str:
    """`bitwright.compress(model, rows, out='small', max_kl=0.05)`: valid Python.

    Args:
        given: arguments that are no settings, as they are written there.
        settings: of the run; but for the budget, those that are as by default are left out.
    """
    words, default = [*given], Settings()
    for name in (field.name for field in fields(Settings)):
        value = getattr(settings, name)
        if name == "budget":
            words += [] if value is None else [f"budget={value.text!r}"]
        elif value != getattr(default, name):
            words.append(f"{name}={_plain(value)!r}")
    return f"bitwright.compress({', '.join(words)})"


def _plain(value: Any) -> Any:
    """`value` in Python's own literals."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(_plain, value))
    return value.item() if isinstance(value, np.generic) else value
