"""A plan: the choice made for every item, with what it costs and is predicted to lose."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from bitwright.allocate.problem import Problem, within
from bitwright.codec import decode, parse
from bitwright.errors import BitwrightError

SCHEMA = 1


@dataclass(frozen=True)
class Total:
    """What a plan uses up of a limit: its name and unit, the plan's total and the bound."""

    name: str
    unit: str
    total: float
    bound: float


@dataclass(frozen=True, eq=False)
class Plan:
    """Widths of all items.

    Attributes:
        method: what chose them.
        names: n items.
        choices: m widths.
        choice: int64 [n], index into `choices`.
        cost: total, in bits.
        loss: predicted total.
        budget: the bound it was made for, in bits.
        limits: totals of what the problem's limits and products bound.
        bases: bool [n], items whose width is a number of bases; none of them where it is empty.
    """

    method: str
    names: tuple[str, ...]
    choices: tuple[int, ...]
    choice: np.ndarray
    cost: int
    loss: float
    budget: int
    limits: tuple[Total, ...] = ()
    bases: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=bool))

    @property
    def bits(self) -> np.ndarray:
        """int64 [n]."""
        return np.asarray(self.choices, dtype=np.int64)[self.choice]

    @property
    def key(self) -> bytes:
        """What tells two plans of one problem apart."""
        own = self.bases.tobytes() if self.bases.any() else b""
        return np.asarray(self.choice, dtype=np.uint8).tobytes() + own


def make_plan(problem: Problem, choice: np.ndarray, method: str) -> Plan:
    """The plan of a choice vector, priced; refuses what breaks a tie, a bound or the budget."""
    choice = np.asarray(choice, dtype=np.int64)
    rows = np.arange(len(choice))
    cost = int(problem.cost[rows, choice].sum())
    if cost > problem.budget:
        raise ValueError(f"{method}: cost {cost} exceeds the budget {problem.budget}")
    totals = []
    for limit in problem.limits:
        total = float(limit.cost[rows, choice].sum())
        if not within(limit, total):
            raise ValueError(f"{method}: {limit.name} of {total:g} exceed {limit.bound:g}")
        totals.append(Total(limit.name, limit.unit, total, float(limit.bound)))
    bits = np.array(problem.choices, dtype=float)[choice]
    for product in problem.products:
        total = product.total(bits)
        if not within(product, total):
            raise ValueError(f"{method}: {product.name} of {total:g} exceed {product.bound:g}")
        totals.append(Total(product.name, product.unit, total, float(product.bound)))
    if not problem.allowed[rows, choice].all():
        raise ValueError(f"{method}: a choice that is not allowed")
    _, first, group = np.unique(problem.tie, return_index=True, return_inverse=True)
    if (choice != choice[first][group]).any():
        raise ValueError(f"{method}: tied items differ")
    loss = float(problem.loss[rows, choice].sum())
    return Plan(
        method, problem.names, problem.choices, choice, cost, loss, problem.budget, tuple(totals),
        problem.bases[rows, choice],
    )  # fmt: skip


def to_json(plan: Plan) -> str:
    """Versioned JSON; widths are listed in the order of items, run-length free and readable."""
    layers: dict[str, list[int]] = {}
    for name, bits in zip(plan.names, plan.bits.tolist(), strict=True):
        layers.setdefault(name.rpartition("[")[0] or name, []).append(bits)
    found: dict[str, Any] = {
        "schema": SCHEMA,
        "method": plan.method,
        "choices": list(plan.choices),
        "cost_bits": plan.cost,
        "predicted_loss": plan.loss,
        "budget_bits": plan.budget,
    }
    if plan.limits:
        found["limits"] = [asdict(t) for t in plan.limits]
    found["bits"] = layers
    if plan.bases.any():
        found["bases"] = _bases(plan)
    return json.dumps(found, indent=1)


def _bases(plan: Plan) -> dict[str, list[int]]:
    """The channels of each layer whose width is a number of bases."""
    found: dict[str, list[int]] = {}
    places: dict[str, int] = {}
    for name, own in zip(plan.names, plan.bases.tolist(), strict=True):
        layer = name.rpartition("[")[0] or name
        place = places[layer] = places.get(layer, -1) + 1
        if own:
            found.setdefault(layer, []).append(place)
    return found


@dataclass(frozen=True)
class Stored:
    """What stands in `plan.json`: widths, channels of bases by layer; else as :class:`Plan`."""

    schema: int
    method: str
    choices: tuple[int, ...]
    cost_bits: int
    predicted_loss: float
    budget_bits: int
    bits: dict[str, tuple[int, ...]]
    limits: tuple[Total, ...] = ()
    bases: dict[str, tuple[int, ...]] = field(default_factory=dict)


def read_json(text: str | bytes) -> Stored:
    """What a stored (or edited) plan says, without a problem to hold it against.

    Raises:
        BitwrightError: not a plan, or of another schema.
    """
    try:
        found = parse(text if isinstance(text, bytes) else text.encode(), "it")
        schema = found.get("schema") if isinstance(found, dict) else None
        if schema != SCHEMA:
            raise BitwrightError(f"plan schema {schema!r:.20}; this version reads {SCHEMA}")
        stored: Stored = decode(Stored, found, "plan")
        return stored
    except ValueError as error:
        raise BitwrightError(f"the plan cannot be read: {error}") from error


def from_json(text: str | bytes, problem: Problem) -> Plan:
    """A stored (or edited) plan, priced again on `problem`.

    The budget and the bounds of limits are the plan's own; of limits that only one of the two
    knows, the problem's are kept and the plan's, which cannot be priced, are dropped. Channels of
    bases follow from widths and the problem.

    Raises:
        BitwrightError: not a plan, of another schema, or for other layers.
    """
    stored = read_json(text)
    layers, budget = stored.bits, stored.budget_bits
    bounds = {t.name: t.bound for t in stored.limits}
    bits: list[int] = []
    expected: dict[str, int] = {}
    for name in problem.names:
        layer = name.rpartition("[")[0] or name
        expected[layer] = expected.get(layer, 0) + 1
    for layer, count in expected.items():
        if len(layers.get(layer, ())) != count:
            raise BitwrightError(
                f"the plan lists {len(layers.get(layer, ()))} channels for layer {layer!r}, "
                f"the model has {count}"
            )
        bits += layers[layer]
    strange = sorted(set(layers) - set(expected))
    if strange:
        raise BitwrightError(f"the plan lists layer {strange[0]!r:.80}, which the model lacks")
    place = {b: i for i, b in enumerate(problem.choices)}
    wrong = sorted({b for b in bits if b not in place})
    if wrong:
        raise BitwrightError(f"the plan uses widths {wrong[:9]}; possible are {problem.choices}")
    choice = np.array([place[b] for b in bits])
    cost = int(problem.cost[np.arange(len(choice)), choice].sum())
    if cost > budget:
        raise BitwrightError(f"the plan costs {cost} bits, over its own budget of {budget}")
    limits = [replace(li, bound=bounds.get(li.name, li.bound)) for li in problem.limits]
    products = [replace(p, bound=bounds.get(p.name, p.bound)) for p in problem.products]
    bound = problem.with_budget(budget).with_limits(*limits).with_products(*products)
    try:
        found = make_plan(bound, choice, stored.method)
    except ValueError as error:
        raise BitwrightError(f"the plan does not fit the problem: {error}") from error
    if stored.bases and {k: list(v) for k, v in stored.bases.items()} != _bases(found):
        raise BitwrightError(
            "the plan's channels of bases are not those that its widths have at its budget; take "
            "the entry `bases` out, and they follow from the widths"
        )
    return found
