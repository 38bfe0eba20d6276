"""`profile.json`: the seconds of every layer shape on one machine, as the search reads them."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnxruntime

from bitwright.codec import decode, encode
from bitwright.cost.shapes import LayerShape, calls
from bitwright.errors import BitwrightError
from bitwright.files import put
from bitwright.network import Network

SCHEMA = 1
FORMAT = "bitwright profile"


@dataclass(frozen=True)
class Machine:
    """What seconds depend on: processor, cores it shows, runtime, and the threads it was given."""

    processor: str
    architecture: str
    cores: int
    runtime: str
    threads: int

    @classmethod
    def here(cls, threads: int) -> Machine:
        """This machine; `threads` of the runtime, 0 for its own choice."""
        return cls(
            processor=_processor(),
            architecture=platform.machine(),
            cores=os.cpu_count() or 1,
            runtime=f"onnxruntime {onnxruntime.__version__}",
            threads=threads,
        )

    def __str__(self) -> str:
        """`AMD EPYC, 2 cores, onnxruntime 1.31.1, 1 thread`."""
        threads = f"{self.threads} thread{'s' * (self.threads != 1)}"
        cores = f"{self.cores} core{'s' * (self.cores != 1)}"
        chosen = threads if self.threads else "threads as it chooses"
        return f"{self.processor}, {cores}, {self.runtime}, {chosen}"


@dataclass(frozen=True)
class Timing:
    """Seconds of one row: the median of the repeats, and what 95 of 100 stay below."""

    median_s: float
    p95_s: float


@dataclass(frozen=True)
class AtWidth:
    """The integer form with weights of one width."""

    bits: int
    time: Timing


@dataclass(frozen=True)
class Row:
    """The times of one layer shape, what it takes to call the runtime already taken off.

    Attributes:
        shape: what was called.
        float32: with float weights and activations.
        int8: with 8-bit activations, by width of the packed weights.
        control: a second copy of the last of `int8`: how far equal things differ here.
    """

    shape: LayerShape
    float32: Timing
    int8: tuple[AtWidth, ...]
    control: Timing

    @property
    def int8_s(self) -> float:
        """Seconds of the integer form: the median over widths, which do not change what is run."""
        return median(w.time.median_s for w in self.int8)


@dataclass(frozen=True)
class Whole:
    """A whole network, to show how far its layers' times add up.

    Attributes:
        key: of its graph.
        float_s, int8_s: measured median seconds of one row.
        float_sum_s, int8_sum_s: the sums of its layers' times.
    """

    key: str
    float_s: float
    int8_s: float
    float_sum_s: float
    int8_sum_s: float


@dataclass(frozen=True)
class Profile:
    """A table of times.

    Attributes:
        machine: where they were measured.
        repeats: runs behind each median.
        rows: one a layer shape.
        whole: the network it was measured for; None until all its rows are there.
    """

    machine: Machine
    repeats: int
    rows: tuple[Row, ...]
    whole: Whole | None = None

    @property
    def by_shape(self) -> dict[LayerShape, Row]:
        """The rows, to look up."""
        return {row.shape: row for row in self.rows}


def latencies(network: Network, profile: Profile, activations: float | None = 8) -> np.ndarray:
    """Seconds of each layer for one row, over all its calls, float64 [layers].

    With float activations the runtime folds unpacked weights to float ones, so that a layer takes
    what the float form takes.

    Raises:
        BitwrightError: a shape was not measured.
    """
    rows, place = profile.by_shape, {la.name: i for i, la in enumerate(network.layers)}
    found = np.zeros(len(network.layers))
    for layer, shape in calls(network):
        row = rows.get(shape)
        if row is None:
            raise BitwrightError(
                f"the profile has no time for layer {layer.name} ({shape}); it is of another "
                "model: `bitwright profile` measures this one"
            )
        found[place[layer.name]] += row.float32.median_s if activations is None else row.int8_s
    return found


def write(profile: Profile, path: Path) -> None:
    """Write `profile.json`, to a temporary name first."""
    found = {"format": FORMAT, "schema": SCHEMA, **encode(profile)}
    put(path, json.dumps(found, indent=1, ensure_ascii=False) + "\n")


def read(path: Path) -> Profile:
    """Read what :func:`write` wrote.

    Raises:
        BitwrightError: there is no such file, it is no profile, damaged, or of another schema.
    """
    again = "`bitwright profile` measures one"
    try:
        found: Any = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BitwrightError(f"there is no profile {path}; {again}") from error
    except (ValueError, RecursionError) as error:
        raise BitwrightError(f"{path} is no profile: it is not JSON; {again}") from error
    if not isinstance(found, dict) or found.pop("format", None) != FORMAT:
        raise BitwrightError(f"{path} is no profile; {again}")
    schema = found.pop("schema", None)
    if schema != SCHEMA:
        raise BitwrightError(
            f"{path} has profile schema {schema!r:.40}; this version reads {SCHEMA}; {again}"
        )
    try:
        profile = decode(Profile, found, "profile")
        assert isinstance(profile, Profile)
        _check(profile)
    except ValueError as error:
        raise BitwrightError(f"{path} is damaged: {error}; {again}") from error
    return profile


def _check(profile: Profile) -> None:
    for i, row in enumerate(profile.rows):
        if not row.int8:
            raise ValueError(f"profile.rows[{i}].int8 is empty")
        for time in (row.float32, row.control, *(w.time for w in row.int8)):
            if not (0 <= time.median_s < np.inf and 0 <= time.p95_s < np.inf):
                raise ValueError(f"profile.rows[{i}] has a time of {time.median_s} s")


def _processor() -> str:
    """What the processor calls itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(la.partition(":")[2].strip() for la in lines if la.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
