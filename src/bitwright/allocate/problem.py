"""A problem: what each item would lose and cost at each choice, and a budget."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from scipy.sparse import csr_array

from bitwright.errors import BitwrightError


@dataclass(frozen=True, eq=False)
class Limit:
    """A bound beside the budget: `Σ_i cost[i, choice_i] ≤ bound`.

    Attributes:
        name: of what is bounded, "BOPs" or "latency".
        unit: of the bound.
        cost: float64 [n, m], finite, never falling along m.
        bound: on the total.
    """

    name: str
    unit: str
    cost: np.ndarray
    bound: float


@dataclass(frozen=True, eq=False)
class Product:
    """A bound where two items' widths multiply: `Σ_ij pairs_ij b_i b_j + Σ_i each_i b_i ≤ bound`.

    Bit operations are such a sum once activations choose their widths as well.

    Attributes:
        name: of what is bounded; unit: of the bound.
        pairs: float64 [n, n] >= 0, sparse; i in part 0 and j in part 1 of the problem.
        each: float64 [n] >= 0, for each bit of an item whatever the others have.
        bound: on the total.
    """

    name: str
    unit: str
    pairs: csr_array
    each: np.ndarray
    bound: float

    def total(self, bits: np.ndarray) -> float:
        """What a plan's widths come to."""
        return float(bits @ (self.pairs @ bits) + self.each @ bits)

    def slopes(self, bits: np.ndarray) -> np.ndarray:
        """What one more bit of each item costs, the others as they are, float64 [n]."""
        return np.asarray(self.pairs @ bits + self.pairs.T @ bits + self.each)


@dataclass(frozen=True, eq=False)
class Problem:
    """Choose one width for each item with the least total loss within a total cost.

    Attributes:
        names: n items (output channels).
        choices: m widths in bits, ascending.
        loss: float64 [n, m], predicted increase of the loss; finite.
        cost: int64 [n, m], in bits, never falling along m; items such as activations may cost
            nothing here and something in a limit.
        budget: bound on the total cost, in bits.
        allowed: bool [n, m], at least one choice an item.
        tie: int64 [n]; items with the same number take the same choice.
        limits: further bounds, on other costs.
        part: int64 [n], 0 or 1: items of different kinds, such as weights and activations; all 0
            where not given. Searches over ratios have ratios for each part.
        products: bounds on products of the parts' widths.
        bases: bool [n, m], where the width is that of a sum of bases, priced as such; nowhere where
            not given.

    Raises:
        ValueError: shapes, order or values are not as above.
    """

    names: tuple[str, ...]
    choices: tuple[int, ...]
    loss: np.ndarray
    cost: np.ndarray
    budget: int
    allowed: np.ndarray
    tie: np.ndarray
    limits: tuple[Limit, ...] = ()
    part: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    products: tuple[Product, ...] = ()
    bases: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), dtype=bool))

    def __post_init__(self) -> None:
        shape = (len(self.names), len(self.choices))
        if not self.bases.size:
            object.__setattr__(self, "bases", np.zeros(shape, dtype=bool))
        if not len(self.part):
            object.__setattr__(self, "part", np.zeros(shape[0], dtype=np.int64))
        for name in ("loss", "cost", "allowed", "bases"):
            if getattr(self, name).shape != shape:
                raise ValueError(f"{name} has shape {getattr(self, name).shape}, expected {shape}")
        if self.tie.shape != shape[:1]:
            raise ValueError(f"tie has shape {self.tie.shape}, expected {shape[:1]}")
        if list(self.choices) != sorted(set(self.choices)):
            raise ValueError(f"choices must be ascending and distinct, got {self.choices}")
        if not np.isfinite(self.loss).all():
            raise ValueError("loss must be finite")
        if (np.diff(self.cost, axis=1) < 0).any():
            raise ValueError("cost must never fall with the width")
        if not self.allowed.any(axis=1).all():
            raise ValueError("every item needs at least one allowed choice")
        for limit in self.limits:
            if limit.cost.shape != shape:
                raise ValueError(f"{limit.name} has shape {limit.cost.shape}, expected {shape}")
            if not (np.isfinite(limit.cost).all() and (np.diff(limit.cost, axis=1) >= 0).all()):
                raise ValueError(f"{limit.name} must be finite and never fall with the width")
        if self.part.shape != shape[:1] or not np.isin(self.part, (0, 1)).all():
            raise ValueError("part must be 0 or 1 for each item")
        for product in self.products:
            _check_product(product, self.part)

    @property
    def parts(self) -> int:
        """How many kinds of items there are, 1 or 2."""
        return int(self.part.max(initial=0)) + 1

    @property
    def weights(self) -> int:
        """Total size in weights: what one bit for every item costs."""
        return int(self.cost[:, 0].sum() // self.choices[0])

    def with_budget(self, budget: int) -> Problem:
        """The same problem under another budget."""
        return replace(self, budget=int(budget))

    def with_limits(self, *limits: Limit) -> Problem:
        """The same problem with other bounds beside the budget."""
        return replace(self, limits=limits)

    def with_products(self, *products: Product) -> Problem:
        """The same problem with other bounds on products."""
        return replace(self, products=products)

    def with_ties(self, tie: np.ndarray) -> Problem:
        """The same problem with other ties."""
        return replace(self, tie=np.asarray(tie, dtype=np.int64))


def _check_product(product: Product, part: np.ndarray) -> None:
    n = len(part)
    if product.pairs.shape != (n, n) or product.each.shape != (n,):
        raise ValueError(f"{product.name} must be given for {n} items")
    pairs = product.pairs.tocoo()
    if (part[pairs.coords[0]] != 0).any() or (part[pairs.coords[1]] != 1).any():
        raise ValueError(f"{product.name} must pair items of part 0 with items of part 1")
    values = np.append(pairs.data, product.each)
    if not (np.isfinite(values).all() and (values >= 0).all()):
        raise ValueError(f"{product.name} must be finite and not negative")


def merged(problem: Problem) -> tuple[Problem, np.ndarray]:
    """One item for each tie group, and for every item the index of its group.

    Raises:
        BitwrightError: a group has no choice that all its members allow.
        ValueError: a tie between the parts.
    """
    _, group = np.unique(problem.tie, return_inverse=True)
    n = int(group.max()) + 1 if len(group) else 0
    if n == len(problem.names):
        return problem, np.arange(n)
    loss, cost = _grouped(problem.loss, group, n), _grouped(problem.cost, group, n)
    blocked = _grouped((~problem.allowed).astype(np.int64), group, n)
    first = {int(g): i for i, g in reversed(list(enumerate(group)))}
    names = tuple(problem.names[first[g]] for g in range(n))
    allowed = blocked == 0
    if not allowed.any(axis=1).all():
        name = names[int(np.flatnonzero(~allowed.any(axis=1))[0])]
        raise BitwrightError(f"the items tied to {name} allow no common width; loosen their bounds")
    limits = tuple(replace(li, cost=_grouped(li.cost, group, n)) for li in problem.limits)
    part = np.array([problem.part[first[g]] for g in range(n)], dtype=np.int64)
    if (part[group] != problem.part).any():
        raise ValueError("items of different parts cannot be tied")
    sums = csr_array((np.ones(len(group)), (group, np.arange(len(group)))), shape=(n, len(group)))
    products = tuple(
        replace(p, pairs=csr_array(sums @ p.pairs @ sums.T), each=sums @ p.each)
        for p in problem.products
    )
    whole = Problem(
        names, problem.choices, loss, cost, problem.budget, allowed, np.arange(n), limits, part,
        products,
    )  # fmt: skip
    return whole, group


def _grouped(table: np.ndarray, group: np.ndarray, n: int) -> np.ndarray:
    """Sums of rows of the same group."""
    found = np.zeros((n, table.shape[1]), dtype=table.dtype)
    np.add.at(found, group, table)
    return found


def feasible_range(problem: Problem) -> tuple[int, int]:
    """The least and the largest total cost any plan can have, in bits."""
    whole, _ = merged(problem)
    least, most = _range(whole, whole.cost)
    return int(least), int(most)


def limit_range(problem: Problem, limit: Limit) -> tuple[float, float]:
    """The least and the largest total any plan can have of what a limit bounds."""
    whole, group = merged(problem)
    least, most = _range(whole, _grouped(limit.cost, group, len(whole.names)))
    return float(least), float(most)


def product_range(problem: Problem, product: Product) -> tuple[float, float]:
    """The least and the largest total any plan can have of what a product bounds."""
    whole, _ = merged(problem.with_products(product))
    bits = np.array(whole.choices, dtype=float)
    least = bits[np.argmax(whole.allowed, axis=1)]
    most = bits[::-1][np.argmax(whole.allowed[:, ::-1], axis=1)]
    return whole.products[0].total(least), whole.products[0].total(most)


def _range(whole: Problem, cost: np.ndarray) -> tuple[np.number, np.number]:
    """Sums over the narrowest and the widest allowed choices: costs never fall with the width."""
    rows, last = np.arange(len(cost)), cost.shape[1] - 1
    narrowest = np.argmax(whole.allowed, axis=1)
    widest = last - np.argmax(whole.allowed[:, ::-1], axis=1)
    return cost[rows, narrowest].sum(), cost[rows, widest].sum()


def within(limit: Limit | Product, total: float) -> bool:
    """Whether a total keeps a bound, up to the rounding of its sum."""
    return total <= limit.bound + 1e-12 * abs(limit.bound)


def all_costs(whole: Problem) -> tuple[np.ndarray, np.ndarray]:
    """What all bounds count, float64 [1 + k, n, m], the budget's first; and the bounds [1 + k].

    A limit's bound carries half the slack of :func:`within`, so that a sum in another order passes.

    Raises:
        BitwrightError: the problem bounds products of widths, which are no sum over items.
    """
    if whole.products:
        raise BitwrightError(
            f"{whole.products[0].name} multiply the widths of two items each; this method takes "
            "sums over items only: use the knapsack, layers, uniform or a search over ratios"
        )
    costs = np.stack([whole.cost.astype(float), *(li.cost for li in whole.limits)])
    slack = [li.bound + 5e-13 * abs(li.bound) for li in whole.limits]
    return costs, np.array([float(whole.budget), *slack])


class Bounds:
    """All that bounds a plan, counted for whole plans: budget, limits and products.

    Args:
        whole: without ties.
    """

    def __init__(self, whole: Problem) -> None:
        self.whole = whole
        self.costs, linear = all_costs(whole.with_products())
        products = [p.bound + 5e-13 * abs(p.bound) for p in whole.products]
        self.bounds = np.append(linear, products)
        self.bits = np.array(whole.choices, dtype=float)

    def totals(self, choice: np.ndarray) -> np.ndarray:
        """float64 [1 + limits + products]."""
        linear = self.costs[:, np.arange(len(choice)), choice].sum(axis=1)
        return np.append(linear, [p.total(self.bits[choice]) for p in self.whole.products])

    def fit(self, choice: np.ndarray) -> bool:
        """Whether a plan keeps them all."""
        return bool((self.totals(choice) <= self.bounds).all())

    def step(self, choice: np.ndarray, item: int, to: int) -> np.ndarray:
        """What moving one item adds to each total."""
        linear = self.costs[:, item, to] - self.costs[:, item, choice[item]]
        more = self.bits[to] - self.bits[choice[item]]
        return np.append(linear, [more * s[item] for s in self._slopes(choice)])

    def _slopes(self, choice: np.ndarray) -> list[np.ndarray]:
        return [p.slopes(self.bits[choice]) for p in self.whole.products]


def room_left(bounds: np.ndarray, totals: np.ndarray) -> np.ndarray:
    """What a greedy walk may still spend, [1 + k]; limits keep a billionth for rounding."""
    room = bounds - totals
    room[1:] = np.maximum(room[1:] - 1e-9 * np.abs(bounds[1:]), 0)
    return room


def freely_widened(problem: Problem, choice: np.ndarray) -> np.ndarray:
    """Every tie group at the widest allowed choice that costs what its own does, by all bounds."""
    whole, group = merged(problem)
    costs, _ = all_costs(whole.with_products())
    along = np.empty(len(whole.names), dtype=np.int64)
    along[group] = choice
    own = costs[:, np.arange(len(along)), along]
    free = whole.allowed & (costs == own[:, :, None]).all(axis=0)
    for product in whole.products:  # what is in a product costs something at every width
        paired = product.slopes(np.ones(len(along))) > 0
        free[paired] &= np.arange(free.shape[1]) == along[paired, None]
    last = free.shape[1] - 1
    return (last - np.argmax(free[:, ::-1], axis=1))[group]


def require_feasible(problem: Problem) -> None:
    """Refuse a budget or a limit that nothing fits.

    As all costs rise with the width, the narrowest plan keeps all bounds or none does.

    Raises:
        BitwrightError: names the budget or the limit, and its feasible range.
    """
    least, most = feasible_range(problem)
    if problem.budget < least:
        weights = max(problem.weights, 1)
        raise BitwrightError(
            f"a budget of {problem.budget:,} bits ({problem.budget / weights:.3f} a weight) is "
            f"below the feasible range of {least:,} to {most:,} bits "
            f"({least / weights:.3f} to {most / weights:.3f} a weight); raise the budget"
        )
    bounds: list[tuple[Limit | Product, float, float]] = []
    bounds += [(li, *limit_range(problem, li)) for li in problem.limits]
    bounds += [(p, *product_range(problem, p)) for p in problem.products]
    for limit, low, high in bounds:
        if not within(limit, low):
            raise BitwrightError(
                f"a bound of {limit.bound:.4g} {limit.unit} on {limit.name} is below the feasible "
                f"range of {low:.4g} to {high:.4g} {limit.unit}; raise the bound"
            )
