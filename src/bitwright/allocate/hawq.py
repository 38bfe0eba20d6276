"""HAWQ (Dong et al., arXiv 1905.03696, sec. 3): layers ordered by `S_i = λ_i / n_i`.

λ_i is the top eigenvalue of the Hessian's block of layer i, n_i the layer's number of weights. The
paper chooses the widths by hand, never wider down the order; handing them out in equal ratios under
a budget (`plan_from_ratios`) is **our reconstruction**. Layers are fine-tuned in the order of
falling `Ω_i = λ_i · ‖Q(W_i) − W_i‖²`.
"""

from __future__ import annotations

import numpy as np

from bitwright.allocate.plan import Plan, make_plan
from bitwright.allocate.problem import Problem
from bitwright.allocate.ratios import plan_from_ratios


def hawq(
    problem: Problem,
    tie: np.ndarray,
    eigenvalues: np.ndarray,
    sizes: np.ndarray | None = None,
) -> Plan:
    """Widths by layer along the order of S, in equal shares of the weights, tilted to the budget.

    Args:
        problem: one item a channel.
        tie: int64 [n], the layer of each channel.
        eigenvalues: float [L], λ of the layers by rising number in `tie`.
        sizes: int [L], weights in each layer; from the costs in bits without it.

    Raises:
        BitwrightError: the budget or a limit is below the feasible range.
        ValueError: not one eigenvalue a layer.
    """
    tied = problem.with_ties(tie)
    numbers, layer = np.unique(tied.tie, return_inverse=True)
    if np.shape(eigenvalues) != numbers.shape:
        raise ValueError(f"{np.shape(eigenvalues)} eigenvalues for {len(numbers)} layers")
    if sizes is None:
        sizes = np.bincount(layer, problem.cost[:, 0] / problem.choices[0])
    rank = np.empty(len(numbers), dtype=np.int64)
    rank[sensitivity_order(eigenvalues, sizes)] = np.arange(len(numbers))
    order = np.argsort(rank[layer], kind="stable")
    m = len(problem.choices)
    plan = plan_from_ratios(tied, order, np.full(m, 1 / m), "hawq")
    return make_plan(problem, plan.choice, "hawq")


def sensitivity_order(eigenvalues: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Layers by falling `S = λ / n`, int64 [L]."""
    sensitivity = np.asarray(eigenvalues, dtype=float) / np.maximum(sizes, 1)
    return np.argsort(-sensitivity, kind="stable")


def finetune_order(eigenvalues: np.ndarray, squared_errors: np.ndarray) -> np.ndarray:
    """Layers in the order of fine-tuning, int64 [L]: by falling `Ω = λ · ‖Q(W) − W‖²`.

    >>> finetune_order(np.array([1.0, 5.0, 3.0]), np.array([4.0, 1.0, 1.0])).tolist()
    [1, 0, 2]
    """
    omega = np.asarray(eigenvalues, dtype=float) * np.asarray(squared_errors, dtype=float)
    return np.argsort(-omega, kind="stable")
