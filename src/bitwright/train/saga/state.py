"""Where a run of SAGA stands: x, the table, its mean; in a file, to go on from."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bitwright.errors import BitwrightError
from bitwright.files import replacing
from bitwright.train.saga.penalty import Vector
from bitwright.train.saga.problem import Problem

#: of the file
VERSION = 1


@dataclass
class State:
    """Everything the next step depends on beside problem, sampling and seed.

    Args:
        x: [size] the iterate, or [size, k].
        table: [n] the last derivative φ'(a_i·x) seen of every row, or [n, k].
        mean: `Σ λ_i table_i a_i`, as x.
        block: blocks of steps done, which the next random numbers are drawn by.
        passes: gradients computed per row so far, the table's first ones included.
        stage: of adaptive restarts: blocks left, blocks at most, gradient map at the last restart.
    """

    x: Vector
    table: Vector
    mean: Vector
    block: int = 0
    passes: float = 0.0
    stage: tuple[int, int, float] = (0, 1, np.inf)

    def save(self, path: str | Path) -> None:
        """Write an `.npz`, to a temporary name first."""
        path = Path(path)
        with replacing(path) as part, part.open("wb") as file:
            np.savez(
                file, version=VERSION, x=self.x, table=self.table, mean=self.mean,
                block=self.block, passes=self.passes, stage=np.array(self.stage),
            )  # fmt: skip


def start(problem: Problem, x: Vector | None = None) -> State:
    """The state at x (zeros where None, moved into the box): the table is that of x itself.

    Raises:
        BitwrightError: x has another shape.
    """
    found = np.zeros(problem.shape) if x is None else np.array(x, dtype=np.float64)
    if found.shape != problem.shape:
        raise BitwrightError(f"x has shape {found.shape}, the problem needs {problem.shape}")
    w, _ = problem.split(found)
    np.clip(w, problem.penalty.lower, problem.penalty.upper, out=w)
    table = problem.derivatives(problem.forward(found))
    return State(found, table, problem.adjoint(table), passes=1.0)


def load_state(path: str | Path, problem: Problem) -> State:
    """What :meth:`State.save` wrote.

    Raises:
        BitwrightError: not such a file, of another version, or of another problem's shape.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            if int(file["version"]) != VERSION:
                raise BitwrightError(f"{path} has version {file['version']}, not {VERSION}")
            left, most, norm = file["stage"]
            state = State(
                file["x"], file["table"], file["mean"], int(file["block"]), float(file["passes"]),
                (int(left), int(most), float(norm)),
            )  # fmt: skip
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise BitwrightError(f"{path} is no state of a SAGA run ({error}); start afresh") from error
    if state.x.shape != problem.shape or state.table.shape != problem.targets.shape:
        raise BitwrightError(
            f"{path} is of {len(state.table)} rows and {state.x.shape} entries, the problem has "
            f"{problem.n} and {problem.shape}"
        )
    return state
