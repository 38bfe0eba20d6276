"""A run: the stages one after another, each reading and writing the same folder.

Every stage has a key, a hash of all that its result depends on. A stage whose key is recorded and
whose files are there is not repeated: another budget reuses the sensitivity, a killed run goes on
where it stopped, another checkpoint starts over.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from bitwright import allocate, cost, curvature, overflow, quantize
from bitwright.allocate import Limit, Plan, Product
from bitwright.allocate import plan as plans
from bitwright.allocate.search import Evaluation, SearchResult
from bitwright.curvature import Sensitivity, make_key, processes
from bitwright.deploy import (
    Verification,
    agree,
    artefact,
    onnx_file,
    onnx_sealed,
    runtime,
    verify,
)
from bitwright.errors import BitwrightError
from bitwright.files import put
from bitwright.network import Network, build, outputs
from bitwright.pipeline import accumulators
from bitwright.pipeline.budget import parse_bops, parse_latency
from bitwright.pipeline.frontiers import Curve, frontiers
from bitwright.pipeline.frontiers import to_json as frontiers_json
from bitwright.pipeline.judge import Judgement, answers_of, judge
from bitwright.pipeline.limits import bops_limit, bops_product, latency_limit, require_limits
from bitwright.pipeline.methods import METHODS
from bitwright.pipeline.preflight import Preflight, preflight
from bitwright.pipeline.search import (
    REWARD_CORRECTION_ROWS,
    REWARD_ROWS,
    Bounds,
    Workbench,
    bits_for_bytes,
    bits_for_quality,
    require_bytes,
    require_within,
    search_plans,
    solve,
    within_error,
)
from bitwright.pipeline.settings import (
    Settings,
    apply_overrides,
    check_settings,
    float_layers,
)
from bitwright.pipeline.store import Store
from bitwright.quantize import Quantized
from bitwright.task import Task, fingerprint, metric_of
from bitwright.train import Recipe, Refit, augment, finetune, hawq_order, head_of, refit_head

STAGES = (
    "preflight", "measure", "search", "quantize", "finetune", "refit-head", "export", "verify",
    "report",
)  # fmt: skip
#: bump when a stage computes something else from the same inputs
_VERSION = 4

Progress = Callable[[str, float], None]


def _silent(stage: str, fraction: float) -> None:
    pass


class Run:
    """One task, one set of settings, one folder.

    Args:
        task: what to compress.
        settings: how.
        folder: created when the first stage has something to write.
        progress: called with a stage's name and the finished fraction.
    """

    def __init__(
        self, task: Task, settings: Settings, folder: Path, progress: Progress = _silent
    ) -> None:
        self.settings = check_settings(settings)
        self.task = _with_test_rows(task)
        self.folder = folder
        self.progress = progress
        self.learning: tuple[Evaluation, ...] = ()

    @cached_property
    def store(self) -> Store:
        """The folder, created on first use: nothing is written before the input has passed."""
        return Store(self.folder)

    @cached_property
    def calibration(self) -> Tensor:
        """At most `calibration_rows` rows, drawn with the seed."""
        return self.task.calibration[self._drawn[: self.settings.calibration_rows]]

    @cached_property
    def _drawn(self) -> Tensor:
        """All rows of the task's calibration in the order that the seed draws them."""
        generator = torch.Generator().manual_seed(self.settings.seed)
        return torch.randperm(len(self.task.calibration), generator=generator)

    @cached_property
    def pool(self) -> Tensor:
        """Calibration rows that a search is rewarded on; not those corrections are fitted to.

        Drawn behind `calibration` where there are more rows, else its own later rows.
        """
        x, limit = self.task.calibration, self.settings.calibration_rows
        rest = self._drawn[limit : limit + REWARD_ROWS]
        if len(rest) >= REWARD_ROWS:
            return x[rest]
        used = min(REWARD_CORRECTION_ROWS, len(self.calibration) // 2)
        return torch.cat([self.calibration[used:], x[rest]])

    @cached_property
    def network(self) -> Network:
        """The captured network, layers that overrides leave in float taken out."""
        skip = self.settings.skip
        found = build(self.task.model, self.calibration, skip=skip)
        for name in skip:
            inside = name if name.endswith(".") else name + "."  # a prefix, or a name
            hit = [s for s in found.skipped if s == name or (inside == name and s.startswith(name))]
            if not hit:
                layers = [layer.name for layer in found.layers]
                raise BitwrightError(
                    f"--skip {name} matches no layer; layers are {', '.join(layers[:6])}"
                    f"{' …' if len(layers) > 6 else ''}"
                )
        named = [layer.name for layer in found.layers]
        floats = float_layers(self.settings.overrides, named)
        if floats:
            found = build(self.task.model, self.calibration, skip=(*skip, *floats))
        apply_overrides(self.settings.overrides, found)
        if not self.settings.equalize:
            return found
        x = self.calibration[:CALIBRATION_ROWS]
        return quantize.equalized(found, x, self.settings.equalize, chunk=_chunk(found))

    @cached_property
    def base_key(self) -> str:
        """What everything depends on: weights, forward pass, data, seed, what is quantized."""
        s = self.settings
        floats = sorted(k for k, v in s.overrides.items() if v == "float")
        return make_key(
            _VERSION,
            fingerprint(self.task),
            _computation(self.network),
            s.seed,
            s.device,
            s.skip,
            floats,
            s.calibration_rows,
            s.equalize,
            self.task.divergence,
            self.task.class_axis,
        )

    # ---------------------------------------------------------------- preflight, measure

    @cached_property
    def _flight(self) -> tuple[Preflight, bytes]:
        """What preflight found, and the float ONNX file; nothing is written yet."""
        network = self.network
        self.progress("preflight", 0.0)
        with tempfile.TemporaryDirectory() as scratch:  # a model that fails leaves no folder
            path = Path(scratch) / "float.onnx"
            found = preflight(
                self.task.model, network, self.calibration, path, len(self.calibration)
            )
            content = path.read_bytes()
        self.progress("preflight", 1.0)
        return found, content

    @cached_property
    def preflight(self) -> Preflight:
        """Export the float model and compare; writes `float.onnx`."""
        found, content = self._flight
        put(self.store.path("float.onnx"), content)
        return found

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

    # ---------------------------------------------------------------- limits

    def profile(self, threads: int = 1, repeats: int = 100) -> cost.Profile:
        """Times of all layer shapes here, measured where they are not known; `profile.json`."""
        path = self.store.path("profile.json")
        _, float_file = self._flight
        with self.store.timed("profile"):
            return cost.profile(
                self.network,
                float_file,
                self.calibration,
                path,
                threads=threads,
                repeats=repeats,
                progress=lambda f: self.progress("profile", f),
            )

    @cached_property
    def times(self) -> cost.Profile:
        """The profile that a bound on the latency is checked by: the given one, or our own."""
        if self.settings.profile is not None:
            return cost.read(Path(self.settings.profile))
        path = self.store.path("profile.json")
        if not path.exists():
            return self.profile()
        before = cost.read(path)
        return self.profile(before.machine.threads, before.repeats)

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
    def sensitivity(self) -> Sensitivity:
        """Traces of all channels and edges; `sensitivity.safetensors`.

        Several processes each measure a part of the rows; the first one writes.
        """
        key = make_key("measure", self.base_key)
        path = self.store.path("sensitivity.safetensors")
        group = processes.group()
        done = torch.tensor([self.store.done("measure", key, path.name)])
        if bool(group.joined(done)[0]):
            kept = group.rank == 0 or path.is_file()
            return curvature.load(path) if kept else Sensitivity("gauss-newton", {})
        with self.store.stage("measure", key, path.name):
            found = curvature.gauss_newton(
                self.network.to(self.settings.device),
                group.shard(self.calibration),
                kind=self.task.divergence,
                class_axis=self.task.class_axis,
                seed=self.settings.seed,
                chunk=_chunk(self.network),
                progress=lambda f: self.progress("measure", f),
            )
            curvature.save(replace(found, key=key), path)
        return curvature.load(path)

    # ---------------------------------------------------------------- search

    @cached_property
    def bounds(self) -> Bounds:
        """Widths that overrides allow each layer, and layers tied to one width."""
        return Bounds.of(self.network, *apply_overrides(self.settings.overrides, self.network))

    @cached_property
    def tables(self) -> dict[str, quantize.WeightTable]:
        """Grids of all weights at all widths."""
        return quantize.weight_tables(self.network, lambda f: self.progress("fit grids", f))

    @property
    def _mixed(self) -> bool:
        """Whether activations get widths of their own, by curvature."""
        bits = self.settings.activations
        if not isinstance(bits, int | float) or self.settings.method == "uniform":
            return False
        return bits < 8 or self._guaranteed

    @property
    def _guaranteed(self) -> bool:
        """Whether no input may overflow an accumulator."""
        sums = self.settings.sums
        return sums is not None and sums.guaranteed

    @cached_property
    def _calibrated(self) -> dict[int, quantize.EdgeGrid]:
        """Grids of one width for all activations: 8 bits where each will get its own."""
        bits = self.settings.activations
        if bits is None:
            return {}
        bits = 8 if bits == "auto" else bits
        return quantize.calibrate(
            self.network,
            self.calibration[:CALIBRATION_ROWS],
            bits=8 if self._mixed else int(bits),
            **self._ranges,
            chunk=_chunk(self.network),
            progress=partial(self.progress, "calibrate activations"),
        )

    @cached_property
    def _edge_tables(self) -> dict[int, quantize.EdgeTable]:
        """Grids of the activations at all widths, and their errors."""
        return quantize.edge_tables(
            self.network,
            self.calibration[:CALIBRATION_ROWS],
            **self._ranges,
            chunk=_chunk(self.network),
            progress=partial(self.progress, "calibrate activations"),
        )

    @property
    def _ranges(self) -> dict[str, Any]:
        """What decides on the ranges of activations."""
        bits, kind = self.settings.activations, self.settings.ranges
        narrow = isinstance(bits, int | float) and bits < 8
        if kind == "curvature" or (kind is None and narrow):
            return {"weights": {n: e.value for n, e in self.sensitivity.edges.items()}}
        return {"percentile": quantize.PERCENTILE} if kind == "percentile" else {}

    @cached_property
    def edges(self) -> dict[int, quantize.EdgeGrid]:
        """Grids of the activations; none if they stay float."""
        bits = self.settings.activations
        if bits == "auto":
            return self.bench.grids(self.plan)
        if not self._mixed:
            return self._calibrated
        assert isinstance(bits, int | float)
        if self.settings.granularity == "channel":
            return quantize.channel_grids(
                self.network,
                self.sensitivity,
                self.calibration[:CALIBRATION_ROWS],
                bits,
                chunk=_chunk(self.network),
                progress=partial(self.progress, "calibrate activations"),
            )
        tables = self._edge_tables
        if self._guaranteed:
            return self._input_widths(bits)
        problem = quantize.edge_problem(self.network, self.sensitivity, tables, bits)
        widths = allocate.knapsack(problem).bits.tolist()
        return {g: tables[g].grids[b] for g, b in zip(sorted(tables), widths, strict=True)}

    def _input_widths(self, most: float) -> dict[int, quantize.EdgeGrid]:
        """Grids of at most so many bits that leave the accumulator's weights room."""
        sums = self.settings.sums
        assert sums is not None
        return overflow.input_widths(
            self.network,
            self.sensitivity,
            self.tables,
            self._edge_tables,
            sums.accumulator,
            most=int(most),
            progress=partial(self.progress, "fit accumulators"),
        ).edges

    @cached_property
    def predicted(self) -> quantize.Predicted | None:
        """What another score than the trace predicts; `scores.safetensors`.

        Grids that cannot overflow are priced by trace: the integers on them are not the nearest.
        """
        return self._predicted("score", "scores.safetensors", self.tables)

    @cached_property
    def _bases(self) -> tuple[dict[str, quantize.WeightTable], quantize.Predicted | None] | None:
        """Multi-bit grids, and what they are predicted to lose; `scores-bases.safetensors`."""
        if self.settings.levels == "uniform":
            return None
        progress = partial(self.progress, "fit bases")
        tables = quantize.bases_tables(self.network, self.tables, progress)
        return tables, self._predicted("score-bases", "scores-bases.safetensors", tables)

    def _predicted(
        self, stage: str, name: str, tables: dict[str, quantize.WeightTable]
    ) -> quantize.Predicted | None:
        s = self.settings
        if s.score == "trace" or self._guaranteed:
            return None
        fed_back = s.score == "actual-error" and s.rounding == "feedback"
        score = "feedback" if fed_back else s.score
        key = make_key(stage, self.base_key, score, self._labels_key)
        path = self.store.path(name)
        if not self.store.done(stage, key, path.name):
            with self.store.stage(stage, key, path.name):
                self.progress("score", 0.0)
                found = quantize.predict(
                    score, self.network, self.sensitivity, tables, rows=self._rows
                )
                tensors = {
                    f"{part}:{name}": torch.from_numpy(np.ascontiguousarray(value))
                    for part, values in (("loss", found.losses), ("error", found.errors or {}))
                    for name, value in values.items()
                }
                put(path, safetensors.torch.save(tensors))
                self.progress("score", 1.0)
        stored = {n: v.numpy() for n, v in safetensors.torch.load_file(path).items()}
        names = [layer.name for layer in self.network.layers]
        errors = {n: stored[f"error:{n}"] for n in names if f"error:{n}" in stored}
        return quantize.Predicted({n: stored[f"loss:{n}"] for n in names}, errors or None)

    @property
    def _rows(self) -> quantize.Rows:
        """The calibration rows, with their labels where there are any."""
        labels = self.task.calibration_labels
        if labels is not None:
            labels = labels[self._drawn[: self.settings.calibration_rows]]
        return quantize.Rows(self.calibration, labels, self.task.divergence, self.task.class_axis)

    @cached_property
    def bench(self) -> Workbench:
        """Grids of weights and edges, and what correction needs."""
        limits = self.limits  # first: they may be infeasible, and what follows is slow
        product = self.product
        return Workbench(
            self.network,
            self.sensitivity,
            self.tables,
            self.edges if product is None else {},
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
            self._labels_key if s.max_drop is not None else "",
            *(part for li in self.limits for part in (li.name, li.unit, li.bound, li.cost)),
            "" if self.product is None else self.product.bound,
            *([] if s.sums is None else [s.accumulator, s.accumulator_kind, s.accumulator_mode]),
            *([] if s.granularity == "edge" else [s.granularity]),
            *([] if s.levels == "uniform" else [s.levels]),
        )

    @property
    def _labels_key(self) -> str:
        labels = self.task.calibration_labels
        return "" if labels is None else make_key(labels.numpy())

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
                "--max-drop needs labels of the calibration rows and a metric; use --max-kl"
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

    # ---------------------------------------------------------------- quantize … export

    @cached_property
    def _quantize_key(self) -> str:
        return make_key("quantize", self._search_key, self.plan.key, artefact.SCHEMA)

    def _own(self, stored: artefact.Artefact) -> Quantized:
        """A stored artefact's numbers on this run's float network (the teacher)."""
        return replace(stored.quantized, network=self.network)

    @cached_property
    def corrected(self) -> Quantized:
        """Rounded and corrected; `quantized.safetensors`."""
        path = self.store.path("quantized.safetensors")
        key = self._quantize_key
        if not self.store.done("quantize", key, path.name):
            self.progress("quantize", 0.0)
            with self.store.stage("quantize", key, path.name):
                artefact.save(self.bench.build(self.plan), path, self._metadata())
            self.progress("quantize", 1.0)
        return self._own(artefact.load(path))

    @property
    def _training(self) -> tuple[int | str | float, ...]:
        """What fine-tuning depends on, nothing of it without epochs."""
        s = self.settings
        if not s.epochs:
            return (0,)
        return (s.epochs, s.order, s.augment or "", s.temperature, s.rate)

    def _order(self) -> list[str] | None:
        """Layers one after another, or None for all at once."""
        if self.settings.order == "all":
            return None
        self.progress("order layers", 0.0)
        kind, axis = self.task.divergence, self.task.class_axis
        found = hawq_order(self.corrected, self.calibration, kind=kind, class_axis=axis)
        self.progress("order layers", 1.0)
        return found

    @property
    def _finetune_key(self) -> str:
        return make_key("finetune", self._quantize_key, *self._training)

    @property
    def _tuned(self) -> Path:
        """The network before its head is refitted: `tuned.safetensors` once that was done."""
        key = self._finetune_key
        for name in ("model.safetensors", "tuned.safetensors"):
            if self.store.done("finetune", key, name):
                return self.store.path(name)
        path = self.store.path("model.safetensors")
        with self.store.stage("finetune", key, path.name):
            found = self._finetuned(key) if self.settings.epochs else self.corrected
            artefact.save(self._narrowed(found), path, self._metadata())
        return path

    def _narrowed(self, found: Quantized) -> Quantized:
        """What training moved, back within what kernels can add."""
        layers = quantize.narrowed(found.network, found.layers, found.edges)
        found, sums = replace(found, layers=layers), self.settings.sums
        return found if sums is None else sums.fitted(found, self.calibration)

    @cached_property
    def quantized(self) -> Quantized:
        """Fine-tuned and its head refitted if asked for; `model.safetensors`."""
        return self._own(artefact.load(self._refitted if self.settings.refit_head else self._plain))

    @property
    def _plain(self) -> Path:
        """`model.safetensors` without a refitted head."""
        path = self.store.path("model.safetensors")
        if (tuned := self._tuned) != path:
            put(path, tuned.read_bytes())
        return path

    @property
    def _refitted(self) -> Path:
        """`model.safetensors` with a refitted head; what it was before is `tuned.safetensors`."""
        path = self.store.path("model.safetensors")
        key = make_key("refit-head", self._finetune_key)
        if not self.store.done("refit-head", key, path.name):
            tuned = self.store.path("tuned.safetensors")
            if (before := self._tuned) != tuned:
                put(tuned, before.read_bytes())
            with self.store.stage("refit-head", key, path.name):
                found, what = refit_head(
                    self._own(artefact.load(tuned)),
                    self.task.calibration[self._drawn[:HEAD_ROWS]],
                    kind=self.task.divergence,
                    class_axis=self.task.class_axis,
                    progress=lambda f: self.progress("refit-head", f),
                )
                said = {**self._metadata(), "refit_head": what.to_dict()}
                artefact.save(self._narrowed(found), path, said)
        return path

    @property
    def refit(self) -> Refit | None:
        """What refitting the head has given, if asked for."""
        if not self.settings.refit_head:
            return None
        said = artefact.load(self._refitted).metadata["refit_head"]
        return Refit(**said)

    @property
    def _bounded(self) -> overflow.Bounded | None:
        """What no step of training may make able to overflow; pairs are put back afterwards."""
        sums = self.settings.sums
        if sums is None or not sums.guaranteed or sums.accumulator.kind == "pairs":
            return None
        ranges = overflow.input_ranges(self.network, self.corrected.edges)
        return overflow.Bounded(sums.accumulator, ranges)

    def _finetuned(self, key: str) -> Quantized:
        """Trained on all rows there are, those that a search is rewarded on among them."""
        s = self.settings
        checkpoint = self.store.path(f"finetune-{key[:12]}.safetensors")
        found, history = finetune(
            self.corrected,
            self.task.calibration[self._drawn],
            Recipe(
                epochs=s.epochs,
                rate=s.rate,
                temperature=s.temperature,
                kind=self.task.divergence,
                class_axis=self.task.class_axis,
                seed=s.seed,
                device=s.device,
                bounded=self._bounded,
            ),
            order=self._order(),
            augment=None if s.augment is None else augment.parse(s.augment),
            checkpoint=checkpoint,
            progress=lambda f: self.progress("finetune", f),
        )
        put(self.store.path("finetune.json"), json.dumps({"key": key, "loss": history}))
        checkpoint.unlink(missing_ok=True)
        return found

    def _metadata(self) -> dict[str, object]:
        from bitwright import __version__

        return {
            "producer": f"bitwright {__version__}",
            "method": self.plan.method,
            "preprocessing": self.task.preprocessing,
            **({"equalize": self.settings.equalize} if self.settings.equalize else {}),
        }

    @property
    def export_key(self) -> str:
        """Hash of all that the exported file depends on."""
        refitted = ("refit-head",) if self.settings.refit_head else ()
        return make_key("export", self._quantize_key, *self._training, *refitted)

    @cached_property
    def onnx(self) -> Path:
        """The ONNX file of what the artefact holds; `model.onnx`."""
        path = self.store.path("model.onnx")
        key = self.export_key
        quantized = self.quantized
        if not self.store.done("export", key, path.name):
            self.progress("export", 0.0)
            with self.store.stage("export", key, path.name):
                onnx_file.save(quantized, path)
            self.progress("export", 1.0)
        return path

    # ---------------------------------------------------------------- verify, judge

    @cached_property
    def verification(self) -> Verification:
        """The runtime against the integer reference of the artefact on disk; `verify.json`.

        On a chunk of the rows also that reference against the one of the captured network.
        """
        path = self.onnx
        onnx_sealed.read(path)  # before a runtime sees it
        stored = artefact.load(self.store.path("model.safetensors"))
        assert self.task.test is not None
        with self.store.timed("verify"):
            found = verify(
                stored.quantized,
                path,
                self.task.test,
                class_axis=self.task.class_axis,
                chunk=_chunk(self.network),
                progress=lambda f: self.progress("verify", f),
            )
            chunk = _chunk(self.network)
            lost = agree(self.quantized, stored.quantized, self.task.test[:chunk], chunk=chunk)
            if lost:  # on its way to the disk and back
                found = replace(found, ok=False, differing=(*lost, *found.differing))
            put(self.store.path("verify.json"), json.dumps(found.to_dict(), indent=1))
        return found

    @cached_property
    def accumulators(self) -> list[str]:
        """What is promised of accumulators, for people; `accumulator.json`."""
        sums = self.settings.sums
        if sums is None:
            return []
        assert self.task.test is not None
        lines, text = accumulators.report(sums, self.quantized, self.task.test, "test")
        put(self.store.path("accumulator.json"), text)
        return lines

    def rivals(self) -> dict[str, Plan]:
        """Plans to stand beside: uniform, layers, channels within the chosen plan's budget."""
        found = {}
        for method in ("uniform", "layers", "channels"):
            if method != self.plan.method:
                try:
                    found[method] = solve(self.bench, method, self.plan.budget)
                except BitwrightError:
                    continue  # uniform may have no width below a tight budget
        found[self.plan.method] = self.plan
        return found

    @cached_property
    def judgements(self) -> dict[str, tuple[Judgement, int, float, float]]:
        """For float and each rival: judgement, file bytes, mean bits, latency in seconds.

        Every rival is exported and judged through its own ONNX file.
        """
        assert self.task.test is not None
        test = self.task.test
        with self.store.timed("judge"), tempfile.TemporaryDirectory() as scratch:
            files = {"float": self.store.path("float.onnx")}
            _ = self.preflight
            bits = {"float": 32.0}
            rivals = self.rivals()
            for i, (name, plan) in enumerate(rivals.items()):
                self.progress("judge", i / (len(rivals) + 1))
                if name == self.plan.method:
                    files[name] = self.onnx
                else:
                    files[name] = Path(scratch) / f"{name}.onnx"
                    onnx_file.save(self.bench.build(plan), files[name])
                bits[name] = plan.cost / self.network.weights
            reference = answers_of(files["float"], test)
            seconds = runtime.latencies(list(files.values()), test[:1])
            found = {}
            for (name, path), latency in zip(files.items(), seconds, strict=True):
                answers = reference if name == "float" else answers_of(path, test)
                size = path.stat().st_size
                found[name] = (judge(self.task, reference, answers), size, bits[name], latency)
        self.progress("judge", 1.0)
        return found

    def benchmark(self, threads: int = 1, repeats: int = 200) -> cost.Bench:
        """Our file beside float and the runtime's own static int8, in turns; `bench.json`."""
        assert self.task.test is not None
        _ = self.preflight
        ours = self.onnx
        with self.store.timed("bench"), tempfile.TemporaryDirectory() as scratch:
            files = {"float": self.store.path("float.onnx")}
            for form in cost.FORMATS:
                path = Path(scratch) / f"{form}.onnx"
                rows = self.calibration[:BENCH_ROWS]
                files[f"static int8, {form}"] = cost.static_int8(
                    files["float"], rows, path, form=form
                )
            files["bitwright"] = ours
            found = cost.bench(
                files,
                self.task.test[:1],
                threads=threads,
                repeats=repeats,
                progress=lambda f: self.progress("bench", f),
            )
        put(self.store.path("bench.json"), found.to_json())
        return found

    @cached_property
    def frontiers(self) -> tuple[Curve, ...]:
        """The best plans of every size, by layer and by channel; `frontier.json`."""
        with self.store.timed("frontiers"):
            found = frontiers(self.bench, self.plan)
            put(self.store.path("frontier.json"), frontiers_json(found, self.bench))
        return found

    def breakdown(self) -> dict[str, int]:
        """Bytes of the artefact and the ONNX file, beside what the plan must cost."""
        bits = quantize.plan_bits(self.network, self.plan)
        own = self.settings.levels == "multi-bit"
        bases = quantize.plan_rows(self.network, self.plan.bases) if own else None
        parts = artefact.stored_bytes(self.network, bits, bases)
        return {
            **parts,
            "model.safetensors": self.store.path("model.safetensors").stat().st_size,
            "model.onnx": self.onnx.stat().st_size,
        }


#: rows the ranges of activations are taken from
CALIBRATION_ROWS = 512
#: rows a head is refitted and judged on: more than `calibration_rows`, at a pass of the network
HEAD_ROWS = 8192
#: rows the runtime's own tool takes its ranges from; no time depends on them
BENCH_ROWS = 32


def _computation(network: Network) -> str:
    """The forward pass: the same weights under another activation are another network.

    With the tensors that it makes itself; parameters and buffers are in the fingerprint.
    """
    module = network.module
    known = {*dict(module.named_parameters()), *dict(module.named_buffers())}
    read = [n.target for n in module.graph.nodes if n.op == "get_attr"]
    constants = [network.tensor(name).tolist() for name in read if name not in known]
    return make_key(module.code, *constants)


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


def _chunk(network: Network) -> int:
    """Rows in a pass so that activations with their gradients stay below about 1 GB."""
    per_row = 4 * sum(int(np.prod(e.shape)) for e in network.edges) * 6
    return max(1, min(64, int(1e9 // max(per_row, 1))))


def _with_test_rows(task: Task) -> Task:
    """A task without test rows is judged on a fifth of its calibration rows, and says so."""
    least = 2 if task.test is not None else 3
    if len(task.calibration) < least:
        raise BitwrightError(
            f"{len(task.calibration)} calibration rows are too few; give {least} at least, better "
            "a thousand"
        )
    if task.test is not None:
        return task
    count = max(1, len(task.calibration) // 5)
    note = f"no test rows were given: judged on the last {count} calibration rows, held out"
    labels = task.calibration_labels
    return replace(
        task,
        calibration=task.calibration[:-count],
        calibration_labels=None if labels is None else labels[:-count],
        test=task.calibration[-count:],
        test_labels=None if labels is None else labels[-count:],
        notes=(*task.notes, note),
    )


__all__ = ["STAGES", "Run"]
