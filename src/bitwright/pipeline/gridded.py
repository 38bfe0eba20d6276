"""Grids of weights and activations, and what is predicted of them."""

from __future__ import annotations

from functools import cached_property, partial
from typing import Any

import numpy as np
import safetensors.torch
import torch

from bitwright import allocate, overflow, quantize
from bitwright.curvature import make_key
from bitwright.files import put
from bitwright.pipeline.bench import Bounds
from bitwright.pipeline.measured import CALIBRATION_ROWS, Measured
from bitwright.pipeline.roundings import ROUNDINGS
from bitwright.pipeline.settings import apply_overrides


class Gridded(Measured):
    """Measured, with grids of all weights and of activations whose widths are no plan's."""

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
            chunk=self._chunk,
            progress=partial(self.progress, "calibrate activations"),
        )

    @cached_property
    def _edge_tables(self) -> dict[int, quantize.EdgeTable]:
        """Grids of the activations at all widths, and their errors."""
        return quantize.edge_tables(
            self.network,
            self.calibration[:CALIBRATION_ROWS],
            **self._ranges,
            chunk=self._chunk,
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
    def fixed_edges(self) -> dict[int, quantize.EdgeGrid]:
        """Grids of the activations where no plan chooses them; none if they stay float."""
        bits = self.settings.activations
        if bits == "auto":
            return {}
        if not self._mixed:
            return self._calibrated
        assert isinstance(bits, int | float)
        if self.settings.granularity == "channel":
            return quantize.channel_grids(
                self.network,
                self.sensitivity,
                self.calibration[:CALIBRATION_ROWS],
                bits,
                chunk=self._chunk,
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

    @property
    def score(self) -> str:
        """What prices the channels: the settings' score, as it is for the rounding and the grids.

        Grids that cannot overflow are priced by trace: the integers on them are not the nearest.
        """
        s = self.settings
        if self._guaranteed:
            return "trace"
        return ROUNDINGS[s.rounding].score if s.score == "actual-error" else s.score

    @cached_property
    def predicted(self) -> quantize.Predicted | None:
        """What another score than the trace predicts; `scores.safetensors`."""
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
        score = self.score
        if score == "trace":
            return None
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
