"""The roster of roundings: how a plan's weights become codes on their grids.

A rounding of one's own is one function and one line here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from bitwright import quantize
from bitwright.errors import BitwrightError
from bitwright.quantize import EdgeGrid, QuantizedLayer, WeightTable

if TYPE_CHECKING:
    from bitwright.pipeline.bench import Workbench

Layers = dict[str, QuantizedLayer]
Round = Callable[
    ["Workbench", Mapping[str, WeightTable], Mapping[str, np.ndarray], Mapping[int, EdgeGrid]],
    Layers,
]

#: rows that learned rounding sees
LEARNED_ROWS = 1024


@dataclass(frozen=True)
class Rounding:
    """One of the roster.

    Attributes:
        round: (bench, tables, bits, grids) -> layer name -> codes, grid and bias: on the grids that
            `tables` have for the widths `bits` of the layer's rows (int64, 1 to 8), or on grids of
            the same widths with other scales. `grids` are those of the activations.
        rows: how many calibration rows it may look at, `bench.seen`; plans are judged on others.
        corrected: whether it has fitted scales and biases; else they are corrected behind it.
        in_search: the same for the many plans of a search, where `round` takes too long for that;
            None: searches round to nearest.
        nearest: whether its codes are those nearest to the float weights, so that these are what
            codes that must not overflow are near to, too.
        accumulators: whether it goes with narrow accumulators; bases: with grids of bases.
        score: what the score `actual-error` is where weights are rounded so.
    """

    round: Round
    rows: int = 0
    corrected: bool = False
    in_search: Round | None = None
    nearest: bool = False
    accumulators: bool = True
    bases: bool = False
    score: str = "actual-error"


def _nearest(
    bench: Workbench,
    tables: Mapping[str, WeightTable],
    bits: Mapping[str, np.ndarray],
    grids: Mapping[int, EdgeGrid],
) -> Layers:
    return quantize.round_weights(bench.network, tables, bits)


def _feedback(
    bench: Workbench,
    tables: Mapping[str, WeightTable],
    bits: Mapping[str, np.ndarray],
    grids: Mapping[int, EdgeGrid],
) -> Layers:
    """Every layer corrected behind the rounded ones before it.

    On more rows than the values of all layers at once leave room for.
    """
    return quantize.round_with_feedback(bench.network, tables, bits, bench.seen, dict(grids))


def _by_moments(
    bench: Workbench,
    tables: Mapping[str, WeightTable],
    bits: Mapping[str, np.ndarray],
    grids: Mapping[int, EdgeGrid],
) -> Layers:
    """Many plans share the moments of the float network's inputs: a fraction of the time."""
    return quantize.round_by_moments(bench.network, tables, bits, bench.moments)


def _learned(
    bench: Workbench,
    tables: Mapping[str, WeightTable],
    bits: Mapping[str, np.ndarray],
    grids: Mapping[int, EdgeGrid],
) -> Layers:
    """By gradients, from codes rounded to nearest and corrected."""
    layers = quantize.round_weights(bench.network, tables, bits)
    layers = quantize.narrowed(bench.network, layers, grids)
    found = quantize.learn_rounding(
        bench.corrected(layers, dict(grids)),
        bench.seen,
        {name: edge.value for name, edge in bench.sensitivity.edges.items()},
        kind=bench.kind,
        class_axis=bench.class_axis,
    )
    return dict(found.layers)


ROUNDINGS: dict[str, Rounding] = {
    "nearest": Rounding(_nearest, nearest=True, bases=True),
    "feedback": Rounding(
        _feedback,
        rows=quantize.FEEDBACK_ROWS,
        corrected=True,
        in_search=_by_moments,
        bases=True,
        score="feedback",
    ),
    "learned": Rounding(_learned, rows=LEARNED_ROWS, corrected=True, accumulators=False),
}


def require_rounding(name: str, accumulators: bool = False, bases: bool = False) -> Rounding:
    """The rounding of a name.

    Raises:
        BitwrightError: there is none, or it cannot do that.
    """
    if name not in ROUNDINGS:
        raise BitwrightError(f"rounding {name!r} is unknown; use {', '.join(ROUNDINGS)}")
    found = ROUNDINGS[name]
    if accumulators and not found.accumulators:
        able = " or ".join(n for n, r in ROUNDINGS.items() if r.accumulators)
        raise BitwrightError(
            f"rounding {name} does not keep accumulators from overflowing; use {able}"
        )
    if bases and not found.bases:
        able = " or ".join(n for n, r in ROUNDINGS.items() if r.bases)
        raise BitwrightError(f"--levels multi-bit goes with --rounding {able}, not with {name}")
    return found
