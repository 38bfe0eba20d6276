"""A task from what `compress` and `prune` are called with."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bitwright.checkpoint import seeded
from bitwright.data import Data, checked, gather
from bitwright.errors import BitwrightError
from bitwright.task import Task, assemble


def task_of(
    model: nn.Module | Task,
    calibration: Tensor | Iterable[Any] | None,
    test: Tensor | Iterable[Any] | None,
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
    test_x, test_y = (None, None) if test is None else _rows(test, seed)
    return assemble(model, checked(Data(x, y, test_x, test_y), "calibration"))


def _rows(calibration: Tensor | Iterable[Any], seed: object) -> tuple[Tensor, Tensor | None]:
    """Rows and labels; a shuffling loader shuffles by `seed` and leaves the generators alone."""
    if isinstance(calibration, Tensor | np.ndarray):
        return torch.as_tensor(calibration), None
    if isinstance(calibration, tuple | list) and _is_pair(calibration):
        x, y = calibration
        return torch.as_tensor(x), None if y is None else torch.as_tensor(y)
    with seeded(seed if isinstance(seed, int) else 0):
        return gather(calibration, "calibration", None)


def _is_pair(found: Sequence[Any]) -> bool:
    """Whether it is (rows, labels); in a list labels have fewer axes, not being a batch."""
    if len(found) != 2 or not isinstance(found[0], Tensor | np.ndarray):
        return False
    x, y = found
    if isinstance(found, tuple) and y is None:
        return True
    if not isinstance(y, Tensor | np.ndarray):
        return False
    return isinstance(found, tuple) or y.ndim < x.ndim
