"""A run: the stages one after another, each reading and writing the same folder.

Every stage has a key, a hash of all that its result depends on. A stage whose key is recorded and
whose files are there is not repeated: another budget reuses the sensitivity, a killed run goes on
where it stopped, another checkpoint starts over.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import torch

from bitwright import cost, quantize
from bitwright.allocate import Plan
from bitwright.curvature import make_key
from bitwright.deploy import Verification, agree, artefact, onnx_file, onnx_sealed, runtime, verify
from bitwright.errors import BitwrightError
from bitwright.files import put
from bitwright.pipeline import accumulators, judge
from bitwright.pipeline.built import Built
from bitwright.pipeline.frontiers import Curve, frontiers
from bitwright.pipeline.frontiers import to_json as frontiers_json
from bitwright.pipeline.judge import Judged, answers_of
from bitwright.pipeline.search import bits_for_bytes, solve
from bitwright.task import fingerprint

STAGES = (
    "preflight", "measure", "search", "quantize", "finetune", "refit-head", "export", "verify",
    "report",
)  # fmt: skip
#: rows the runtime's own tool takes its ranges from; no time depends on them
BENCH_ROWS = 32


class Run(Built):
    """One task, one set of settings, one folder: all stages, and what is found out about the file.

    Args:
        task: what to compress.
        settings: how.
        folder: created when the first stage has something to write.
        progress: called with a stage's name and the finished fraction.
    """

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
                chunk=self._chunk,
                progress=lambda f: self.progress("verify", f),
            )
            chunk = self._chunk
            lost = agree(self.quantized, stored.quantized, self.task.test[:chunk], chunk=chunk)
            found = replace(found, lost=lost)
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
        """Plans to stand beside: uniform, layers, channels within the chosen plan's budget.

        Where that is one of bytes, each has the bits that its own file has room for.
        """
        found, target = {}, self._target_bytes
        for method in ("uniform", "layers", "channels"):
            if method != self.plan.method:
                try:
                    bits = bits_for_bytes(self.bench, method, target) if target else None
                    found[method] = solve(self.bench, method, bits or self.plan.budget)
                except BitwrightError:
                    continue  # uniform may have no width below a tight budget
        found[self.plan.method] = self.plan
        return found

    @cached_property
    def judgements(self) -> dict[str, Judged]:
        """Float and each rival, judged through its own ONNX file; `judge.json`.

        Judged anew where the metric is a function: what it computes is in no key.
        """
        path, store, key = self.store.path("judge.json"), self.store, self._judge_key
        if self.task.metric is not None or not store.done("judge", key, path.name):
            with store.stage("judge", key, path.name):
                put(path, judge.to_json(self._judged()))
        return judge.from_json(path.read_text())

    @property
    def _judge_key(self) -> str:
        task, labels = self.task, self.task.test_labels
        assert task.test is not None
        return make_key(
            "judge",
            task.metric is None,
            self.plan.method,
            self.export_key,
            self._target_bytes or self.plan.budget,
            fingerprint(replace(task, calibration=task.test)),
            "" if labels is None else labels.numpy(),
            torch.__version__,
            str(cost.Machine.here(0)),  # seconds are of one machine
        )

    def _judged(self) -> dict[str, Judged]:
        assert self.task.test is not None
        test = self.task.test
        with tempfile.TemporaryDirectory() as scratch:
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
                judgement = judge.judge(self.task, reference, answers)
                found[name] = Judged(judgement, size, bits[name], latency)
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
