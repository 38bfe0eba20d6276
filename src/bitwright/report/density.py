"""The plot of a spectral density: a page of its own, as the report is, from Lanczos quadratures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from markupsafe import Markup

from bitwright.curvature.spectrum import Density
from bitwright.files import put
from bitwright.report import svg
from bitwright.report.figures import figure
from bitwright.report.page import framed
from bitwright.report.words import number

#: points of the curve
_POINTS = 600
#: decades below the peak that are drawn
_DECADES = 8.0


def density_figure(found: Density, name: str = "the Hessian", width: float | None = None) -> str:
    """The density over eigenvalues, logarithmic upwards, as a `<figure>`.

    Args:
        found: from :func:`bitwright.curvature.spectrum.density`.
        name: of the operator, for the caption.
        width: standard deviation of the normal distribution that stands for an eigenvalue; a
            hundredth of their range without.
    """
    low, high = float(found.values.min()), float(found.values.max())
    width = width or (high - low) / 100 or abs(high) / 100 or 1.0
    grid = np.linspace(low - 4 * width, high + 4 * width, _POINTS)
    curve = found.on(grid, width)
    floor = curve.max() * 10**-_DECADES
    x = svg.linear_axis(grid[0], grid[-1], count=5)
    y = svg.log_axis([float(max(curve.min(), floor)), float(curve.max())])
    points = [(x.at(v), y.at(max(d, floor))) for v, d in zip(grid, curve, strict=True)]
    words = (
        f"{found.dimension:,} eigenvalues between {number(low)} and {number(high)}; their sum, the "
        f"trace, is about {number(found.trace)}."
    )
    return figure(
        svg.plane(
            "density",
            f"Eigenvalues of {name}",
            words,
            x,
            y,
            svg.curves(("curve", svg.line(points))),
        ),
        f"Spectral density of {name}: {words}",
        axis="across: eigenvalue; up: share of the eigenvalues per unit, logarithmic",
    )


def write_density(
    found: Density, path: Path, name: str = "the Hessian", width: float | None = None
) -> None:
    """Write the plot as one HTML page that needs nothing else; see :func:`density_figure`."""
    page = framed(
        "spectral density",
        f"Spectral density of {name}",
        f"{found.dimension:,} eigenvalues, by stochastic Lanczos quadrature.",
        "{{ drawn }}",
        drawn=Markup(density_figure(found, name, width)),
    )
    put(path, page)
