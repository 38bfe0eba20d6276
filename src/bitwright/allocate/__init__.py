"""From what each channel would lose and cost to a plan. No model code here."""

from bitwright.allocate.brute_force import brute_force
from bitwright.allocate.cw_hawq import cw_hawq
from bitwright.allocate.frontier import frontier
from bitwright.allocate.ilp import ilp
from bitwright.allocate.knapsack import knapsack, lp_bound
from bitwright.allocate.layers import layers
from bitwright.allocate.plan import Plan, Total, make_plan
from bitwright.allocate.problem import (
    Limit,
    Problem,
    feasible_range,
    limit_range,
    require_feasible,
)
from bitwright.allocate.random_ratios import random_ratios
from bitwright.allocate.ratios import plan_from_ratios, ratios_of
from bitwright.allocate.search import Evaluation, SearchResult
from bitwright.allocate.uniform import uniform

__all__ = [
    "Evaluation",
    "Limit",
    "Plan",
    "Problem",
    "SearchResult",
    "Total",
    "brute_force",
    "cw_hawq",
    "feasible_range",
    "frontier",
    "ilp",
    "knapsack",
    "layers",
    "limit_range",
    "lp_bound",
    "make_plan",
    "plan_from_ratios",
    "random_ratios",
    "ratios_of",
    "require_feasible",
    "uniform",
]
