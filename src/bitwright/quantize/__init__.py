"""Grids, rounding, activation ranges and correction: from a plan to a quantized network."""

from bitwright.quantize.activations import EDGE_WIDTHS, PERCENTILE, RANGES, EdgeGrid, calibrate
from bitwright.quantize.bases import (
    LEVELS,
    bases_tables,
    coordinate_bytes,
    multibit_problem,
    tables_of,
)
from bitwright.quantize.channel_widths import channel_grids
from bitwright.quantize.correct import Quantized, correct, float_outputs, rows_that_fit
from bitwright.quantize.edge_scores import EdgeTable, edge_problem, edge_tables
from bitwright.quantize.equalize import equalized
from bitwright.quantize.feedback import FEEDBACK_ROWS, round_by_moments, round_with_feedback
from bitwright.quantize.joint import blank_edges, edge_grids, edge_order, with_activations
from bitwright.quantize.layer_errors import layer_errors
from bitwright.quantize.learned import learn_rounding
from bitwright.quantize.moments import Moments, float_moments
from bitwright.quantize.problem import (
    channel_problem,
    layer_order,
    layer_ties,
    plan_bits,
    plan_rows,
    trace_order,
)
from bitwright.quantize.saturation import exposed, input_tops, narrowed
from bitwright.quantize.scores import (
    SCORES,
    Given,
    Predicted,
    Rows,
    Score,
    channel_losses,
    layer_eigenvalues,
    predict,
)
from bitwright.quantize.simulate import simulate
from bitwright.quantize.weights import (
    QuantizedLayer,
    WeightTable,
    as_corrected,
    mean_bits,
    round_weights,
    weight_tables,
)

__all__ = [
    "EDGE_WIDTHS",
    "FEEDBACK_ROWS",
    "LEVELS",
    "PERCENTILE",
    "RANGES",
    "SCORES",
    "EdgeGrid",
    "EdgeTable",
    "Given",
    "Moments",
    "Predicted",
    "Quantized",
    "QuantizedLayer",
    "Rows",
    "Score",
    "WeightTable",
    "as_corrected",
    "bases_tables",
    "blank_edges",
    "calibrate",
    "channel_grids",
    "channel_losses",
    "channel_problem",
    "coordinate_bytes",
    "correct",
    "edge_grids",
    "edge_order",
    "edge_problem",
    "edge_tables",
    "equalized",
    "exposed",
    "float_moments",
    "float_outputs",
    "input_tops",
    "layer_eigenvalues",
    "layer_errors",
    "layer_order",
    "layer_ties",
    "learn_rounding",
    "mean_bits",
    "multibit_problem",
    "narrowed",
    "plan_bits",
    "plan_rows",
    "predict",
    "round_by_moments",
    "round_weights",
    "round_with_feedback",
    "rows_that_fit",
    "simulate",
    "tables_of",
    "trace_order",
    "weight_tables",
    "with_activations",
]
