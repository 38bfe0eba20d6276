"""The roster of methods: how each one gets from a problem to a plan.

A method of one's own is one file in `allocate/` and one line here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Unpack

import numpy as np

from bitwright import allocate, quantize
from bitwright.allocate import Plan, Problem, SearchOptions, SearchResult
from bitwright.allocate.search import Evaluate
from bitwright.cost import LayerShape, calls
from bitwright.errors import BitwrightError

if TYPE_CHECKING:
    from bitwright.pipeline.search import Workbench

Solve = Callable[["Workbench", Problem], Plan]
Search = Callable[..., SearchResult]


@dataclass(frozen=True)
class Method:
    """One of the roster.

    Attributes:
        words: what it is, for people.
        solve: a plan from predicted losses alone; for a search the one that stands in for it while
            a budget is looked for, and that it sets out from.
        search: (bench, problem, evaluate, **options) -> the best plan evaluated; None: `solve` is
            the method.
        free_activations: whether it takes problems whose activations are free.
    """

    words: str
    solve: Solve
    search: Search | None = None
    free_activations: bool = True


def _channels(bench: Workbench, problem: Problem) -> Plan:
    return allocate.knapsack(problem)


def _layers(bench: Workbench, problem: Problem) -> Plan:
    return allocate.layers(problem, bench.layer_ties())


def _uniform(bench: Workbench, problem: Problem) -> Plan:
    if bench.bases is not None:  # one width for all is one of uniform grids
        problem = bench.problem(problem.budget, bases=False)
    return allocate.uniform(problem.with_ties(np.arange(len(problem.names))))


def _hawq(bench: Workbench, problem: Problem) -> Plan:
    found = bench.eigenvalues()
    largest: dict[int, float] = {}  # of tied layers
    for layer, root in zip(bench.network.layers, bench.bounds.root.tolist(), strict=True):
        largest[root] = max(found[layer.name], largest.get(root, 0.0))
    eigenvalues = np.array([largest[root] for root in sorted(largest)])
    return allocate.hawq(problem, bench.layer_ties(), eigenvalues)


def _pareto(bench: Workbench, problem: Problem) -> Plan:
    tied = problem.with_ties(bench.layer_ties())
    order = quantize.layer_order(bench.network, bench.sensitivity)
    return allocate.pareto(tied, order).plan(problem.budget)


def _ilp(bench: Workbench, problem: Problem) -> Plan:
    return allocate.ilp(problem.with_ties(bench.layer_ties()))


def _over_ratios(search: Search) -> Search:
    def run(
        bench: Workbench, problem: Problem, evaluate: Evaluate, **options: Unpack[SearchOptions]
    ) -> SearchResult:
        return search(problem, bench.order(), evaluate, **options)

    return run


def _local_moves(
    bench: Workbench, problem: Problem, evaluate: Evaluate, **options: Unpack[SearchOptions]
) -> SearchResult:
    return allocate.local_moves(problem, bench.layer_ties(), evaluate, **options)


def _haq(
    bench: Workbench, problem: Problem, evaluate: Evaluate, **options: Unpack[SearchOptions]
) -> SearchResult:
    root = bench.bounds.root
    features = layer_features(bench)[np.unique(root)]
    return allocate.haq(problem, bench.layer_ties(), features, evaluate, **options)


def layer_features(bench: Workbench) -> np.ndarray:
    """What HAQ's agent sees of each layer, float64 [L, 7].

    Depthwise or not, input and output channels, stride, kernel, weights, size of the input
    (arXiv 1811.08886, sec. 3.1); of a layer called several times, its first call.
    """
    first: dict[str, LayerShape] = {}
    for layer, shape in calls(bench.network):
        first.setdefault(layer.name, shape)
    found = []
    for layer in bench.network.layers:
        shape = first[layer.name]
        inputs = shape.input[0] if layer.kind != "linear" else shape.input[-1]
        found.append([
            float(layer.groups == layer.rows and layer.groups > 1),
            inputs,
            layer.rows,
            max(shape.stride, default=1),
            layer.shape[-1] if layer.kind != "linear" else 1,
            layer.weights,
            np.prod(shape.input),
        ])  # fmt: skip
    return np.array(found, dtype=float)


METHODS: dict[str, Method] = {
    "channels": Method("one width a channel, by predicted loss", _channels),
    "cw-hawq": Method(
        "ratios of the widths by a DDPG agent, channels in order of sensitivity", _channels,
        _over_ratios(allocate.cw_hawq),
    ),
    "layers": Method("one width a layer (HAWQ-V2's score, solved exactly)", _layers),
    "uniform": Method("one width for all", _uniform),
    "hawq": Method(
        "one width a layer, in equal shares down the order of λ/n", _hawq, free_activations=False
    ),
    "pareto": Method(
        "HAWQ-V2: one width a layer, never wider down the order of the trace", _pareto,
        free_activations=False,
    ),
    "ilp": Method("HAWQ-V3: one width a layer by integer program", _ilp, free_activations=False),
    "local-moves": Method(
        "from channels' plan, moves of bits between layers, each evaluated", _channels, _local_moves
    ),
    "cross-entropy": Method(
        "ratios of the widths by the cross-entropy method", _channels,
        _over_ratios(allocate.cross_entropy),
    ),
    "random-ratios": Method(
        "ratios of the widths at random", _channels, _over_ratios(allocate.random_ratios)
    ),
    "haq": Method(
        "one width a layer by a DDPG agent that walks the layers", _layers, _haq,
        free_activations=False,
    ),
}  # fmt: skip


def require(name: str, free_activations: bool = False) -> Method:
    """The method of a name.

    Raises:
        BitwrightError: there is none, or it cannot do that.
    """
    if name not in METHODS:
        raise BitwrightError(f"method {name!r} is unknown; use {', '.join(METHODS)}")
    found = METHODS[name]
    if free_activations and not found.free_activations:
        able = [n for n, m in METHODS.items() if m.free_activations]
        raise BitwrightError(
            f"method {name} takes activations as given; with --activations auto use one of "
            f"{', '.join(able)}"
        )
    return found
