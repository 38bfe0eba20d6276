"""What searches by evaluation share: a cache, a log that a killed run continues from, a history."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

from bitwright.allocate.plan import Plan
from bitwright.errors import BitwrightError
from bitwright.files import put

Evaluate = Callable[[Plan], float]
EvaluateMany = Callable[[Sequence[Plan]], Sequence[float]]


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


class SearchOptions(TypedDict, total=False):
    """Keywords of every search by evaluation; the defaults are those of :class:`Evaluator`.

    Attributes:
        evaluations: plans evaluated at most. A plan met again is free; a search ends early when
            nothing new is met.
        seed: of every random choice; global generators are put back afterwards.
        start: a plan to evaluate first, which searches over ratios set out from.
        batch: plans proposed at a time. A setting, so that results do not depend on how many
            evaluate it.
        evaluate_many: values of a batch of plans, in their order, in place of `evaluate`.
        log: JSON lines of evaluations; an existing one is replayed.
        on_evaluation: called after each.
    """

    evaluations: int
    seed: int
    start: Plan | None
    batch: int
    evaluate_many: EvaluateMany | None
    log: Path | None
    on_evaluation: Callable[[Evaluation], None] | None


@dataclass
class Evaluator:
    """Turns plans into values, at most once each.

    Every new value is appended to the log before anything is made of it; a run that starts with a
    log takes its values from there, so that a killed search replays to where it was.

    Plans come one by one or as a batch. What a search proposes depends on the size of its batches,
    never on who evaluates them: `evaluate_many` may share a batch out as it likes, as values are
    logged and counted in the order of the proposals.

    Attributes:
        evaluate: a plan's true loss; the others are those of :class:`SearchOptions`.

    Raises:
        BitwrightError: a log that another search wrote.
    """

    evaluate: Evaluate
    evaluations: int = 150
    seed: int = 0
    start: Plan | None = None
    batch: int = 1
    evaluate_many: EvaluateMany | None = None
    log: Path | None = None
    on_evaluation: Callable[[Evaluation], None] | None = None
    history: list[Evaluation] = field(default_factory=list)
    best: tuple[float, Plan] | None = None
    _values: dict[bytes, float] = field(default_factory=dict)
    _replay: list[tuple[str, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.log is not None and self.log.exists():
            self._replay = _read_log(self.log)
        if self.start is not None:
            self.plan(self.start)

    @property
    def left(self) -> int:
        """Evaluations still to spend."""
        return self.evaluations - len(self.history)

    @property
    def next(self) -> int:
        """Plans to propose next: a batch, or what is left."""
        return min(self.batch, self.left)

    def plan(self, plan: Plan, point: tuple[float, ...] = ()) -> float:
        """The value of a plan; a plan seen before costs no evaluation."""
        return self.plans([(plan, point)])[0]

    def plans(self, found: Sequence[tuple[Plan, tuple[float, ...]]]) -> list[float]:
        """The values of some plans, each with the point it came from."""
        new: dict[bytes, tuple[Plan, tuple[float, ...]]] = {}
        for plan, point in found:
            if plan.key not in self._values:
                new.setdefault(plan.key, (plan, point))
        first = len(self.history)
        logged = [
            self._logged(first + i, plan) for i, (plan, _) in enumerate(new.values())
        ]  # a log ends where the run did: what it lacks is evaluated
        rest = [
            plan for (plan, _), value in zip(new.values(), logged, strict=True) if value is None
        ]
        together = self._together(rest) if self.evaluate_many and rest else None
        for (plan, point), value in zip(new.values(), logged, strict=True):
            if value is None:
                value = next(together) if together else float(self.evaluate(plan))
                self._write(plan, point, value)
            self._remember(plan, point, value)
        return [self._values[plan.key] for plan, _ in found]

    def _together(self, plans: list[Plan]) -> Iterator[float]:
        assert self.evaluate_many is not None
        values = [float(v) for v in self.evaluate_many(plans)]
        if len(values) != len(plans):
            raise ValueError(f"evaluate_many gave {len(values)} values for {len(plans)} plans")
        return iter(values)

    def _logged(self, index: int, plan: Plan) -> float | None:
        """What the log says of an evaluation, if it goes that far."""
        if index >= len(self._replay):
            return None
        logged, value = self._replay[index]
        if logged != _hash(plan):
            raise BitwrightError(
                f"{self.log} was written by another search (evaluation {index} differs); "
                "delete it to start over"
            )
        return value

    def _write(self, plan: Plan, point: tuple[float, ...], value: float) -> None:
        if self.log is None:
            return
        index = len(self.history)
        with self.log.open("a") as file:
            line = {"index": index, "plan": _hash(plan), "point": point, "value": value.hex()}
            file.write(json.dumps({**line, "check": _check(line)}) + "\n")

    def _remember(self, plan: Plan, point: tuple[float, ...], value: float) -> None:
        self._values[plan.key] = value
        if self.best is None or value < self.best[0]:
            self.best = (value, plan)
        self.history.append(Evaluation(len(self.history), point, value, self.best[0]))
        if self.on_evaluation:
            self.on_evaluation(self.history[-1])

    def result(self) -> SearchResult:
        """The best of all."""
        assert self.best is not None
        return SearchResult(self.best[1], self.best[0], tuple(self.history))


def _hash(plan: Plan) -> str:
    return hashlib.sha256(plan.key).hexdigest()[:16]


def _check(line: dict[str, Any]) -> str:
    """Of what a line says: a value with a changed digit would quietly lead to another plan."""
    said = json.dumps([line["index"], line["plan"], line["value"]])
    return hashlib.sha256(said.encode()).hexdigest()[:8]


def _read_log(path: Path) -> list[tuple[str, float]]:
    """The lines before the first that is damaged or cut off by a kill; the rest goes from disk."""
    entries: list[tuple[str, float]] = []
    good: list[str] = []
    for line in path.read_text(errors="replace").splitlines():
        try:
            found = json.loads(line)
            if found["index"] != len(entries) or found["check"] != _check(found):
                break
            entries.append((str(found["plan"]), float.fromhex(found["value"])))
            good.append(line)
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            break
    put(path, "".join(line + "\n" for line in good))
    return entries
