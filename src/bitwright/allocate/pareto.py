"""HAWQ-V2 (Dong et al., arXiv 1911.03852, sec. 2.2): the frontier of monotone assignments.

Layers are sorted by mean trace; a more sensitive layer gets at least as many bits as a less
sensitive one, which leaves `C(L + m − 1, m − 1)` of `m^L` assignments; those that another betters
in cost and in `Ω = Σ_i (Tr(H_i)/n_i) · ‖Q(W_i) − W_i‖²` are dropped. The paper prices every one;
the same frontier comes here from dynamic programming down the order, a list of states for each
width of the last layer, dominated states dropped.
"""

from __future__ import annotations

import numpy as np

from bitwright.allocate.problem import Problem, all_costs, merged
from bitwright.allocate.ratios import widest_not_above
from bitwright.allocate.states import (
    Frontier,
    Pruning,
    States,
    in_cost,
    joined,
    nothing,
    require_limits,
)


def pareto(problem: Problem, order: np.ndarray, *, resolution: int = 32_768) -> Frontier:
    """The frontier of the assignments that never widen down the order, each with its plan.

    Where a layer does not allow a width it gets the widest that it allows below, or else its
    narrowest, and the order goes on from the width it would have had (our reconstruction).

    Args:
        problem: ties, costs and losses; its budget is not looked at.
        order: int64 [n], items by falling mean trace; tie groups stand where their first member
            stands.
        resolution: states for each width of the last layer up to which the frontier is exact; see
            :func:`frontier_dp` for what happens beyond.

    Raises:
        BitwrightError: a limit is below the feasible range.
    """
    require_limits(problem)
    whole, group = merged(problem)
    costs, _ = all_costs(whole)
    ranked = group[np.asarray(order)]
    _, first = np.unique(ranked, return_index=True)
    line = ranked[np.sort(first)]
    columns = widest_not_above(whole.allowed)
    pruned = Pruning(whole, line, resolution)
    m = len(whole.choices)
    states, trail = nothing(len(costs), m - 1), list[States]()
    for place, item in enumerate(line):
        parts = []
        for j, choice in enumerate(columns[item]):
            wider = np.flatnonzero(states.taken >= j)
            after = states.after(wider, costs[:, item, choice], whole.loss[item, choice], j)
            parts.append(pruned(after, place))
        states = joined(parts)
        trail.append(states)
    trail[-1] = in_cost(trail[-1])
    return Frontier(problem, pruned.exact, "pareto", tuple(trail), line, columns, group)
