"""The search stage: from a goal to a plan, with the baselines it must stand beside."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from bitwright import allocate
from bitwright.allocate import Plan
from bitwright.allocate.search import Evaluation, SearchResult
from bitwright.errors import BitwrightError
from bitwright.network import Network
from bitwright.pipeline.bench import Bounds, Workbench, onnx_bytes
from bitwright.pipeline.methods import METHODS
from bitwright.pipeline.processes import evaluators
from bitwright.pipeline.settings import Settings
from bitwright.quantize import EdgeGrid, WeightTable


def require_within(network: Network, budget_bits: int, bounds: Bounds) -> None:
    """Refuse a budget in bits that nothing fits.

    Raises:
        BitwrightError: names the feasible range.
    """
    least, most = bounds.range(network)
    if budget_bits < least:
        n = network.weights
        raise BitwrightError(
            f"a budget of {budget_bits:,} bits ({budget_bits / n:.3f} a weight) is below the "
            f"feasible range of {least:,} to {most:,} bits ({least / n:.3f} to {most / n:.3f} a "
            "weight); raise the budget"
        )


def require_bytes(
    network: Network,
    tables: dict[str, WeightTable],
    edges: dict[int, EdgeGrid],
    target: int | None,
    bounds: Bounds,
) -> None:
    """Refuse a budget in bytes that no file fits.

    Raises:
        BitwrightError: names the sizes of the smallest and the largest file.
    """

    def size(widths: dict[str, int]) -> int:
        bits = {la.name: np.full(la.rows, widths[la.name]) for la in network.layers}
        return onnx_bytes(network, tables, edges, bits)

    if target is not None and (smallest := size(bounds.least(network))) > target:
        raise BitwrightError(
            f"a file of {target:,} bytes is not feasible: this network's files are between "
            f"{smallest:,} and {size(bounds.most(network)):,} bytes; raise the budget"
        )


def solve(bench: Workbench, method: str, budget_bits: int) -> Plan:
    """The plan of a method that needs no evaluations; of a search, what it sets out from.

    Raises:
        BitwrightError: the method breaks the budget, a bound or a tie, or gives no plan.
    """
    try:
        found = METHODS[method].solve(bench, bench.problem(budget_bits))
    except ValueError as error:
        raise BitwrightError(f"the method {method} gives no plan: {error}") from error
    if not isinstance(found, Plan):
        raise BitwrightError(
            f"the method {method} gives a {type(found).__name__}, not a plan; return "
            "allocate.make_plan(problem, choice, name)"
        )
    return found


def within_error(bench: Workbench, plan: Plan, draws: int = 4, seed: int = 0) -> float | None:
    """Share of the weights whose width is inside the errors of the predicted losses.

    The plan's method is asked again with losses moved by their standard errors (data and probes,
    normally distributed, by channel); the mean share of weights that get another width.

    Args:
        bench: of the plan; plan: of a method that reads predicted losses alone; None is returned
            otherwise, and where the score does not know its errors.
        draws: times asked; seed: of the errors.
    """
    errors = bench.prediction().errors
    if plan.method not in ("channels", "layers") or errors is None:
        return None
    problem = bench.problem(plan.budget)
    error = np.concatenate([errors[layer.name] for layer in bench.network.layers])
    rest = len(problem.names) - len(error)  # of weights alone
    error = np.concatenate([error, np.zeros((rest, error.shape[1]))])
    size = problem.cost[:, 0] / problem.choices[0]
    generator = np.random.default_rng(seed)
    shares = []
    for _ in range(draws):
        luck = generator.standard_normal(len(error) - rest)
        luck = np.append(luck, np.zeros(rest))
        moved = replace(problem, loss=np.maximum(problem.loss + luck[:, None] * error, 0))
        other = METHODS[plan.method].solve(bench, moved)
        shares.append(size[other.choice != plan.choice].sum() / size.sum())
    return float(np.mean(shares))


def search_plans(
    bench: Workbench,
    settings: Settings,
    budget_bits: int,
    log: Path | None,
    on_evaluation: Callable[[Evaluation], None] | None,
) -> SearchResult:
    """The best plan that the settings' search evaluates, from the plan of predicted losses."""
    method = METHODS[settings.method]
    assert method.search is not None
    problem = bench.problem(budget_bits)
    # where all ratios are one plan, the smallest or the largest, there is nothing to search
    least, most = allocate.feasible_range(problem)
    step = min(layer.fan_in for layer in bench.network.layers)
    bound = problem.limits or problem.products
    single = (budget_bits >= most and not bound) or budget_bits < least + step
    with evaluators(bench, settings.processes, settings.batch) as evaluate_many:
        found = method.search(
            bench,
            problem,
            bench.reward,
            evaluations=1 if single else settings.evaluations,
            seed=settings.seed,
            start=method.solve(bench, problem),
            batch=settings.batch,
            evaluate_many=evaluate_many,
            log=log,
            on_evaluation=on_evaluation,
        )
    return replace(found, plan=replace(found.plan, method=settings.method))


def bits_for_bytes(bench: Workbench, method: str, target: int) -> int:
    """The largest weight budget, in bits, whose ONNX file fits `target` bytes.

    The file is written and measured: its size is the packed weights plus an overhead (graph,
    scales, biases) that depends little on the plan, so a few corrections settle it.

    Raises:
        BitwrightError: even the smallest plan does not fit; the message gives the feasible range.
    """
    least, most = allocate.feasible_range(bench.problem(8 * bench.network.weights))
    edges = bench.edges or bench.grids(solve(bench, method, most))
    require_bytes(bench.network, bench.tables, edges, target, bench.bounds)
    # mixed widths need more of a graph: a small network's largest plan may fit where those do not
    if bench.onnx_bytes(solve(bench, method, most)) <= target:
        return most
    smallest = bench.onnx_bytes(solve(bench, method, least))
    budget, good, bad = least + 8 * (target - smallest), least, most
    for _ in range(10):
        if not good < budget < bad:  # the overhead jumps here: half way
            budget = (good + bad) // 2
        size = bench.onnx_bytes(solve(bench, method, budget))
        if size > target:
            bad = budget
            budget -= 8 * (size - target) + 64
        else:
            good = budget
            if target - size < max(64, target // 500):
                break
            budget += 8 * (target - size)
        if bad - good <= 64:
            break
    return good


def bits_for_quality(
    bench: Workbench, method: str, good_enough: Callable[[Plan], bool], what: str
) -> int:
    """The smallest weight budget, in bits, whose plan is good enough on held-out rows.

    Bisection to 1/32 bit a weight; as quality does not quite grow with the budget, the six smaller
    steps of that size below what it finds are tried as well.

    Raises:
        BitwrightError: not even the largest plan is good enough.
    """
    least, most = allocate.feasible_range(bench.problem(8 * bench.network.weights))
    largest = solve(bench, method, most)
    if not good_enough(largest):
        mean = largest.cost / bench.network.weights
        raise BitwrightError(
            f"{what} cannot be met: even the largest plan ({mean:.2f} bits a weight) misses it on "
            "held-out calibration rows; allow more"
        )
    if good_enough(solve(bench, method, least)):
        return least
    low, high = least, most
    while high - low > bench.network.weights // 32:
        middle = (low + high) // 2
        if good_enough(solve(bench, method, middle)):
            high = middle
        else:
            low = middle
    step = max(1, bench.network.weights // 32)
    below = [high - k * step for k in range(6, 0, -1) if high - k * step > least]
    return next((b for b in below if good_enough(solve(bench, method, b))), high)
