"""Widths of weights and of activations at once, where their product is bounded (BOPs).

    min Σ_i loss_i(b_i) + Σ_j loss_j(a_j)   with  Σ_ij pairs_ij b_i a_j + … ≤ bound,

and the budget and limits as ever. HAWQ-V3 (arXiv 2011.10680) ties the two widths of a layer and
stays linear; with widths of their own this is no sum over items any more, and the solution here is
**ours**. At a price λ of the product the problem falls apart into stars, an activation with the
weights that read it: for each of its widths a every reader takes the b with the least
`loss_i(b) + λ pairs_ij a b`, and the best a is a minimum over eight numbers. So the Lagrangian is
exact for networks in which every layer reads one activation, and its best price comes from the same
cutting planes as :mod:`.multipliers`. From its plan the two sides take turns: with one side's
widths given the other's problem is a knapsack with one limit more.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from scipy.sparse import csr_array

from bitwright.allocate.multipliers import highest
from bitwright.allocate.problem import Bounds, Limit, Problem

#: turns of both sides at most, and halvings of the prices' factor that makes the first plan fit
_TURNS, _HALVINGS = 10, 30
#: items up to which single activations are moved as well
_FEW = 20


def joint(whole: Problem, solve: Callable[[Problem], np.ndarray]) -> np.ndarray:
    """Choices of a good plan within all bounds, int64 [n].

    Args:
        whole: feasible, without ties, with products.
        solve: a linear problem -> its choices.
    """
    bounds, stars = Bounds(whole), Stars(whole)
    prices, _ = multipliers(whole, stars, bounds)
    best, rows = _first(whole, stars, bounds, prices), np.arange(len(whole.names))
    for _ in range(_TURNS):
        before = whole.loss[rows, best].sum()
        for part in (0, 1):
            found = solve(given(whole, best, moving=part))
            if whole.loss[rows, found].sum() < whole.loss[rows, best].sum():
                best = found
        if whole.loss[rows, best].sum() >= before:
            break
    return _moved(whole, best, solve, bounds) if len(best) <= _FEW else best


def _moved(
    whole: Problem, best: np.ndarray, solve: Callable[[Problem], np.ndarray], bounds: Bounds
) -> np.ndarray:
    """Every activation tried at every width, the weights solved again; the first gain is taken."""
    narrowest, rows = np.argmax(whole.allowed, axis=1), np.arange(len(best))
    lowest = float(whole.loss[rows, best].sum())
    again = True
    while again:
        again = False
        for item in np.flatnonzero(whole.part == 1):
            for width in np.flatnonzero(whole.allowed[item]):
                trial = np.where(whole.part == 1, best, narrowest)
                trial[item] = width
                if width == best[item] or not bounds.fit(trial):
                    continue
                found = solve(given(whole, trial, moving=0))
                loss = float(whole.loss[rows, found].sum())
                if loss < lowest:
                    best, lowest, again = found, loss, True
    return best


def lower_bound(whole: Problem) -> float:
    """A loss that no plan stays under, where every layer reads one activation at most."""
    return multipliers(whole, Stars(whole), Bounds(whole))[1]


def multipliers(whole: Problem, stars: Stars, bounds: Bounds) -> tuple[np.ndarray, float]:
    """Prices of all bounds, float64 [1 + limits + products], and the Lagrangian bound there."""
    narrowest = np.argmax(whole.allowed, axis=1)
    rows = np.arange(len(narrowest))

    def cheapest(price: np.ndarray) -> tuple[float, np.ndarray]:
        choice = stars.cheapest(price)
        totals = bounds.totals(choice)
        return float(whole.loss[rows, choice].sum() + price @ totals), totals

    room = bounds.bounds - bounds.totals(narrowest)
    return highest(cheapest, bounds.bounds, room, float(whole.loss[rows, narrowest].sum()))


def given(whole: Problem, choice: np.ndarray, moving: int) -> Problem:
    """The linear problem of one part, the other part's widths as in `choice`."""
    bits = np.array(whole.choices, dtype=float)
    moves = whole.part == moving
    limits = []
    for p in whole.products:
        price = np.where(moves, p.slopes(bits[choice]), p.each)
        limits.append(Limit(p.name, p.unit, price[:, None] * bits, p.bound))
    fixed = np.arange(len(bits)) == choice[:, None]
    allowed = np.where(moves[:, None], whole.allowed, fixed)
    return replace(whole, limits=(*whole.limits, *limits), products=(), allowed=allowed)


class Stars:
    """Activations, each with the weights that read it."""

    def __init__(self, whole: Problem) -> None:
        self.whole = whole
        self.bits = np.array(whole.choices, dtype=float)
        self.costs = Bounds(whole).costs
        self.loss = np.where(whole.allowed, whole.loss, np.inf)
        self.pairs = [p.pairs for p in whole.products]
        pairs = _sum(self.pairs, np.ones(len(self.pairs)))
        #: of each item the one that it mostly reads, or −1
        self.read = np.full(len(whole.names), -1, dtype=np.int64)
        counts = np.diff(pairs.indptr)
        for i in np.flatnonzero(counts):
            own = slice(pairs.indptr[i], pairs.indptr[i + 1])
            self.read[i] = pairs.indices[own][np.argmax(pairs.data[own])]
        self.single = bool((counts <= 1).all())

    def cheapest(self, price: np.ndarray) -> np.ndarray:
        """Choices with the least `loss + price · totals`; where an item reads several, a local one.

        Args:
            price: float64 [1 + limits + products].
        """
        linear = len(self.costs)
        products = list(zip(price[linear:], self.whole.products, strict=True))
        each = sum((p * q.each for p, q in products), np.zeros(len(self.read)))
        table = self.loss + np.tensordot(price[:linear], self.costs, 1) + each[:, None] * self.bits
        pairs = _sum(self.pairs, price[linear:])
        reads = np.flatnonzero(self.read >= 0)
        share = np.asarray(pairs[reads, self.read[reads]]).ravel()
        several = table[reads][:, None, :] + share[:, None, None] * np.outer(self.bits, self.bits)
        star = table.copy()
        np.add.at(star, self.read[reads], several.min(axis=2))
        choice = np.argmin(star, axis=1)
        choice[reads] = np.argmin(several[np.arange(len(reads)), choice[self.read[reads]]], axis=1)
        while not self.single:
            before = choice
            for part in (0, 1):
                own = self.whole.part == part
                slope = (pairs if part == 0 else pairs.T) @ self.bits[choice]
                best = np.argmin(table + slope[:, None] * self.bits, axis=1)
                choice = np.where(own, best, choice)
            if (choice == before).all():
                break
        return choice


def _sum(pairs: list[csr_array], prices: np.ndarray) -> csr_array:
    found = pairs[0] * float(prices[0])
    for more, price in zip(pairs[1:], prices[1:], strict=True):
        found = found + more * float(price)
    return csr_array(found)


def _first(whole: Problem, stars: Stars, bounds: Bounds, prices: np.ndarray) -> np.ndarray:
    """The plan at the least factor on the prices at which it fits."""
    low, high = 0.0, 1.0
    for _ in range(60):
        if bounds.fit(stars.cheapest(high * prices)):
            break
        low, high = high, 2 * high
    else:  # a bound that has no price: the narrowest plan
        return np.argmax(whole.allowed, axis=1)
    for _ in range(_HALVINGS):
        middle = 0.5 * (low + high)
        if bounds.fit(stars.cheapest(middle * prices)):
            high = middle
        else:
            low = middle
    return stars.cheapest(high * prices)
