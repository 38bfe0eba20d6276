"""The quantized network: rounded, corrected, fine-tuned, its head refitted, exported."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from bitwright import overflow, quantize
from bitwright.curvature import make_key
from bitwright.deploy import artefact, onnx_file
from bitwright.files import put
from bitwright.pipeline.planned import Planned
from bitwright.quantize import Quantized
from bitwright.train import Recipe, Refit, augment, finetune, hawq_order, refit_head

#: rows a head is refitted and judged on: more than `calibration_rows`, at a pass of the network
HEAD_ROWS = 8192


class Built(Planned):
    """Planned, with the network and the file that came of it."""

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
