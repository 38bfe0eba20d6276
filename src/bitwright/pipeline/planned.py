"""The goal, its bounds, and the plan that meets it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bitwright import quantize
from bitwright.allocate import Limit, Plan, Product
from bitwright.allocate import plan as plans
from bitwright.allocate.search import Evaluation, SearchResult
from bitwright.curvature import make_key
from bitwright.errors import BitwrightError
from bitwright.files import put
from bitwright.network import outputs
from bitwright.pipeline.bench import Workbench
from bitwright.pipeline.budget import parse_bops, parse_latency
from bitwright.pipeline.gridded import Gridded
from bitwright.pipeline.limits import bops_limit, bops_product, latency_limit, require_limits
from bitwright.pipeline.methods import METHODS
from bitwright.pipeline.search import (
    bits_for_bytes,
    bits_for_quality,
    require_bytes,
    require_within,
    search_plans,
    solve,
    within_error,
)
from bitwright.task import metric_of
from bitwright.train import head_of


class Planned(Gridded):
    """Measured, with a plan of all widths within the bounds."""

    def check_goal(self) -> None:
        """Refuse a goal that no plan can meet, before anything slow and before anything is written.

        Raises:
            BitwrightError: it names the feasible range, or what is missing.
        """
        s = self.settings
        if s.max_drop is not None:
            self._labels_and_metric()
        if s.refit_head:
            head_of(self.network, self.task.divergence, self.task.class_axis)
        timed = s.max_latency is not None and s.profile is None  # in the folder, later
        if not self._mixed:  # those widths wait for the curvature
            limits = self._bops if timed else self.limits
            require_limits(self.network, self.bounds, limits, self.product)
        if s.budget is None:
            return
        if s.budget.mean_bits is not None:
            budget_bits = int(s.budget.mean_bits * self.network.weights)
            require_within(self.network, budget_bits, self.bounds)
        elif timed or not (self.folder.is_dir() and self._searched):
            edges = {}
            if s.activations is not None:  # the numbers in a file do not change its size
                edges = quantize.calibrate(self.network, self.calibration[:1])
            require_bytes(self.network, self.tables, edges, self._target_bytes, self.bounds)

    @cached_property
    def _bops(self) -> tuple[Limit, ...]:
        s = self.settings
        if s.max_bops is None or s.activations == "auto":
            return ()
        widths: Any = None if s.activations is None else int(s.activations)
        if self._mixed:
            widths = {g: grid.mean_bits for g, grid in self.edges.items()}
        return (bops_limit(self.network, parse_bops(s.max_bops), widths),)

    @cached_property
    def product(self) -> Product | None:
        """The bound on bit operations where activations are free."""
        s = self.settings
        if s.activations != "auto":
            return None
        assert s.max_bops is not None
        return bops_product(self.network, parse_bops(s.max_bops))

    @cached_property
    def limits(self) -> tuple[Limit, ...]:
        """Bounds beside the budget.

        Raises:
            BitwrightError: no plan fits one; the message gives its feasible range.
        """
        s, found = self.settings, self._bops
        if s.max_latency is not None:
            bound = parse_latency(s.max_latency)
            stored = s.activations is not None
            found = (*found, latency_limit(self.network, self.times, bound, stored))
        require_limits(self.network, self.bounds, found, self.product)
        return found

    @cached_property
    def edges(self) -> dict[int, quantize.EdgeGrid]:
        """Grids of the activations; none if they stay float."""
        if self.settings.activations == "auto":
            return self.bench.grids(self.plan)
        return self.fixed_edges

    @cached_property
    def bench(self) -> Workbench:
        """Grids of weights and edges, and what correction needs."""
        limits = self.limits  # first: they may be infeasible, and what follows is slow
        product = self.product
        return Workbench(
            self.network,
            self.sensitivity,
            self.tables,
            self.fixed_edges,
            self.calibration,
            self.task.divergence,
            self.task.class_axis,
            self.bounds,
            self.pool,
            limits,
            self.predicted,
            None if product is None else (self._edge_tables, product),
            self.settings.rounding,
            self.settings.budget is None or bool(METHODS[self.settings.method].search),
            self.settings.sums,
            self._bases,
        )

    @property
    def _search_key(self) -> str:
        s = self.settings
        return make_key(
            "search",
            self.base_key,
            s.method,
            s.score,
            s.activations,
            s.rounding,
            s.ranges,
            s.budget,
            s.max_kl,
            s.max_drop,
            json.dumps(s.overrides, sort_keys=True),
            (s.evaluations, s.batch) if METHODS[s.method].search else 0,
            self._labels_key if s.max_drop is not None or s.score == "fisher" else "",
            *(part for li in self.limits for part in (li.name, li.unit, li.bound, li.cost)),
            "" if self.product is None else self.product.bound,
            *([] if s.sums is None else [s.accumulator, s.accumulator_kind, s.accumulator_mode]),
            *([] if s.granularity == "edge" else [s.granularity]),
            *([] if s.levels == "uniform" else [s.levels]),
        )

    @property
    def _searched(self) -> bool:
        """Whether the plan of these settings is there; people may edit it."""
        return self.store.done("search", self._search_key, "plan.json", edited=True)

    @cached_property
    def plan(self) -> Plan:
        """The chosen plan; `plan.json`."""
        key = self._search_key
        path = self.store.path("plan.json")
        if self._searched:
            self.learning = self._read_learning(key)
            return _read_plan(path, self.bench)
        self.progress("search", 0.0)
        with self.store.stage("search", key, path.name):
            budget_bits = self._budget_bits()
            if METHODS[self.settings.method].search:
                result = self._search_plans(budget_bits, f"search-{key[:12]}")
                found, self.learning = result.plan, result.history
                table = [[e.index, e.value, e.best] for e in result.history]
                put(self.store.path("learning.json"), json.dumps({"key": key, "rows": table}))
            else:
                found = solve(self.bench, self.settings.method, budget_bits)
            put(path, plans.to_json(found))
        self.progress("search", 1.0)
        return _read_plan(path, self.bench)

    @cached_property
    def within_error(self) -> float | None:
        """Share of the weights whose width is inside the traces' error, where it can be told."""
        return within_error(self.bench, self.plan)

    def _search_plans(self, budget_bits: int, name: str) -> SearchResult:
        """A search's best plan; where bytes count, with a file that fits them.

        The budget in bits comes from the plan it sets out from. Another mix of widths needs another
        graph, so the file is measured, and the search repeated with what it is too large by.
        """
        count = self.settings.evaluations
        target = self._target_bytes
        least = self.bounds.range(self.network)[0]
        for attempt in range(4):
            result = search_plans(
                self.bench,
                self.settings,
                budget_bits,
                self.store.path(f"{name}-{attempt}.jsonl"),
                lambda e: self.progress("search", (e.index + 1) / count),
            )
            excess = 0 if target is None else self.bench.onnx_bytes(result.plan) - target
            if excess <= 0:
                return result
            if attempt == 0:
                first = budget_bits
            budget_bits = max(least, budget_bits - 8 * excess - 64)
        # the plan that every search starts from fits
        method = self.settings.method
        plan = replace(solve(self.bench, method, first), method=method)
        return SearchResult(plan, self.bench.reward(plan), result.history)

    def _read_learning(self, key: str) -> tuple[Evaluation, ...]:
        path = self.store.path("learning.json")
        if not METHODS[self.settings.method].search or not path.is_file():
            return ()
        try:
            found = json.loads(path.read_text())
            if found["key"] != key:
                return ()
            return tuple(Evaluation(int(i), (), float(v), float(b)) for i, v, b in found["rows"])
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
            return ()  # only the report's curve is lost

    def _budget_bits(self) -> int:
        s, bench = self.settings, self.bench
        if s.budget is not None:
            if s.budget.mean_bits is not None:
                return int(s.budget.mean_bits * self.network.weights)
            target = self._target_bytes
            assert target is not None
            return bits_for_bytes(bench, s.method, target)
        if s.max_kl is not None:
            limit = s.max_kl
            return bits_for_quality(
                bench, s.method, lambda p: bench.divergence(p) <= limit, f"--max-kl {limit}"
            )
        return self._bits_for_drop()

    @property
    def _target_bytes(self) -> int | None:
        """The goal in bytes of the ONNX file, or None where it is not in bytes."""
        budget = self.settings.budget
        if budget is None or budget.fraction is None:
            return None if budget is None else budget.size_bytes
        return int(budget.fraction * self._flight[0].float_bytes)

    def _labels_and_metric(self) -> tuple[Tensor, Callable[[Any, Tensor], float]]:
        labels = self.task.calibration_labels
        metric = metric_of(replace(self.task, test_labels=labels))
        if labels is None or metric is None:
            raise BitwrightError(
                "--max-drop needs labels of the calibration rows (in Python: `calibration=(x, y)`) "
                "and a metric; use --max-kl"
            )
        return labels, metric

    def _bits_for_drop(self) -> int:
        """Budget that keeps the metric on held-out calibration rows."""
        assert self.settings.max_drop is not None
        labels, metric = self._labels_and_metric()
        held_out = self.bench.held_out()
        where = {row.numpy().tobytes(): i for i, row in enumerate(self.task.calibration)}
        index = torch.tensor([where[row.numpy().tobytes()] for row in held_out])
        targets = labels[index]
        before = metric(outputs(self.network.module, held_out), targets)
        least = before - self.settings.max_drop / 100

        def good(plan: Plan) -> bool:
            return metric(self.bench.samples(plan)[1], targets) >= least

        what = f"--max-drop {self.settings.max_drop}"
        return bits_for_quality(self.bench, self.settings.method, good, what)


def _read_plan(path: Path, bench: Workbench) -> Plan:
    """A plan that a search wrote, or somebody edited."""
    try:
        content = path.read_bytes()
        problem = bench.problem(plans.read_json(content).budget_bits)
        found = plans.from_json(content, problem)
    except (BitwrightError, OSError) as error:
        raise BitwrightError(f"{path}: {error}; delete it to search again") from error
    if found.method not in METHODS:
        raise BitwrightError(
            f"{path}: method {found.method!r} is unknown; delete it to search again"
        )
    return found
