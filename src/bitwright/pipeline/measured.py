"""What a run knows before any choice: rows, the captured network, preflight, times, curvature.

A run is a chain of classes, each with the stages of one: :class:`Measured`, then grids
(:mod:`.gridded`), a plan (:mod:`.planned`), the quantized network and its file (:mod:`.built`), and
what is found out about that (:mod:`.run`).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import Tensor

from bitwright import cost, curvature, quantize
from bitwright.allocate.search import Evaluation
from bitwright.curvature import Sensitivity, make_key, processes
from bitwright.errors import BitwrightError
from bitwright.files import put
from bitwright.network import Network, build
from bitwright.pipeline.bench import REWARD_CORRECTION_ROWS, REWARD_ROWS
from bitwright.pipeline.preflight import Preflight, preflight
from bitwright.pipeline.settings import Settings, apply_overrides, check_settings, float_layers
from bitwright.pipeline.store import Store
from bitwright.task import Task, fingerprint

#: bump when a stage computes something else from the same inputs
VERSION = 4
#: rows the ranges of activations are taken from
CALIBRATION_ROWS = 512

Progress = Callable[[str, float], None]


def silent(stage: str, fraction: float) -> None:
    """Progress that nobody wants to see."""


class Measured:
    """One task, one set of settings, one folder.

    Args:
        task: what to compress.
        settings: how.
        folder: created when the first stage has something to write.
        progress: called with a stage's name and the finished fraction.
    """

    def __init__(
        self, task: Task, settings: Settings, folder: Path, progress: Progress = silent
    ) -> None:
        self.settings = check_settings(settings)
        self.task = with_test_rows(task)
        if folder.exists() and not folder.is_dir():
            raise BitwrightError(f"a file is in the way of the output folder {folder}")
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
    def _chunk(self) -> int:
        return _chunk(self.network)

    @cached_property
    def base_key(self) -> str:
        """What everything depends on: weights, forward pass, data, seed, what is quantized."""
        s = self.settings
        floats = sorted(k for k, v in s.overrides.items() if v == "float")
        return make_key(
            VERSION,
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

    @cached_property
    def _flight(self) -> tuple[Preflight, bytes]:
        """What preflight found, and the float ONNX file; nothing is written yet."""
        if self._kept_flight is not None:
            return self._kept_flight
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

    @property
    def _preflight_key(self) -> str:
        return make_key("preflight", self.base_key, torch.__version__, onnxruntime.__version__)

    @cached_property
    def _kept_flight(self) -> tuple[Preflight, bytes] | None:
        """The same from an earlier run here, if all that it depends on is as it was."""
        if not self.folder.is_dir():
            return None
        key, files = self._preflight_key, {"float": "float.onnx", "preflight": "preflight.json"}
        if not all(self.store.done(stage, key, name) for stage, name in files.items()):
            return None
        found, content = (self.store.path(files[stage]) for stage in ("preflight", "float"))
        return Preflight.from_json(found.read_text()), content.read_bytes()

    @cached_property
    def preflight(self) -> Preflight:
        """Export the float model and compare; writes `float.onnx` and `preflight.json`."""
        found, content = self._flight
        if self._kept_flight is None:
            key, store = self._preflight_key, self.store
            with store.stage("float", key, "float.onnx"):
                put(store.path("float.onnx"), content)
            with store.stage("preflight", key, "preflight.json"):
                put(store.path("preflight.json"), found.to_json())
        return found

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
                chunk=self._chunk,
                progress=lambda f: self.progress("measure", f),
            )
            curvature.save(replace(found, key=key), path)
        return curvature.load(path)

    @property
    def _rows(self) -> quantize.Rows:
        """The calibration rows, with their labels where there are any."""
        labels = self.task.calibration_labels
        if labels is not None:
            labels = labels[self._drawn[: self.settings.calibration_rows]]
        return quantize.Rows(self.calibration, labels, self.task.divergence, self.task.class_axis)

    @property
    def _labels_key(self) -> str:
        labels = self.task.calibration_labels
        return "" if labels is None else make_key(labels.numpy())


def _computation(network: Network) -> str:
    """The forward pass: the same weights under another activation are another network.

    With the tensors that it makes itself; parameters and buffers are in the fingerprint.
    """
    module = network.module
    known = {*dict(module.named_parameters()), *dict(module.named_buffers())}
    read = [n.target for n in module.graph.nodes if n.op == "get_attr"]
    constants = [network.tensor(name).tolist() for name in read if name not in known]
    return make_key(module.code, *constants)


def _chunk(network: Network) -> int:
    """Rows in a pass so that activations with their gradients stay below about 1 GB."""
    per_row = 4 * sum(int(np.prod(e.shape)) for e in network.edges) * 6
    return max(1, min(64, int(1e9 // max(per_row, 1))))


def with_test_rows(task: Task) -> Task:
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
