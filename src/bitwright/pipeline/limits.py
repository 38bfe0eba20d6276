"""Bounds beside the budget: bit operations and measured seconds, as limits of the problem."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy.sparse import coo_array, csr_array

from bitwright import cost
from bitwright.allocate import Limit, Plan, Problem, Product, require_feasible
from bitwright.cost import Profile
from bitwright.network import Network
from bitwright.pipeline.bench import Bounds
from bitwright.pipeline.budget import Bound
from bitwright.quantize import blank_edges, with_activations
from bitwright.quantize.scores import WIDTHS


def bops_limit(
    network: Network, bound: Bound, activations: int | Mapping[int, float] | None
) -> Limit:
    """`Σ_c MACs_c · b_c · b_a` over the channels, in the bound's unit."""
    each = cost.bops_per_bit(network, activations) / bound.scale
    return Limit("BOPs", bound.unit, each[:, None] * np.array(WIDTHS), bound.value)


def bops_product(network: Network, bound: Bound) -> Product:
    """`Σ MACs_ce · b_c · b_e` over channels c and the activations e they read, both free.

    Items are channels, then groups of edges by rising number.
    """
    stored, loose = cost.mac_pairs(network)
    n, k = stored.shape
    row, column = np.nonzero(stored)
    values = stored[row, column] / bound.scale
    pairs = csr_array(coo_array((values, (row, n + column)), shape=(n + k, n + k)))
    each = np.concatenate([loose * cost.FLOAT_BITS / bound.scale, np.zeros(k)])
    return Product("BOPs", bound.unit, pairs, each, bound.value)


def latency_limit(network: Network, profile: Profile, bound: Bound, stored: bool) -> Limit:
    """The sum of the layers' times, in the bound's unit.

    A layer's time is spread evenly over its channels, so that it adds up whatever is tied. It is
    the same at every width: the runtime unpacks all of them to 8 bits at load.
    """
    rows = np.array([layer.rows for layer in network.layers])
    each = np.repeat(
        cost.latencies(network, profile, 8 if stored else None) / bound.scale / rows, rows
    )
    return Limit("latency", bound.unit, np.tile(each[:, None], (1, len(WIDTHS))), bound.value)


def require_limits(
    network: Network, bounds: Bounds, limits: tuple[Limit, ...], product: Product | None = None
) -> None:
    """Refuse a bound that nothing fits, before anything is measured.

    Raises:
        BitwrightError: names the limit and its feasible range.
    """
    names = tuple(f"{la.name}[{c}]" for la in network.layers for c in range(la.rows))
    sizes = np.concatenate([np.full(la.rows, la.fan_in) for la in network.layers])
    allowed = np.concatenate(
        [
            np.tile(np.isin(WIDTHS, bounds.allowed.get(la.name, WIDTHS)), (la.rows, 1))
            for la in network.layers
        ]
    )
    price = sizes[:, None] * np.array(WIDTHS, dtype=np.int64)
    budget, tie = int(price.max(axis=1).sum()), np.arange(len(names))
    blank = np.zeros(price.shape)
    blanks = Problem(names, WIDTHS, blank, price, budget, allowed, tie, limits)
    if product is not None:
        blanks = with_activations(blanks, blank_edges(network), product)
    require_feasible(blanks)


def lines(plan: Plan) -> list[str]:
    """`BOPs: 0.412 of at most 1.2 G`, one line a limit."""
    return [f"{t.name}: {t.total:.4g} of at most {t.bound:.4g} {t.unit}" for t in plan.limits]
