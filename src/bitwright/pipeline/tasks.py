"""A task from what `compress` and `prune` are called with."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bitwright.data import Data, checked, gather, seeded
from bitwright.errors import BitwrightError
from bitwright.task import Task, assemble


def task_of(
    model: nn.Module | Task,
    calibration: Tensor | Iterable[Any] | None,
    test: Tensor | tuple[Tensor, Tensor] | None,
    seed: object,
    name: str,
) -> Task:
    """The task itself, or one from a model and its rows; `name` is who asks.

    Raises:
        BitwrightError: no rows, or rows that do not fit.
    """
    if isinstance(model, Task):
        return model
    if calibration is None:
        raise BitwrightError(f"{name} needs calibration rows beside the model")
    x, y = _rows(calibration, seed)
    test_x, test_y = test if isinstance(test, tuple) else (test, None)
    return assemble(model, checked(Data(x, y, test_x, test_y), "calibration"))


def _rows(calibration: Tensor | Iterable[Any], seed: object) -> tuple[Tensor, Tensor | None]:
    """Rows and labels; a shuffling loader shuffles by `seed` and leaves the generators alone."""
    if isinstance(calibration, Tensor | np.ndarray):
        return torch.as_tensor(calibration), None
    with seeded(seed if isinstance(seed, int) else 0):
        return gather(calibration, "calibration", None)
