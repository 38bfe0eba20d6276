"""The frontier of the Lagrangian: a plan's cost and predicted loss for every multiplier."""

from __future__ import annotations

import numpy as np

from bitwright.allocate.knapsack import Moves
from bitwright.allocate.problem import Problem, merged


def frontier(problem: Problem, points: int = 64) -> list[tuple[int, float]]:
    """(cost in bits, predicted loss) pairs from the cheapest plan to the best, about `points`.

    Every pair is an optimal plan for its own cost; the budget is not looked at.
    """
    whole, _ = merged(problem)
    moves = Moves(whole)
    cost = moves.start_cost + np.concatenate([[0], np.cumsum(moves.cost)])
    loss = moves.start_loss - np.concatenate([[0.0], np.cumsum(moves.gain)])
    wanted = np.linspace(cost[0], cost[-1], points)
    chosen = np.unique(np.searchsorted(cost, wanted))
    return [(int(cost[i]), float(loss[i])) for i in chosen]
