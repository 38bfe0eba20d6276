"""What pruning is asked for, and what it comes to: shares, sizes, measured latency."""

from __future__ import annotations

import math
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from torch import Tensor

from bitwright.deploy import runtime
from bitwright.errors import BitwrightError
from bitwright.pipeline.budget import parse_budget, parse_latency
from bitwright.prune import SCORES, UNITS, Selection, Size
from bitwright.train import augment

#: the plan decides, with the bits
AUTO = "auto"
#: halvings of the share of multiply-accumulates that a latency is looked for in
_HALVINGS = 5


@dataclass(frozen=True)
class PruneSettings:
    """Options of pruning.

    Attributes:
        keep: `40%` of what `of` says; or `180KB`, or `3ms` of the float ONNX file here; or `auto`:
            what the budget of a compression to follow makes best.
        of: `parameters`, `macs`, `bytes` (as float32, buffers counted) or `latency`.
        score: one of :data:`bitwright.prune.SCORES`.
        floor: share of each group's units that stays.
        multiple: of what stays of larger groups; 16 where the runtime is to be faster.
        implant: largest share of the units taken, the most sensitive, that get implants; as many
            do as surely lose less than none in a trial (under a bound on latency: the share).
        rank: of implants: that many of the k×k filters a layer; 0 for a 1×1 convolution.
        compensate: whether layers are refitted to what they still read.
        skip: layers to leave whole, with all that is coupled.
        epochs, augment, temperature, rate, device: of fine-tuning, as for a compression.
        seed: of every random choice.
        calibration_rows: that are measured and fitted on; fine-tuning takes all.
    """

    keep: str = "50%"
    of: str = "parameters"
    score: str = "removal"
    floor: float = 0.05
    multiple: int = 1
    implant: float = 0.0
    rank: int = 0
    compensate: bool = True
    skip: tuple[str, ...] = ()
    epochs: int = 0
    augment: str | None = None
    temperature: float = 4.0
    rate: float = 1e-3
    seed: int = 0
    calibration_rows: int = 1024
    device: str = "cpu"


class PruneOptions(TypedDict, total=False):
    """What :func:`bitwright.prune` takes beside `keep`: fields of :class:`PruneSettings`."""

    of: str
    score: str
    floor: float
    multiple: int
    implant: float
    rank: int
    compensate: bool
    skip: tuple[str, ...] | list[str]
    epochs: int
    augment: str | None
    temperature: float
    rate: float
    seed: int
    calibration_rows: int
    device: str


def check_prune_settings(s: PruneSettings) -> PruneSettings:
    """Refuse what cannot be meant.

    Raises:
        BitwrightError: names the option and what it may be.
    """
    if s.keep != AUTO:
        parse_keep(s.keep, s.of)
    if s.score not in SCORES:
        raise BitwrightError(f"score {s.score!r} is unknown; use {' or '.join(SCORES)}")
    for name, low, high in (("floor", 0.0, 1.0), ("implant", 0.0, 0.99)):
        value: Any = getattr(s, name)
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not low <= value <= high
        ):
            raise BitwrightError(f"--{name} must be {low:g} to {high:g}, not {value!r}")
    for name, least in (
        ("rank", 0),
        ("epochs", 0),
        ("seed", 0),
        ("calibration_rows", 2),
        ("multiple", 1),
    ):
        value = getattr(s, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            option = name.replace("_", "-")
            raise BitwrightError(f"--{option} must be a whole number from {least}, not {value!r}")
    for name in ("temperature", "rate"):
        value = getattr(s, name)
        if not (isinstance(value, int | float) and math.isfinite(value) and value > 0):
            raise BitwrightError(f"--{name} must be a positive number, not {value!r}")
    if s.augment is not None:
        augment.parse(s.augment)
    if s.device not in ("cpu", "cuda"):
        raise BitwrightError(f"--device must be cpu or cuda, not {s.device!r}")
    return s


def parse_keep(text: str, of: str) -> tuple[str, float, bool]:
    """Unit, value, and whether the value is a share.

    >>> parse_keep("40%", "macs"), parse_keep("180KB", "parameters"), parse_keep("3ms", "macs")
    (('macs', 0.4, True), ('bytes', 180000.0, False), ('latency', 0.003, False))

    Raises:
        BitwrightError: none of these, or nothing to keep.
    """
    if of not in (*UNITS, "latency"):
        raise BitwrightError(f"--of {of!r} is unknown; use {', '.join(UNITS)} or latency")
    share = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*%\s*", text)
    if share and 0 < float(share[1]) < 100:
        return of, float(share[1]) / 100, True
    try:
        if re.search(r"[0-9]\s*[mu]?s\s*$", text):
            bound = parse_latency(text)
            return "latency", bound.value * bound.scale, False
        size = parse_budget(text).size_bytes
        if size is not None:
            return "bytes", float(size), False
    except BitwrightError:
        pass
    raise BitwrightError(
        f"--keep {text!r} is not like 40% (of --of, 0 to 100), 180KB or 3ms; write one of these"
    )


def bound_of(settings: PruneSettings, whole: Size) -> tuple[str, float]:
    """What is bounded, and by how much; of latencies the share or the seconds."""
    unit, value, share = parse_keep(settings.keep, settings.of)
    return (unit, value * whole[unit]) if share and unit != "latency" else (unit, value)


def within_latency(
    file: Callable[[float, Path], Selection],
    dense: Callable[[Path], None],
    x: Tensor,
    settings: PruneSettings,
) -> Selection:
    """The largest share of multiply-accumulates whose float ONNX file is as fast as asked for.

    Args:
        file: writes the ONNX file of a share of multiply-accumulates; dense: that of the model.
        x: a row; settings: with a `keep` of latency.

    Raises:
        BitwrightError: not even the least is fast enough.
    """
    _, value, share = parse_keep(settings.keep, settings.of)
    low, high = 0.02, 1.0
    best: Selection | None = None
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / name for name in ("dense.onnx", "pruned.onnx")]
        dense(paths[0])
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            try:
                found = file(middle, paths[1])
            except BitwrightError:  # below the floors
                low = middle
                continue
            whole, seconds = runtime.latencies(paths, x)
            if seconds <= (value * whole if share else value):
                best, low = found, middle
            else:
                high = middle
    if best is None:
        raise BitwrightError(
            f"--keep {settings.keep}: no share of channels that the floors allow is so fast; "
            "keep more"
        )
    return best
