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
    from bitwright.pipeline.bench import Workbench

Solve = Callable[["Workbench", Problem], Plan]
Search = Callable[..., SearchResult]


@dataclass(frozen=True)
class Method:
    """One of the roster.

    Attributes:
        title: what the report's table calls it, fewer than 34 characters.
        rule: how it hands out bits, in a sentence of the report behind the one on the score, which
            is a prediction of what rounding each channel to each width would cost.
        solve: a plan from predicted losses alone; for a search the one that stands in for it while
            a budget is looked for, and that it sets out from.
        search: (bench, problem, evaluate, **options) -> the best plan evaluated; None: `solve` is
            the method.
        free_activations: whether it takes problems whose activations are free.
    """

    title: str
    rule: str
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


_RATIOS = "The most sensitive channels get the most bits; "
_SEARCHED = "a search over measured results decided what share of the weights gets how many."

METHODS: dict[str, Method] = {
    "channels": Method(
        "One width per channel",
        "Bits go to the channels where they prevent the most loss per byte.",
        _channels,
    ),
    "cw-hawq": Method(
        "CW-HAWQ search", _RATIOS + _SEARCHED, _channels, _over_ratios(allocate.cw_hawq)
    ),
    "layers": Method(
        "One width per layer",
        "Bits go to the layers where they prevent the most loss per byte.",
        _layers,
    ),
    "uniform": Method(
        "Uniform",
        "That prediction was not used here: every channel has the same width.",
        _uniform,
    ),
    "hawq": Method(
        "HAWQ, one width per layer",
        "That prediction was not used here: layers got equal shares of the widths, in the order of "
        "their largest curvature.",
        _hawq,
        free_activations=False,
    ),
    "pareto": Method(
        "HAWQ-V2, one width per layer",
        "Of the layers, none with a smaller Hessian trace got more bits than one with a larger.",
        _pareto,
        free_activations=False,
    ),
    "ilp": Method(
        "HAWQ-V3, one width per layer",
        "Bits go to the layers where an integer program finds that they prevent the most loss.",
        _ilp,
        free_activations=False,
    ),
    "local-moves": Method(
        "Channels, moved by results",
        "From the plan that is best by it, bits moved between layers as long as measured results "
        "improved.",
        _channels,
        _local_moves,
    ),
    "cross-entropy": Method(
        "Cross-entropy search", _RATIOS + _SEARCHED, _channels, _over_ratios(allocate.cross_entropy)
    ),
    "random-ratios": Method(
        "Random ratios",
        _RATIOS + "the best of some random shares of the widths was kept.",
        _channels,
        _over_ratios(allocate.random_ratios),
    ),
    "haq": Method(
        "HAQ search, one width per layer",
        "From the plan that is best by it, a search over measured results decided how many bits "
        "each layer gets.",
        _layers,
        _haq,
        free_activations=False,
    ),
}


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
