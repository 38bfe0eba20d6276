"""HAWQ-V3 (Yao et al., arXiv 2011.10680, sec. 3.4): widths by an integer linear program.

    min Σ_i Σ_j loss_ij x_ij    with  Σ_j x_ij = 1,  Σ_ij cost_kij x_ij ≤ bound_k,  x_ij ∈ {0, 1}

over the budget and every limit (the paper bounds the size, the BOPs or the latency, and uses PuLP
with GLPK and two widths; here any number of widths, and HiGHS). The paper's loss of a layer is its
mean trace times the difference of squared errors; here it is whatever the problem holds. Tied
items, such as the paper's downsampling and main-path convolutions, are one variable.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array

from bitwright.allocate.multipliers import held
from bitwright.allocate.plan import Plan, make_plan
from bitwright.allocate.problem import Problem, all_costs, merged, require_feasible
from bitwright.errors import BitwrightError

#: choices up to which the optimum is proven; beyond, a relative gap is enough
PROVEN, GAP = 4_000, 1e-4


def ilp(problem: Problem, *, time_limit_s: float = 60.0) -> Plan:
    """The optimum within the budget and all limits.

    Proven optimal (to the solver's tolerance of 1e-6 in each bound) up to 4,000 choices, items
    times widths after merging ties; beyond, within a relative gap of 1e-4.

    Raises:
        BitwrightError: the budget or a limit is below the feasible range; or nothing was found
            within the time limit.
    """
    require_feasible(problem)
    whole, group = merged(problem)
    gap = 0.0 if whole.loss.size <= PROVEN else GAP
    choice = solve(whole, time_limit_s=time_limit_s, gap=gap)
    if choice is None:
        raise BitwrightError(
            f"the integer program found no plan within {time_limit_s:g} s; allow it more time or "
            "use the knapsack"
        )
    return make_plan(problem, choice[group], "ilp")


def solve(whole: Problem, *, time_limit_s: float = 10.0, gap: float = 1e-9) -> np.ndarray | None:
    """The integer program's choices (HiGHS), int64 [n], or None if it finds none in time.

    HiGHS keeps rows to within 1e-6 of their scale; a plan that oversteps a bound by so little is
    refused and the bound drawn in.
    """
    whole = held(whole)
    n, m = whole.loss.shape
    costs, bounds = all_costs(whole)
    rows, item = np.arange(n), np.repeat(np.arange(n), m)
    # HiGHS stops at an absolute gap of 1e-6: at this scale 1e-10 of the largest loss
    scale = 1e4 / max(float(np.abs(whole.loss).max()), 1e-300)
    one = coo_array((np.ones(n * m), (item, np.arange(n * m))), shape=(n, n * m))
    # of a budget in whole bits, 1e-6 at this scale is less than one bit
    units = np.maximum(costs.max(axis=(1, 2)), 1e-300)
    units[0] = min(units[0], 1e5)
    drawn_in = np.zeros(len(bounds))
    for _ in range(4):
        result = milp(
            (whole.loss * scale).ravel(),
            integrality=np.ones(n * m),
            bounds=Bounds(0, whole.allowed.ravel().astype(float)),
            constraints=[
                LinearConstraint(one.tocsr(), 1, 1),
                LinearConstraint(
                    costs.reshape(len(bounds), -1) / units[:, None],
                    -np.inf,
                    (bounds - drawn_in) / units,
                ),
            ],
            options={"time_limit": time_limit_s, "mip_rel_gap": gap, "disp": False},
        )
        if result.x is None:
            return None
        choice = np.argmax(result.x.reshape(n, m), axis=1)
        over = costs[:, rows, choice].sum(axis=1) - bounds
        if (over <= 0).all():
            return choice
        drawn_in = np.where(over > 0, drawn_in + over + 1e-12 * np.abs(bounds), drawn_in)
    return None
