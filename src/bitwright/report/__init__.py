"""The report: its data, and the page drawn from it."""

from bitwright.report.density import density_figure, write_density
from bitwright.report.page import render, write
from bitwright.report.summary import (
    EdgeRow,
    FrontierRow,
    LayerRow,
    MethodRow,
    Summary,
    Verification,
    from_json,
    to_json,
)

__all__ = [
    "EdgeRow",
    "FrontierRow",
    "LayerRow",
    "MethodRow",
    "Summary",
    "Verification",
    "density_figure",
    "from_json",
    "render",
    "to_json",
    "write",
    "write_density",
]
