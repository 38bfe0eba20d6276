"""Searches where there is one plan only: they end, after as many tries as their files say."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from bitwright import allocate
from bitwright.allocate import Plan, Problem
from bitwright.allocate.ratios import Points
from mutants import mutated

ITEMS = 4


def one_plan() -> Problem:
    """A budget that the narrowest widths use up."""
    loss = np.tile([4.0, 1.0, 0.0], (ITEMS, 1)) * np.arange(1, ITEMS + 1)[:, None]
    cost = np.tile([1, 2, 3], (ITEMS, 1))
    names = tuple("abcd")
    return Problem(names, (1, 2, 3), loss, cost, ITEMS, np.ones((ITEMS, 3), bool), np.arange(ITEMS))


def generations(monkeypatch: pytest.MonkeyPatch) -> tuple[int, int]:
    """Points that cross-entropy tries, and evaluations it spends on them."""
    tried, seen = [], []
    plan = Points.plan

    def watched(self: Points, point: np.ndarray) -> Plan:
        tried.append(point)
        return plan(self, point)

    monkeypatch.setattr(Points, "plan", watched)
    order = np.arange(ITEMS)
    allocate.cross_entropy(one_plan(), order, lambda p: float(seen.append(p) or 1), evaluations=40)
    return len(tried), len(seen)


def test_ten_generations_without_a_new_plan_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules["bitwright.allocate.cross_entropy"]
    first = min(module.WARM_UP, 40 // 4)  # type: ignore[attr-defined]
    assert generations(monkeypatch) == (first + 10 * 12, 1)


def moves(monkeypatch: pytest.MonkeyPatch) -> tuple[list[float], int]:
    """Lengths of the moves that local moves try, and evaluations."""
    tried, seen = [], []
    walk = sys.modules["bitwright.allocate.local_moves"]._Walk  # type: ignore[attr-defined]
    weighted = walk.weighted

    def watched(self: object, at: np.ndarray) -> Plan:
        tried.append(float(np.abs(at).max()))
        return weighted(self, at)

    monkeypatch.setattr(walk, "weighted", watched)
    groups = np.array([0, 0, 1, 1])
    allocate.local_moves(
        one_plan(), groups, lambda p: float(seen.append(p) or 1), evaluations=400, seed=3
    )
    return tried, len(seen)


def test_steps_are_halved_until_they_are_small(monkeypatch: pytest.MonkeyPatch) -> None:
    tried, evaluations = moves(monkeypatch)
    # two groups up or down, each move doubled three times, at 1.4, 0.7, … 0.0875
    steps = [1.4 / 2**i for i in range(5)]
    wanted = [0.0] + [step * 2**k for step in steps for _ in range(4) for k in range(4)]
    assert tried == pytest.approx(wanted) and evaluations == 1


def test_other_steps_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    with mutated("allocate.local_moves", "step /= 2", "step /= 3"), monkeypatch.context() as patch:
        assert len(moves(patch)[0]) == 1 + 3 * 16
