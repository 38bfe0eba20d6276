"""Moves of budget between groups of items, judged by evaluation: our own.

The knapsack's plan is right in what it predicts, and within a group of like items more so than
between groups: what a layer's losses leave out (interactions, its activations) is mostly one factor
for the layer. So a point is `θ ∈ R^groups`, and its plan the knapsack's of `loss_i · exp(θ_group)`:
every plan keeps the budget, the limits and the ties, and spends what there is. A move raises or
lowers one group's factor, which takes its bits from, or gives them to, whatever group loses or
gains most by them. The best move of a batch is kept if it beats the best so far, and then tried
again in the same direction; when every move has failed, all get half as long. (Moves of one group
against another one were tried as well: on twenty groups with hidden factors they take twice as
many evaluations.)
"""

from __future__ import annotations

from dataclasses import replace
from typing import Unpack

import numpy as np

from bitwright.allocate.knapsack import knapsack
from bitwright.allocate.plan import Plan, make_plan
from bitwright.allocate.problem import Problem
from bitwright.allocate.search import Evaluate, Evaluator, SearchOptions, SearchResult

#: the first step of log θ (a factor of four: about one bit), and the one at which to stop
_STEPS = (1.4, 0.08)
#: a move that changes nothing in the plan is doubled so often before it is given up
_DOUBLINGS = 3


def local_moves(
    problem: Problem, groups: np.ndarray, evaluate: Evaluate, **options: Unpack[SearchOptions]
) -> SearchResult:
    """From the knapsack's plan, moves of budget between groups; the best plan evaluated.

    Args:
        problem: one item a channel or, with ties, a layer.
        groups: int64 [n], such as the layer of each channel; tied items in one group.
        evaluate: a plan's true loss.
        **options: :class:`SearchOptions`; the search ends early when no move helps any more, and
            the seed is that of the order in which moves are tried. A batch of moves is tried from
            the same plan.

    Raises:
        BitwrightError: infeasible budget or limit, or a log that another search wrote.
    """
    run = Evaluator(evaluate, **options)
    _, group = np.unique(groups, return_inverse=True)
    walk = _Walk(problem, group, np.random.default_rng(run.seed))
    if run.left > 0:
        run.plan(walk.plan, tuple(walk.at))
    best, step = run.result().value, _STEPS[0]
    while run.left > 0 and step >= _STEPS[1]:
        moves = walk.moves(run.next, step)
        values = run.plans([(plan, tuple(at)) for at, plan in moves])
        if values and min(values) < best:
            best = min(values)
            walk.take(*moves[int(np.argmin(values))])
        elif not walk.open:
            step /= 2
            walk.forget()
    return run.result()


class _Walk:
    """Where the walk stands, the moves it has not tried from there, and its last good one."""

    def __init__(self, problem: Problem, group: np.ndarray, rng: np.random.Generator) -> None:
        self.problem, self.group, self.rng = problem, group, rng
        self.count = int(group.max()) + 1
        self.at = np.zeros(self.count)
        self.plan = self.weighted(self.at)
        self.last: np.ndarray | None = None
        self.met = {self.plan.key}
        self.forget()

    def weighted(self, at: np.ndarray) -> Plan:
        """The knapsack's plan under the factors `exp(at)`, priced without them."""
        factors = np.exp(at - at.mean())[self.group]
        found = knapsack(replace(self.problem, loss=self.problem.loss * factors[:, None]))
        return make_plan(self.problem, found.choice, "local-moves")

    def forget(self) -> None:
        """All moves may be tried again, in a new order."""
        both = np.concatenate([np.eye(self.count), -np.eye(self.count)])
        self.open = list(self.rng.permutation(both))

    def moves(self, count: int, step: float) -> list[tuple[np.ndarray, Plan]]:
        """Up to `count` moves that lead to plans not met before, the last good direction first."""
        found: list[tuple[np.ndarray, Plan]] = []
        if self.last is not None:
            self.open.append(self.last)
            self.last = None
        while self.open and len(found) < count:
            direction = self.open.pop()
            for doubling in range(_DOUBLINGS + 1):
                at = self.at + step * 2**doubling * direction
                plan = self.weighted(at)
                if plan.key not in self.met:
                    self.met.add(plan.key)
                    found.append((at, plan))
                    break
        return found

    def take(self, at: np.ndarray, plan: Plan) -> None:
        """Stand at the move; the same direction is tried next."""
        self.last = np.sign(at - self.at)
        self.at, self.plan = at, plan
        self.forget()
