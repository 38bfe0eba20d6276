"""What searches by evaluation share: a cache, a log that a killed run continues from, a history."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from bitwright.allocate.plan import Plan
from bitwright.allocate.problem import Problem
from bitwright.allocate.ratios import plan_from_ratios
from bitwright.errors import BitwrightError

Evaluate = Callable[[Plan], float]

#: a coordinate of ±1 multiplies a ratio by e^±SPAN before tilting: any width can all but vanish
SPAN = 5.0


@dataclass(frozen=True)
class Evaluation:
    """One evaluated plan: the point it came from, its value, and the best value so far."""

    index: int
    point: tuple[float, ...]
    value: float
    best: float


@dataclass(frozen=True)
class SearchResult:
    """The best plan a search evaluated."""

    plan: Plan
    value: float
    history: tuple[Evaluation, ...]


@dataclass
class Evaluator:
    """Turns points into plans and plans into values, at most once each.

    A point `p ∈ [−1, 1]^m` stands for the ratios `start_j · exp(SPAN · p_j)`, tilted to the
    budget. Every new value is appended to the log before anything is made of it; a run that starts
    with a log takes its values from there, so that a killed search replays to where it was.
    """

    problem: Problem
    order: np.ndarray
    start: np.ndarray
    evaluate: Evaluate
    log: Path | None = None
    on_evaluation: Callable[[Evaluation], None] | None = None
    method: str = "cw-hawq"
    history: list[Evaluation] = field(default_factory=list)
    best: tuple[float, Plan] | None = None
    _values: dict[bytes, float] = field(default_factory=dict)
    _replay: list[tuple[str, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.log is not None and self.log.exists():
            self._replay = _read_log(self.log)

    def point(self, point: np.ndarray) -> float:
        """The value of a point's plan."""
        ratios = self.start * np.exp(SPAN * np.clip(point, -1, 1))
        plan = plan_from_ratios(self.problem, self.order, ratios, self.method)
        return self.plan(plan, tuple(float(p) for p in point))

    def plan(self, plan: Plan, point: tuple[float, ...] = ()) -> float:
        """The value of a plan; a plan seen before costs no evaluation."""
        known = self._values.get(plan.key)
        if known is not None:
            return known
        key = hashlib.sha256(plan.key).hexdigest()[:16]
        index = len(self.history)
        if index < len(self._replay):
            logged, value = self._replay[index]
            if logged != key:
                raise BitwrightError(
                    f"{self.log} was written by another search (evaluation {index} differs); "
                    "delete it to start over"
                )
        else:
            value = float(self.evaluate(plan))
            if self.log is not None:
                with self.log.open("a") as file:
                    line = {"index": index, "plan": key, "point": point, "value": value.hex()}
                    file.write(json.dumps(line) + "\n")
        self._values[plan.key] = value
        if self.best is None or value < self.best[0]:
            self.best = (value, plan)
        self.history.append(Evaluation(index, point, value, self.best[0]))
        if self.on_evaluation:
            self.on_evaluation(self.history[-1])
        return value

    def result(self) -> SearchResult:
        """The best of all."""
        assert self.best is not None
        return SearchResult(self.best[1], self.best[0], tuple(self.history))


def _read_log(path: Path) -> list[tuple[str, float]]:
    """Finished lines of a log; a last line cut off by a kill is dropped, on disk as well."""
    entries: list[tuple[str, float]] = []
    good: list[str] = []
    for line in path.read_text(errors="replace").splitlines():
        try:
            found = json.loads(line)
            if found["index"] != len(entries):
                break
            entries.append((str(found["plan"]), float.fromhex(found["value"])))
            good.append(line)
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            break
    path.write_text("".join(line + "\n" for line in good))
    return entries
