"""What the user asked for, checked once."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypedDict

import torch
import yaml

from bitwright.errors import BitwrightError, advice
from bitwright.network import Network
from bitwright.pipeline.accumulators import Sums, sums_of
from bitwright.pipeline.budget import Budget, parse_bops, parse_budget, parse_latency
from bitwright.pipeline.methods import require
from bitwright.pipeline.roundings import require_rounding
from bitwright.quantize import EDGE_WIDTHS, LEVELS, RANGES, SCORES
from bitwright.quantize.scores import WIDTHS
from bitwright.report.summary import setting_text
from bitwright.train import augment

ORDERS = ("all", "hawq")
GRANULARITIES = ("edge", "channel")


@dataclass(frozen=True)
class Settings:
    """Options of a run; each changes the result, and so the key of what it touches.

    Attributes:
        budget: bound on size; None when `max_kl` or `max_drop` decides.
        method: one of :data:`METHODS`.
        score: what predicts a channel's loss, one of :data:`bitwright.quantize.SCORES`;
            `actual-error` is `feedback` where the rounding is.
        activations: mean bits of the stored activations, 2 to 8, or None for float. Below 8, each
            edge gets its own width by curvature; one width for all with the method `uniform`.
            `auto`: widths chosen together with the weights', under `max_bops`.
        granularity: whether a mean of fewer than 8 bits is of widths by `edge` or by `channel`
            (:mod:`bitwright.quantize.channel_widths`).
        ranges: what decides on the ranges of activations, one of :data:`bitwright.quantize.RANGES`;
            None: `curvature` below 8 bits, else `squared`, which is as good there and needs less.
        equalize: how far the ranges of activations' channels are made equal, 0 to 1.
        rounding: one of :data:`~bitwright.pipeline.roundings.ROUNDINGS`.
        levels: of a row of weights, one of :data:`bitwright.quantize.LEVELS`: `multi-bit` lets rows
            of 2 to 4 bits be sums of bases where that costs less (:mod:`bitwright.quantize.bases`).
        epochs: of fine-tuning.
        order: of fine-tuning, one of :data:`ORDERS`: all layers at once, or one after another.
        augment: random changes of images while fine-tuning, as `flip,crop4`; None for none.
        temperature: of the answers that fine-tuning compares.
        rate: of fine-tuning, relative to each layer's mean step.
        accumulator: bits that every sum of products must fit, 12 to 32; None: 32, as in the file.
        accumulator_kind: what happens to one that does not, of
            :data:`bitwright.overflow.KINDS`.
        accumulator_mode: `guaranteed`: no input overflows any, a theorem, with the activations'
            widths chosen for it (one for all with the method `uniform`); `data`: none does on
            calibration rows.
        refit_head: whether the classifier is refitted at last (:mod:`bitwright.train.head`).
        seed: of every random choice.
        max_kl: largest divergence on held-out calibration rows, nats.
        max_drop: largest loss of the metric there, in points (1 point = 0.01).
        overrides: layer patterns -> bounds; see :func:`apply_overrides`.
        skip: layers left in float.
        evaluations: plans a search evaluates.
        batch: plans a search proposes at a time; it changes the result.
        processes: that evaluate a batch; 0: as many as there are cores. They change the time only.
        calibration_rows: used at most.
        device: `cpu` or `cuda`, where measuring and fine-tuning run.
        max_bops: bound on bit operations beside the goal, as `1.2G`.
        max_latency: bound on the sum of the layers' times beside the goal, as `3ms`.
        profile: path of the table with those times; None to measure them in the run's folder.
    """

    budget: Budget | None = field(default_factory=lambda: parse_budget("3bit"))
    method: str = "channels"
    score: str = "actual-error"
    activations: float | str | None = 8
    epochs: int = 0
    order: str = "all"
    seed: int = 0
    max_kl: float | None = None
    max_drop: float | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    skip: tuple[str, ...] = ()
    evaluations: int = 150
    batch: int = 1
    processes: int = 0
    calibration_rows: int = 1024
    device: str = "cpu"
    max_bops: str | None = None
    max_latency: str | None = None
    profile: str | None = None
    rounding: str = "nearest"
    ranges: str | None = None
    granularity: str = "edge"
    equalize: float = 0.0
    augment: str | None = None
    temperature: float = 4.0
    rate: float = 1e-3
    refit_head: bool = False
    accumulator: int | None = None
    accumulator_kind: str = "wrap"
    accumulator_mode: str = "guaranteed"
    levels: str = "uniform"

    @property
    def sums(self) -> Sums | None:
        """What sums must fit; None: nothing narrower than the file's 32 bits."""
        return sums_of(
            self.accumulator, self.accumulator_kind, self.accumulator_mode, self.activations
        )


class Options(TypedDict, total=False):
    """What :func:`bitwright.compress` takes beside `budget`: fields of :class:`Settings`."""

    method: str
    score: str
    activations: float | str | None
    epochs: int
    order: str
    seed: int
    max_kl: float | None
    max_drop: float | None
    overrides: Mapping[str, Any]
    skip: tuple[str, ...] | list[str]
    evaluations: int
    batch: int
    processes: int
    calibration_rows: int
    device: str
    max_bops: str | None
    max_latency: str | None
    profile: str | None
    rounding: str
    ranges: str | None
    granularity: str
    equalize: float
    augment: str | None
    temperature: float
    rate: float
    refit_head: bool
    accumulator: int | None
    accumulator_kind: str
    accumulator_mode: str
    levels: str


def as_text(settings: Settings) -> dict[str, str]:
    """Every option that was given or has a default, for people; none that only changes the time."""
    values = {f.name: getattr(settings, f.name) for f in fields(settings) if f.name != "processes"}
    values["budget"] = settings.budget and settings.budget.text
    values["activations"] = "float" if settings.activations is None else settings.activations
    values["overrides"] = dict(settings.overrides)
    texts = ((name, setting_text(value)) for name, value in values.items())
    return {name: text for name, text in texts if text is not None}


def known(kind: type[Any], options: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The options, which are fields of `kind`, lists as tuples; `name` is who was given them.

    Raises:
        BitwrightError: one is no field; the line names the nearest that is.
    """
    fields = list(kind.__dataclass_fields__)
    for option in options:
        if option not in fields:
            raise BitwrightError(f"{name} has no option {option!r}; {advice(option, fields)}")
    # a list of layers and a tuple of them are the same run
    return {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}


def check_settings(settings: Settings) -> Settings:
    """Refuse what cannot be meant.

    Raises:
        BitwrightError: names the option and what it may be.
    """
    for name in ("epochs", "seed", "evaluations", "batch", "processes", "calibration_rows"):
        value = getattr(settings, name)
        if not isinstance(value, int) or isinstance(value, bool):
            raise BitwrightError(f"{name} must be a whole number, not {value!r}")
    for name in ("max_kl", "max_drop", "temperature", "rate", "equalize"):
        value = getattr(settings, name)
        if value is not None and (not isinstance(value, int | float) or isinstance(value, bool)):
            raise BitwrightError(f"{name} must be a number, not {value!r}")
    if not isinstance(settings.refit_head, bool):
        raise BitwrightError(f"refit_head must be True or False, not {settings.refit_head!r}")
    if not isinstance(settings.overrides, Mapping):
        raise BitwrightError("overrides must map layer names to bounds")
    skip: Any = settings.skip
    if not isinstance(skip, list | tuple) or not all(isinstance(s, str) for s in skip):
        raise BitwrightError(f"skip must be names of layers, not {skip!r}")
    if settings.order not in ORDERS:
        raise BitwrightError(f"order {settings.order!r} is unknown; use {', '.join(ORDERS)}")
    require_rounding(settings.rounding, accumulators=settings.accumulator is not None)
    _check_levels(settings)
    if settings.ranges not in (None, *RANGES):
        raise BitwrightError(f"ranges {settings.ranges!r} is unknown; use {', '.join(RANGES)}")
    _check_granularity(settings)
    bits: Any = settings.activations
    require(settings.method, bits == "auto")
    if settings.score not in SCORES:
        raise BitwrightError(f"score {settings.score!r} is unknown; use {', '.join(SCORES)}")
    number = isinstance(bits, int | float) and not isinstance(bits, bool)
    within = number and EDGE_WIDTHS[0] <= bits <= EDGE_WIDTHS[-1]
    if not (bits is None or bits == "auto" or within):
        raise BitwrightError(f"activations must be 2 to 8, auto or float, not {bits!r}")
    if bits == "auto" and settings.max_bops is None:
        raise BitwrightError(
            "--activations auto chooses widths that fit a bound on bit operations; give --max-bops"
        )
    if settings.device not in ("cpu", "cuda"):
        raise BitwrightError(f"--device must be cpu or cuda, not {settings.device!r}")
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise BitwrightError("--device cuda: this PyTorch sees no CUDA device; use --device cpu")
    goals = [
        name
        for name, value in (
            ("--budget", settings.budget),
            ("--max-kl", settings.max_kl),
            ("--max-drop", settings.max_drop),
        )
        if value is not None
    ]
    if len(goals) != 1:
        raise BitwrightError(
            f"give one of --budget, --max-kl, --max-drop, not {' and '.join(goals) or 'none'}"
        )
    _check_bounds(settings)
    _ = settings.sums
    if not 0 <= settings.equalize <= 1:
        raise BitwrightError(f"--equalize must be 0 to 1, not {settings.equalize}")
    if settings.augment is not None:
        augment.parse(settings.augment)
    for name, value in (
        ("--max-kl", settings.max_kl),
        ("--max-drop", settings.max_drop),
        ("--temperature", settings.temperature),
        ("--rate", settings.rate),
    ):
        if value is not None and not (math.isfinite(value) and value > 0):
            raise BitwrightError(f"{name} must be a positive number, not {value}")
    if settings.epochs < 0:
        raise BitwrightError(f"--epochs must be 0 or more, not {settings.epochs}")
    if not 0 <= settings.seed < 2**32:
        raise BitwrightError(f"--seed must be 0 to 4294967295, not {settings.seed}")
    if settings.calibration_rows < 2:
        raise BitwrightError(
            f"--calibration-rows must be 2 or more, not {settings.calibration_rows}"
        )
    if settings.evaluations < 4:
        raise BitwrightError(f"--evaluations must be at least 4, not {settings.evaluations}")
    if settings.batch < 1:
        raise BitwrightError(f"--batch must be 1 or more, not {settings.batch}")
    if settings.processes < 0:
        raise BitwrightError(f"--processes must be 0 or more, not {settings.processes}")
    return settings


def _check_levels(settings: Settings) -> None:
    if settings.levels not in LEVELS:
        raise BitwrightError(f"levels {settings.levels!r} are unknown; use {', '.join(LEVELS)}")
    if settings.levels == "uniform":
        return
    if settings.method == "uniform":
        raise BitwrightError("--levels multi-bit is a choice, and --method uniform makes none")
    require_rounding(settings.rounding, bases=True)
    if settings.accumulator is not None:
        raise BitwrightError("--levels multi-bit does not go with --accumulator")


def _check_granularity(settings: Settings) -> None:
    if settings.granularity not in GRANULARITIES:
        names = ", ".join(GRANULARITIES)
        raise BitwrightError(f"granularity {settings.granularity!r} is unknown; use {names}")
    if settings.granularity == "edge":
        return
    if not isinstance(settings.activations, int | float) or settings.method == "uniform":
        raise BitwrightError(
            "--granularity channel chooses widths of a mean; give --activations 2 to 8 and a "
            "method other than uniform"
        )
    if settings.accumulator is not None or settings.ranges not in (None, "curvature"):
        raise BitwrightError(
            "--granularity channel chooses widths and ranges by curvature; it does not go with "
            "--accumulator or other --ranges"
        )


def _check_bounds(settings: Settings) -> None:
    for name in ("max_bops", "max_latency", "profile"):
        value: Any = getattr(settings, name)
        if value is not None and not isinstance(value, str):
            raise BitwrightError(f"{name} must be text, not {value!r}")
    if settings.max_bops is not None:
        parse_bops(settings.max_bops)
    if settings.max_latency is not None:
        parse_latency(settings.max_latency)
    elif settings.profile is not None:
        raise BitwrightError("--profile is read for --max-latency; give that as well")


def read_overrides(path: Path) -> dict[str, Any]:
    """A YAML file of layer patterns.

    ```yaml
    stem: float            # leave in float
    head: 8                # exactly 8 bits
    "re:blocks\\\\.4\\\\..*": {min: 2, max: 4}
    ties: [[blocks.0.conv2, blocks.1.conv2]]   # one width for all their channels
    ```

    Raises:
        BitwrightError: not readable, or not such a mapping.
    """
    try:
        found = yaml.safe_load(path.read_text())
    except OSError as error:
        raise BitwrightError(f"there is no overrides file {path}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        first = str(error).splitlines()[0]
        raise BitwrightError(f"{path} is not YAML: {first}") from error
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise BitwrightError(f"{path} must map layer names to bounds")
    return {str(k): v for k, v in found.items()}


def float_layers(overrides: Mapping[str, Any], names: Sequence[str]) -> tuple[str, ...]:
    """Layers that overrides leave in float."""
    return tuple(
        name
        for pattern, bound in overrides.items()
        if bound == "float"
        for name in _matching(pattern, names)
    )


def apply_overrides(
    overrides: Mapping[str, Any], network: Network
) -> tuple[dict[str, tuple[int, ...]], list[list[str]]]:
    """Allowed widths of the layers that have bounds, and groups of layers tied to one width.

    Raises:
        BitwrightError: a pattern that matches nothing, or bounds that leave nothing.
    """
    names = [layer.name for layer in network.layers]
    allowed: dict[str, tuple[int, ...]] = {}
    ties: list[list[str]] = []
    for pattern, bound in overrides.items():
        if pattern == "ties":
            if not isinstance(bound, list) or not all(isinstance(g, list) for g in bound):
                raise BitwrightError(f"ties are {bound!r}; give lists of layers: [[a, b], [c, d]]")
            ties += [[n for p in group for n in _matching(str(p), names)] for group in bound]
            continue
        if bound == "float":
            continue
        if isinstance(bound, int) and not isinstance(bound, bool):
            bound = {"min": bound, "max": bound}
        if not isinstance(bound, dict) or set(bound) - {"min", "max"}:
            raise BitwrightError(
                f"override {pattern!r} is {bound!r}; use float, a number of bits, or min and max"
            )
        low, high = bound.get("min", 1), bound.get("max", 8)
        if not (isinstance(low, int | float) and isinstance(high, int | float)):
            raise BitwrightError(f"override {pattern!r}: min and max are numbers of bits, 1 to 8")
        widths = tuple(w for w in WIDTHS if low <= w <= high)
        if not widths:
            raise BitwrightError(
                f"override {pattern!r} allows no width: min {low}, max {high}; bits are 1 to 8"
            )
        for name in _matching(pattern, names):
            allowed[name] = widths
    return allowed, ties


def _matching(pattern: str, names: Sequence[str]) -> list[str]:
    if pattern.startswith("re:"):
        try:
            expression = re.compile(pattern[3:])
        except re.error as error:
            raise BitwrightError(
                f"override {pattern!r} is no regular expression: {error}"
            ) from None
        found = [n for n in names if expression.fullmatch(n)]
    else:
        found = [n for n in names if n == pattern]
    if not found:
        raise BitwrightError(
            f"override {pattern!r} matches no layer; layers are {', '.join(names[:6])}"
            f"{' …' if len(names) > 6 else ''}"
        )
    return found
