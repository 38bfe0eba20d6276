"""The frontier of all plans: dynamic programming over items, dominated states dropped.

After i items, a state (cost so far, loss so far) that another matches in both can be on no frontier
(Nemhauser and Ullmann, Management Science 15, 1969). Unlike the Lagrangian's `frontier`, which has
the corners of the lower convex hull only, this has every point.
"""

from __future__ import annotations

import numpy as np

from bitwright.allocate.problem import Problem, all_costs, merged
from bitwright.allocate.states import (
    Frontier,
    Pruning,
    States,
    in_cost,
    joined,
    nothing,
    require_limits,
)


def frontier_dp(
    problem: Problem, *, resolution: int = 32_768, method: str = "frontier-dp"
) -> Frontier:
    """All pairs of cost and loss that no plan within the limits betters, each with its plan.

    Exact as long as no more than `resolution` states survive an item. Beyond, the least loss in
    each of `resolution` buckets of cost is kept: a plan of the frontier for budget b then loses no
    more than the best for `b − n · range / resolution`, with n items after merging ties. With
    limits this begins at a quarter of `resolution`, states are kept in fewer buckets at several
    prices of the limits, and nothing of the sort is promised: for one budget, `knapsack` is better
    then. All costs are true. Meant for layers: cost O(n · m · resolution).

    Raises:
        BitwrightError: a limit is below the feasible range.
    """
    require_limits(problem)
    whole, group = merged(problem)
    costs, _ = all_costs(whole)
    order = np.arange(len(whole.names))
    pruned = Pruning(whole, order, resolution)
    states, trail = nothing(len(costs), 0), list[States]()
    for place, item in enumerate(order):
        every = np.arange(len(states.loss))
        options = np.flatnonzero(whole.allowed[item])
        states = pruned(
            joined(
                [
                    states.after(every, costs[:, item, j], whole.loss[item, j], int(j))
                    for j in options
                ]
            ),
            place,
        )
        trail.append(states)
    trail[-1] = in_cost(trail[-1])
    columns = np.tile(np.arange(len(whole.choices)), (len(order), 1))
    return Frontier(problem, pruned.exact, method, tuple(trail), order, columns, group)
