"""HAWQ-V2 (Dong et al., arXiv 1911.03852, eq. 2.11): one width for each layer.

`Ω = Σ_i (Tr(H_i)/n_i) · ‖Q_b(W_i) − W_i‖²` with the channels' scores added up over a layer. Solved
as the same knapsack with the channels of a layer tied, which is at least as good as the paper's
walk along monotone assignments.
"""

from __future__ import annotations

import numpy as np

from bitwright.allocate.knapsack import knapsack
from bitwright.allocate.plan import Plan, make_plan
from bitwright.allocate.problem import Problem


def layers(problem: Problem, tie: np.ndarray) -> Plan:
    """The best plan that gives all channels of a layer one width.

    Args:
        problem: one item a channel.
        tie: int64 [n], the layer of each channel.
    """
    plan = knapsack(problem.with_ties(tie), "layers")
    return make_plan(problem, plan.choice, "layers")
