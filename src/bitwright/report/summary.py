"""What the report says, as data: everything on the page comes from one :class:`Summary`.

The summary is stored beside the report, so that a page can be drawn again without measuring again
and other programs can read the numbers.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import Any

from bitwright.codec import decode, encode
from bitwright.errors import BitwrightError

SCHEMA = 1
#: what rows of earlier summaries have, and no program has ever filled
_DROPPED = {"edges": ("saturated_fraction",)}


@dataclass(frozen=True)
class LayerRow:
    """One layer whose weights were quantized.

    Attributes:
        name: of the layer in the model.
        kind: `conv2d`, `linear`, ...
        shape: of the weight.
        channels, weights: output channels, and weights in all of them.
        bits: width of each output channel in its natural order, 1..8; empty if kept in float.
        trace: mean Hessian trace per weight (nats per squared weight unit; for squared
            divergences, output units squared per squared weight unit); None if not measured.
        stderr_probe, stderr_data: standard errors of `trace`, from the random probes (or the
            curvature left out) and from the draw of the samples.
        loss: predicted increase of the divergence by the chosen widths.
        float_bytes, bytes: of the weights and biases, before and after.
        output_error: ‖ŷ − y‖ / ‖y‖ of its output on calibration rows, quantized against float, with
            all that was rounded before it; None if not measured.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    channels: int
    weights: int
    bits: tuple[int, ...]
    trace: float | None
    stderr_probe: float | None
    stderr_data: float | None
    loss: float | None
    float_bytes: int
    bytes: int
    output_error: float | None = None

    @property
    def mean_bits(self) -> float | None:
        """Bits per weight; the channels of a layer have equally many weights."""
        return sum(self.bits) / len(self.bits) if self.bits else None


@dataclass(frozen=True)
class EdgeRow:
    """One activation stored in 8 bits.

    Attributes:
        name: of the value in the graph.
        shape: of one input's activation, without the batch.
        scale, zero_point: value = scale · (q − zero_point), q in 0..2^bits − 1.
        trace: mean Hessian trace per element; None if not measured.
        bits: width of the grid.
        mean_bits: of its channels; None where all have `bits`.
    """

    name: str
    shape: tuple[int, ...]
    scale: float
    zero_point: int
    trace: float | None
    bits: int = 8
    mean_bits: float | None = None


@dataclass(frozen=True)
class MethodRow:
    """One way to spend the budget, and what came of it.

    Attributes:
        name: `float`, or what chose the plan, such as `channels`.
        chosen: whether the written files are this one's.
        mean_bits: bits per weight; None for float.
        bytes: size of the file.
        kl, kl_stderr: mean divergence from the float model on the test rows, and its standard
            error; None if not measured.
        metric, metric_stderr: the task's metric on the test rows, and its standard error.
        agreement: share of test rows with the float model's answer.
        latency_ms: median milliseconds for one row.
        lost_stderr: standard error of the metric's difference from the float model's, the two
            taken as pairs on the same rows.
        title: what the table calls it; empty for the name itself.
    """

    name: str
    chosen: bool
    mean_bits: float | None
    bytes: int
    kl: float | None = None
    kl_stderr: float | None = None
    metric: float | None = None
    metric_stderr: float | None = None
    agreement: float | None = None
    latency_ms: float | None = None
    lost_stderr: float | None = None
    title: str = ""


@dataclass(frozen=True)
class FrontierRow:
    """The best plans of one kind at every size, or as many of them as a drawing shows.

    Attributes:
        name: `channels`, `layers` or `layers, monotone`.
        exact: whether no plan of that kind betters any of all points.
        count: of all points.
        points: (bits per weight, predicted loss), rising in the one and falling in the other.
    """

    name: str
    exact: bool
    count: int
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Verification:
    """The exported file in the runtime against the integer reference.

    Attributes:
        ok: passed.
        tensors, equal: integer tensors compared, and equal in every element.
        differing: (name, share of elements, largest difference in steps, reason) of the others, the
            worst first.
        first_difference: name of the first in the graph that differs; None if all are equal.
        same_class: share of inputs with the same largest output.
        qlinear_convs, convolutions: fused integer ones in the runtime's graph, and all.
        runtime: its name and version.
        images: inputs compared.
        why: what it failed by, in words; empty where it passed.
    """

    ok: bool
    tensors: int
    equal: int
    differing: tuple[tuple[str, float, float, str], ...]
    first_difference: str | None
    same_class: float
    qlinear_convs: int
    convolutions: int
    runtime: str
    images: int
    why: str = ""


@dataclass(frozen=True)
class Lost:
    """What the metric lost.

    Attributes:
        value: float model's − chosen one's.
        stderr: its standard error; None if not known.
        paired: whether that is of the pairs on the same rows; else it is the larger one of two
            models judged on rows of their own.
    """

    value: float
    stderr: float | None
    paired: bool


@dataclass(frozen=True)
class Summary:
    """All of a report.

    Attributes:
        title, model: heading, and what was compressed.
        command, created, seed, versions: what reproduces the run; `created` is shown as it is.
        budget: as the user asked for it.
        target: what that meant, e.g. `3 bit mean = 100,123 bytes`.
        methods, layers, edges, verification: the rows; None if nothing was verified.
        files: (name, bytes) of everything written.
        bytes_breakdown: (label, bytes); the first is the float file, the others are the parts of
            the chosen file and add up to it.
        frontier: (mean bits, bytes, predicted loss) of optimal plans; bytes as in `methods`.
        frontiers: by channel and by layer, against the bits of a weight.
        learning: (evaluation, reward, best so far) of a search; empty for others.
        timings: (stage, seconds).
        metric_name: of the metric in `methods`.
        notes: what the user should be told.
        divergence: `kl` (nats) or `squared`.
        settings: what the run was asked for, as :func:`setting_text` writes it.
        task: fingerprint of the float weights and the calibration rows; empty if not known.
        key: of the exported file, a hash of all that it depends on; empty if not known.
        score: what the losses of channels were predicted to be, in words; empty if not known.
        rule: how the chosen method hands out bits, in a sentence; empty if not known.
        error_rows: calibration rows that the layers' output errors are of.
        reward: what a search minimized, in words; empty if there was none or it is not known.
    """

    title: str
    model: str
    command: str
    created: str
    seed: int
    versions: dict[str, str]
    budget: str
    target: str
    methods: tuple[MethodRow, ...]
    layers: tuple[LayerRow, ...]
    edges: tuple[EdgeRow, ...] = ()
    verification: Verification | None = None
    files: tuple[tuple[str, int], ...] = ()
    bytes_breakdown: tuple[tuple[str, int], ...] = ()
    frontier: tuple[tuple[float, int, float], ...] = ()
    frontiers: tuple[FrontierRow, ...] = ()
    learning: tuple[tuple[int, float, float], ...] = ()
    timings: tuple[tuple[str, float], ...] = ()
    metric_name: str = "top-1"
    notes: tuple[str, ...] = field(default=())
    divergence: str = "kl"
    settings: dict[str, str] = field(default_factory=dict)
    task: str = ""
    key: str = ""
    score: str = ""
    rule: str = ""
    reward: str = ""
    error_rows: int = 0

    @property
    def chosen(self) -> MethodRow | None:
        """The method whose files were written."""
        return next((m for m in self.methods if m.chosen), None)

    @property
    def chosen_loss(self) -> float | None:
        """Predicted loss of the chosen plan, where it is known of all layers."""
        losses = [row.loss for row in self.layers if row.loss is not None]
        return math.fsum(losses) if losses and len(losses) == len(self.layers) else None

    @property
    def original(self) -> MethodRow | None:
        """The float model."""
        return next((m for m in self.methods if m.name == "float"), None)

    @property
    def lost(self) -> Lost | None:
        """What the chosen method's metric lost; None if it or the float model's is not known."""
        chosen, original = self.chosen, self.original
        if chosen is None or original is None or chosen.metric is None or original.metric is None:
            return None
        error, own = chosen.lost_stderr, (original.metric_stderr, chosen.metric_stderr)
        if error is None and own[0] is not None and own[1] is not None:
            error = math.hypot(own[0], own[1])
        return Lost(original.metric - chosen.metric, error, chosen.lost_stderr is not None)


def setting_text(value: Any) -> str | None:
    """One option of a run for people; None for one that was not given."""
    if value is None or value == () or value == [] or value == {}:
        return None
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return f"{value:g}" if isinstance(value, float) else str(value)
    if isinstance(value, list | tuple):
        return ", ".join(str(v) for v in value)
    return json.dumps(value, sort_keys=True) if isinstance(value, dict) else str(value)


def to_json(summary: Summary) -> str:
    """Standard JSON with sorted keys; numbers that JSON lacks become `"inf"`, `"-inf"`, `"nan"`."""
    found = {"schema": SCHEMA, "summary": encode(summary)}
    return json.dumps(found, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n"


def from_json(text: str) -> Summary:
    """Read what :func:`to_json` wrote.

    Raises:
        BitwrightError: not a summary, or of another schema.
    """
    try:
        found: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BitwrightError(f"not a report summary: {error}") from error
    if not isinstance(found, dict) or "schema" not in found or "summary" not in found:
        raise BitwrightError("not a report summary: it has no `schema` and `summary`")
    if found["schema"] != SCHEMA:
        raise BitwrightError(
            f"report summary has schema {found['schema']!r}; this version reads {SCHEMA}"
        )
    _drop(found["summary"])
    try:
        summary = decode(Summary, found["summary"], "summary")
    except ValueError as error:
        raise BitwrightError(f"not a report summary: {error}") from error
    assert isinstance(summary, Summary)
    return summary


def _drop(found: Any) -> None:
    """Take out of a summary's rows what this version no longer has."""
    for part, names in _DROPPED.items():
        rows = found.get(part) if isinstance(found, dict) else None
        for row in rows if isinstance(rows, list) else []:
            if isinstance(row, dict):
                for name in names:
                    row.pop(name, None)
