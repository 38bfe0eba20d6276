"""From what each channel would lose and cost to a plan. No model code here."""

from bitwright.allocate.brute_force import brute_force
from bitwright.allocate.cross_entropy import cross_entropy
from bitwright.allocate.cw_hawq import cw_hawq
from bitwright.allocate.frontier import frontier
from bitwright.allocate.frontier_dp import frontier_dp
from bitwright.allocate.haq import haq
from bitwright.allocate.hawq import finetune_order, hawq, sensitivity_order
from bitwright.allocate.ilp import ilp
from bitwright.allocate.knapsack import knapsack, lp_bound
from bitwright.allocate.layers import layers
from bitwright.allocate.local_moves import local_moves
from bitwright.allocate.pareto import pareto
from bitwright.allocate.plan import Plan, Total, make_plan
from bitwright.allocate.problem import (
    Limit,
    Problem,
    Product,
    feasible_range,
    limit_range,
    product_range,
    require_feasible,
)
from bitwright.allocate.random_ratios import random_ratios
from bitwright.allocate.ratios import plan_from_ratios, ratios_of
from bitwright.allocate.search import Evaluation, SearchOptions, SearchResult
from bitwright.allocate.states import Frontier
from bitwright.allocate.uniform import uniform

__all__ = [
    "Evaluation",
    "Frontier",
    "Limit",
    "Plan",
    "Problem",
    "Product",
    "SearchOptions",
    "SearchResult",
    "Total",
    "brute_force",
    "cross_entropy",
    "cw_hawq",
    "feasible_range",
    "finetune_order",
    "frontier",
    "frontier_dp",
    "haq",
    "hawq",
    "ilp",
    "knapsack",
    "layers",
    "limit_range",
    "local_moves",
    "lp_bound",
    "make_plan",
    "pareto",
    "plan_from_ratios",
    "product_range",
    "random_ratios",
    "ratios_of",
    "require_feasible",
    "sensitivity_order",
    "uniform",
]
