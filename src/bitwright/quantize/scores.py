"""Scores: what each channel is predicted to lose at each width, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from torch import Tensor

from bitwright.arith.grid import MAX_BITS
from bitwright.curvature import Estimate, Sensitivity
from bitwright.curvature.fisher import empirical_fisher
from bitwright.curvature.forms import quadratic_forms
from bitwright.curvature.hessian import Hessian
from bitwright.curvature.spectrum import top_eigenvalues
from bitwright.errors import BitwrightError
from bitwright.network import Layer, Network
from bitwright.quantize import credibility
from bitwright.quantize.actual_error import actual_error
from bitwright.quantize.feedback import FEEDBACK_ROWS, errors_left
from bitwright.quantize.measured import measured
from bitwright.quantize.moments import float_moments
from bitwright.quantize.tokens import seen_rows, token_counts
from bitwright.quantize.weights import WeightTable

WIDTHS = tuple(range(1, MAX_BITS + 1))
#: rows whose Hessian's eigenvalues are looked for: one pass, whose graph is kept
EIGENVALUE_ROWS = 128


def shrunk(estimate: Estimate) -> np.ndarray:
    """Traces [C] shrunk towards the layer's mean by as much as their errors explain their spread.

    `t_c = m + w (v_c − m)`, `w = max(0, 1 − mean_c(se_c²) / var_c(v_c)) · n / (n + 1)` with the
    measured traces v, their mean m, standard errors se and n samples: positive-part James–Stein
    (Efron and Morris, JASA 68, 1973) with one noise level a layer, a channel's own error being as
    uncertain as its trace. An optimizer otherwise takes the bits of just those channels whose
    traces came out too small: of 1,000 class rows, those of classes no calibration image shows.
    The last factor keeps a channel that never carried a gradient (a dead ReLU) unobserved rather
    than insensitive.
    """
    value = estimate.value
    spread = value.var()
    weight = max(0.0, 1 - estimate.variance.mean() / spread) if spread > 0 else 0.0
    weight *= estimate.samples / (estimate.samples + 1)
    return weight * value + (1 - weight) * value.mean()


def toward(forms: Estimate, expected: np.ndarray) -> np.ndarray:
    """Forms [rows, widths] shrunk towards what the trace expects of them, width by width.

    The ratio of each form to the expected one is shrunk to the layer's mean ratio as traces are to
    their mean: one direction's curvature is known several times less well than a block's trace.
    """
    found = np.zeros_like(expected)
    for i in range(expected.shape[1]):
        scale = np.divide(1, expected[:, i], out=np.zeros(len(expected)), where=expected[:, i] > 0)
        parts = (forms.value, forms.stderr_probe, forms.stderr_data)
        value, probe, data = (p[:, i] * scale for p in parts)
        ratio = Estimate(value, probe, data, forms.samples)
        found[:, i] = shrunk(ratio) * expected[:, i]
    return found


def toward_tokens(
    forms: Estimate, trace: Estimate, error: np.ndarray, counts: np.ndarray
) -> np.ndarray:
    """An embedding's forms [rows, widths] in a new sample: :mod:`.credibility`.

    Args:
        forms, trace: measured on the same samples.
        error: mean squared error of a number, float64 [rows, widths].
        counts: samples that contain each row, int64 [rows].
    """
    own = credibility.directions(forms.value, trace.value[:, None] * error, counts)
    return own * credibility.expected(trace, counts)[:, None] * error


@dataclass(frozen=True)
class Rows:
    """What scores beyond the trace look at.

    Attributes:
        x: [n, ...] calibration rows.
        labels: [n, ...], for `fisher` alone.
        kind, class_axis: of the divergence.
    """

    x: Tensor
    labels: Tensor | None = None
    kind: str = "kl"
    class_axis: int = 1


@dataclass(frozen=True)
class Predicted:
    """What channels would lose at each width.

    Attributes:
        losses: layer name -> float64 [rows, 8].
        errors: layer name -> their standard errors, of probes and of data together; a channel's
            errors are one error at all widths. None where the score does not know them.
    """

    losses: dict[str, np.ndarray]
    errors: dict[str, np.ndarray] | None = None


@dataclass(frozen=True)
class Given:
    """What a score is made from.

    Attributes:
        network: whose channels are priced.
        sensitivity: its traces.
        tables: layer name -> its rounding at every width.
        shrink: whether measurements are shrunk by their own errors.
        score: its name.
        seen: what it may look at; None where only the traces are known.
    """

    network: Network
    sensitivity: Sensitivity
    tables: Mapping[str, WeightTable]
    shrink: bool
    score: str
    seen: Rows | None

    @property
    def rows(self) -> Rows:
        """What it looks at.

        Raises:
            BitwrightError: there is nothing.
        """
        if self.seen is None:
            raise BitwrightError(f"the score {self.score} looks at data; give rows=Rows(x)")
        return self.seen

    @cached_property
    def counts(self) -> dict[str, np.ndarray]:
        """Of each embedding's rows, how many samples look them up."""
        tables = any(layer.kind == "embedding" for layer in self.network.layers)
        return token_counts(self.network, self.rows.x) if tables and self.shrink else {}

    def trace(self, sensitivity: Sensitivity, layer: Layer) -> np.ndarray:
        """Traces of a layer's rows, float64 [rows], shrunk if asked for."""
        estimate = sensitivity.layers[layer.name]
        if layer.name in self.counts:
            return credibility.expected(estimate, self.counts[layer.name])
        return shrunk(estimate) if self.shrink else estimate.value


def _trace(given: Given) -> Predicted:
    """`½ · (Tr H_c / n_c) · ‖Q_b(w_c) − w_c‖²`: HAWQ-V2's score (arXiv 1911.03852, eq. 2.11)
    for each channel instead of each layer.
    """  # fmt: skip
    losses, errors = {}, {}
    for layer in given.network.layers:
        trace = given.trace(given.sensitivity, layer) / layer.fan_in
        losses[layer.name] = 0.5 * trace[:, None] * given.tables[layer.name].error.numpy().T
        estimate = given.sensitivity.layers[layer.name]
        value, deviation = estimate.value, np.sqrt(estimate.variance)
        relative = np.divide(deviation, value, out=np.zeros_like(value), where=value > 0)
        errors[layer.name] = relative[:, None] * losses[layer.name]
    return Predicted(losses, errors)


def layer_eigenvalues(network: Network, rows: Rows) -> dict[str, float]:
    """HAWQ's λ: layer name -> top eigenvalue of its block of the Gauss-Newton matrix, to 1 %.

    One pass over all the rows, whose graph is kept while a layer is at work.
    """
    hessian = Hessian(
        network.module, rows.x, rows.kind, class_axis=rows.class_axis, kind="gauss-newton"
    )
    found = top_eigenvalues(hessian, tolerance=0.01)
    return {la.name: found[la.weight] for la in network.layers}


def _eigenvalue(given: Given) -> Predicted:
    """`½ · (λ / n) · ‖Q_b(w_c) − w_c‖²` with the top eigenvalue λ of the layer's block and its n
    weights: HAWQ's (arXiv 1905.03696). Between layers alone it is more than the squared error.
    """  # fmt: skip
    rows = replace(given.rows, x=given.rows.x[:EIGENVALUE_ROWS])
    found = layer_eigenvalues(given.network, rows)
    return Predicted({
        la.name: 0.5 * found[la.name] / la.weights * given.tables[la.name].error.numpy().T
        for la in given.network.layers
    })  # fmt: skip


def _fisher(given: Given) -> Predicted:
    """`½ · Tr EF_c · Δ²/12`, `Δ = (max w_c − min w_c)/(2ᵇ − 1)`, with the empirical Fisher trace.

    FIT (arXiv 2210.08502) has `Tr EF · Δ²`; the factors, which change no order, make it the loss
    under its noise model, errors spread evenly over a step.
    """
    rows = given.rows
    if rows.labels is None:
        raise BitwrightError(
            "the score fisher is the loss's gradient at labels; give Rows(labels=)"
        )
    sensitivity = empirical_fisher(
        given.network, rows.x, rows.labels, kind=rows.kind, class_axis=rows.class_axis
    )
    found = {}
    for layer in given.network.layers:
        matrix = given.network.matrix(layer).double()
        step = (matrix.amax(1) - matrix.amin(1)).numpy()[:, None] / (2.0 ** np.array(WIDTHS) - 1)
        found[layer.name] = 0.5 * given.trace(sensitivity, layer)[:, None] * step**2 / 12
    return Predicted(found)


def _actual_error(given: Given) -> Predicted:
    """`½ δᵀ G_c δ` for what rounding and correction leave of a channel: :mod:`.actual_error`."""
    rows = given.rows
    found = actual_error(
        given.network, given.tables, rows.x, kind=rows.kind, class_axis=rows.class_axis
    )
    return _half(given, found)


def _feedback(given: Given) -> Predicted:
    """The same for what error feedback leaves of a channel, the float network's inputs before it:
    :mod:`.feedback`.
    """  # fmt: skip
    rows, network = given.rows, given.network
    moments = float_moments(network, rows.x[:FEEDBACK_ROWS])
    seen = seen_rows(network, rows.x)
    found = quadratic_forms(
        network,
        rows.x,
        errors_left(network, given.tables, moments, seen),
        rows=seen,
        kind=rows.kind,
        class_axis=rows.class_axis,
    )
    return _half(given, found)


def _half(given: Given, found: dict[str, Estimate]) -> Predicted:
    """Half the forms, shrunk if asked for."""
    errors = {name: 0.5 * np.sqrt(estimate.variance) for name, estimate in found.items()}
    if not given.shrink:
        return Predicted({name: 0.5 * estimate.value for name, estimate in found.items()}, errors)
    usual = _trace(given).losses
    losses = {}
    for layer in given.network.layers:
        name = layer.name
        if name in given.counts:
            error = given.tables[name].error.numpy().T / layer.fan_in
            trace, counts = given.sensitivity.layers[name], given.counts[name]
            losses[name] = 0.5 * toward_tokens(found[name], trace, error, counts)
        else:
            losses[name] = 0.5 * toward(found[name], usual[name])
    return Predicted(losses, errors)


def _measured(given: Given) -> Predicted:
    """The divergence with that channel alone rounded and corrected: :mod:`.measured`."""
    rows = given.rows
    return Predicted(
        measured(given.network, given.tables, rows.x, kind=rows.kind, class_axis=rows.class_axis)
    )


@dataclass(frozen=True)
class Score:
    """One of the roster.

    Attributes:
        words: what it predicts that rounding costs, for people; goes on after a colon.
        predict: losses of every channel at every width.
    """

    words: str
    predict: Callable[[Given], Predicted]


#: predicted losses of every channel at every width, by the name that `channel_problem` takes
SCORES: dict[str, Score] = {
    "trace": Score(
        "half the mean curvature of a channel's weights, from its Hessian trace, times the squared "
        "error that rounding makes",
        _trace,
    ),
    "eigenvalue": Score(
        "half the layer's largest curvature, the top eigenvalue of its Hessian for each weight, "
        "times the squared error that rounding makes",
        _eigenvalue,
    ),
    "fisher": Score(
        "half the empirical Fisher trace, of the loss at the labels, times the squared error of a "
        "rounding that is spread evenly over a step",
        _fisher,
    ),
    "actual-error": Score(
        "half the quadratic form of the error that rounding really makes, in the curvature of the "
        "outputs",
        _actual_error,
    ),
    "feedback": Score(
        "half the quadratic form of what error feedback leaves of the rounding error, in the "
        "curvature of the outputs",
        _feedback,
    ),
    "measured": Score(
        "how far the outputs move when that channel alone is rounded, as measured on calibration "
        "rows",
        _measured,
    ),
}


def predict(
    score: str,
    network: Network,
    sensitivity: Sensitivity,
    tables: Mapping[str, WeightTable],
    *,
    shrink: bool = True,
    rows: Rows | None = None,
) -> Predicted:
    """What every channel would lose at each width, and how sure that is.

    All scores are in units of the divergence, so that they can be compared, and all but `measured`
    are quadratic in the rounding error. Arguments as for
    :func:`~bitwright.quantize.problem.channel_problem`.
    """
    if score not in SCORES:
        raise BitwrightError(f"score {score!r} is unknown; use one of {', '.join(SCORES)}")
    return SCORES[score].predict(Given(network, sensitivity, tables, shrink, score, rows))


def channel_losses(
    score: str,
    network: Network,
    sensitivity: Sensitivity,
    tables: Mapping[str, WeightTable],
    *,
    shrink: bool = True,
    rows: Rows | None = None,
) -> dict[str, np.ndarray]:
    """The losses alone of :func:`predict`: layer name -> float64 [rows, 8]."""
    return predict(score, network, sensitivity, tables, shrink=shrink, rows=rows).losses
