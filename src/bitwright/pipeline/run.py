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
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bitwright import curvature, quantize
from bitwright.allocate import Plan
from bitwright.allocate import plan as plans
from bitwright.allocate.search import Evaluation
from bitwright.curvature import Sensitivity, make_key
from bitwright.deploy import Verification, artefact, onnx_file, runtime, verify
from bitwright.errors import BitwrightError
from bitwright.network import Network, build, outputs
from bitwright.pipeline.judge import Judgement, answers_of, judge
from bitwright.pipeline.preflight import Preflight, preflight
from bitwright.pipeline.search import (
    Workbench,
    bits_for_bytes,
    bits_for_quality,
    search_ratios,
    solve,
)
from bitwright.pipeline.settings import (
    Settings,
    apply_overrides,
    check_settings,
    float_layers,
)
from bitwright.pipeline.store import Store, write_text
from bitwright.quantize import Quantized
from bitwright.task import Task, fingerprint, metric_of
from bitwright.train import finetune

STAGES = ("preflight", "measure", "search", "quantize", "finetune", "export", "verify", "report")
#: bump when a stage computes something else from the same inputs
_VERSION = 1

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
        x, limit = self.task.calibration, self.settings.calibration_rows
        generator = torch.Generator().manual_seed(self.settings.seed)
        return x[torch.randperm(len(x), generator=generator)[:limit]]

    @cached_property
    def network(self) -> Network:
        """The captured network, layers that overrides leave in float taken out."""
        skip = self.settings.skip
        found = build(self.task.model, self.calibration, skip=skip)
        named = [layer.name for layer in found.layers]
        floats = float_layers(self.settings.overrides, named)
        if floats:
            found = build(self.task.model, self.calibration, skip=(*skip, *floats))
        apply_overrides({k: v for k, v in self.settings.overrides.items() if v != "float"}, found)
        return found

    @cached_property
    def base_key(self) -> str:
        """What everything depends on: weights, data, seed, what is quantized."""
        s = self.settings
        floats = sorted(k for k, v in s.overrides.items() if v == "float")
        return make_key(
            _VERSION,
            fingerprint(self.task),
            s.seed,
            s.skip,
            floats,
            s.calibration_rows,
            self.task.divergence,
            self.task.class_axis,
        )

    # ---------------------------------------------------------------- preflight, measure

    @cached_property
    def preflight(self) -> Preflight:
        """Export the float model and compare; writes `float.onnx`."""
        network = self.network
        self.progress("preflight", 0.0)
        with tempfile.TemporaryDirectory() as scratch:  # a model that fails leaves no folder
            path = Path(scratch) / "float.onnx"
            found = preflight(
                self.task.model, network, self.calibration, path, len(self.calibration)
            )
            content = path.read_bytes()
        target = self.store.path("float.onnx")
        temporary = target.with_name("float.onnx.part")
        temporary.write_bytes(content)
        temporary.replace(target)
        self.progress("preflight", 1.0)
        return found

    @cached_property
    def sensitivity(self) -> Sensitivity:
        """Traces of all channels and edges; `sensitivity.safetensors`."""
        key = make_key("measure", self.base_key)
        path = self.store.path("sensitivity.safetensors")
        if self.store.done("measure", key, path.name):
            return curvature.load(path)
        with self.store.timed("measure"):
            found = curvature.gauss_newton(
                self.network,
                self.calibration,
                kind=self.task.divergence,
                class_axis=self.task.class_axis,
                seed=self.settings.seed,
                chunk=_chunk(self.network),
                progress=lambda f: self.progress("measure", f),
            )
            curvature.save(replace(found, key=key), path)
        self.store.finish("measure", key)
        return curvature.load(path)

    # ---------------------------------------------------------------- search

    @cached_property
    def bench(self) -> Workbench:
        """Grids of weights and edges, and what correction needs."""
        sensitivity = self.sensitivity
        tables = quantize.weight_tables(self.network, lambda f: self.progress("fit grids", f))
        edges = {}
        if self.settings.activations == 8:
            edges = quantize.calibrate(
                self.network,
                self.calibration[:CALIBRATION_ROWS],
                chunk=_chunk(self.network),
                progress=lambda f: self.progress("calibrate activations", f),
            )
        bounds = {k: v for k, v in self.settings.overrides.items() if v != "float"}
        allowed, ties = apply_overrides(bounds, self.network)
        return Workbench(
            self.network,
            sensitivity,
            tables,
            edges,
            self.calibration,
            self.task.divergence,
            self.task.class_axis,
            allowed,
            ties,
        )

    @property
    def _search_key(self) -> str:
        s = self.settings
        return make_key(
            "search",
            self.base_key,
            s.method,
            s.activations,
            s.budget,
            s.max_kl,
            s.max_drop,
            json.dumps(s.overrides, sort_keys=True),
            s.evaluations if s.method == "cw-hawq" else 0,
        )

    @cached_property
    def plan(self) -> Plan:
        """The chosen plan; `plan.json`."""
        key = self._search_key
        path = self.store.path("plan.json")
        problem = self.bench.problem(8 * self.network.weights)
        if self.store.done("search", key, path.name):
            self.learning = self._read_learning(key)
            return plans.from_json(path.read_text(), problem)
        with self.store.timed("search"):
            budget_bits = self._budget_bits()
            if self.settings.method == "cw-hawq":
                log = self.store.path(f"search-{key[:12]}.jsonl")
                count = self.settings.evaluations
                result = search_ratios(
                    self.bench,
                    self.settings,
                    budget_bits,
                    log,
                    lambda e: self.progress("search", (e.index + 1) / count),
                )
                found, self.learning = result.plan, result.history
                table = [[e.index, e.value, e.best] for e in result.history]
                write_text(
                    self.store.path("learning.json"), json.dumps({"key": key, "rows": table})
                )
            else:
                found = solve(self.bench, self.settings.method, budget_bits)
            write_text(path, plans.to_json(found))
        self.store.finish("search", key)
        return plans.from_json(path.read_text(), problem)

    def _read_learning(self, key: str) -> tuple[Evaluation, ...]:
        path = self.store.path("learning.json")
        if self.settings.method != "cw-hawq" or not path.is_file():
            return ()
        found = json.loads(path.read_text())
        if found.get("key") != key:
            return ()
        return tuple(Evaluation(int(i), (), float(v), float(b)) for i, v, b in found["rows"])

    def _budget_bits(self) -> int:
        s, bench = self.settings, self.bench
        if s.budget is not None:
            if s.budget.mean_bits is not None:
                return int(s.budget.mean_bits * self.network.weights)
            target = s.budget.size_bytes
            if target is None:
                assert s.budget.fraction is not None
                target = int(s.budget.fraction * self.preflight.float_bytes)
            return bits_for_bytes(bench, s.method, target)
        if s.max_kl is not None:
            limit = s.max_kl
            return bits_for_quality(
                bench, s.method, lambda p: bench.divergence(p) <= limit, f"--max-kl {limit}"
            )
        return self._bits_for_drop()

    def _bits_for_drop(self) -> int:
        """Budget that keeps the metric on held-out calibration rows."""
        assert self.settings.max_drop is not None
        labels = self.task.calibration_labels
        judged = replace(self.task, test_labels=labels)
        metric = metric_of(judged)
        if labels is None or metric is None:
            raise BitwrightError(
                "--max-drop needs labels of the calibration rows and a metric; use --max-kl"
            )
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
        return make_key("quantize", self._search_key, self.plan.key)

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
            with self.store.timed("quantize"):
                artefact.save(self.bench.build(self.plan), path, self._metadata())
            self.store.finish("quantize", key)
            self.progress("quantize", 1.0)
        return self._own(artefact.load(path))

    @cached_property
    def quantized(self) -> Quantized:
        """Fine-tuned if asked for; `model.safetensors`."""
        path = self.store.path("model.safetensors")
        key = make_key("finetune", self._quantize_key, self.settings.epochs)
        if not self.store.done("finetune", key, path.name):
            with self.store.timed("finetune"):
                found, _ = (
                    finetune(
                        self.corrected,
                        self.calibration,
                        epochs=self.settings.epochs,
                        kind=self.task.divergence,
                        class_axis=self.task.class_axis,
                        seed=self.settings.seed,
                        progress=lambda f: self.progress("finetune", f),
                    )
                    if self.settings.epochs
                    else (self.corrected, [])
                )
                artefact.save(found, path, self._metadata())
            self.store.finish("finetune", key)
        return self._own(artefact.load(path))

    def _metadata(self) -> dict[str, object]:
        from bitwright import __version__

        return {
            "producer": f"bitwright {__version__}",
            "method": self.plan.method,
            "preprocessing": self.task.preprocessing,
        }

    @cached_property
    def onnx(self) -> Path:
        """The ONNX file of what the artefact holds; `model.onnx`."""
        path = self.store.path("model.onnx")
        key = make_key("export", self._quantize_key, self.settings.epochs)
        quantized = self.quantized
        if not self.store.done("export", key, path.name):
            self.progress("export", 0.0)
            with self.store.timed("export"):
                onnx_file.save(quantized, path)
            self.store.finish("export", key)
            self.progress("export", 1.0)
        return path

    # ---------------------------------------------------------------- verify, judge

    @cached_property
    def verification(self) -> Verification:
        """The runtime against the integer reference of the artefact on disk; `verify.json`."""
        path = self.onnx
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
            write_text(self.store.path("verify.json"), json.dumps(found.to_dict(), indent=1))
        return found

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

    def breakdown(self) -> dict[str, int]:
        """Bytes of the artefact and the ONNX file, beside what the plan must cost."""
        bits = quantize.plan_bits(self.network, self.plan)
        parts = artefact.stored_bytes(self.network, bits)
        return {
            **parts,
            "model.safetensors": self.store.path("model.safetensors").stat().st_size,
            "model.onnx": self.onnx.stat().st_size,
        }


#: rows the ranges of activations are taken from
CALIBRATION_ROWS = 512


def _chunk(network: Network) -> int:
    """Rows in a pass so that activations with their gradients stay below about 1 GB."""
    per_row = 4 * sum(int(np.prod(e.shape)) for e in network.edges) * 6
    return max(1, min(64, int(1e9 // max(per_row, 1))))


def _with_test_rows(task: Task) -> Task:
    """A task without test rows is judged on a fifth of its calibration rows, and says so."""
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
