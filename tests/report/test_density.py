"""The plot of a spectral density shows the density it was given."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from bitwright.curvature.spectrum import Density
from bitwright.report import density_figure, write_density

TWO = Density(np.array([0.0, 10.0]), np.array([0.9, 0.1]), 50)


def points(drawn: str) -> np.ndarray:
    """Positions of the curve, 0..1000 each, up is more."""
    (path,) = re.findall(r'<path class="curve" d="M([^"]+)"', drawn)
    at = np.array([[float(v) for v in p.split()] for p in path.split("L")])
    return np.stack([at[:, 0], 1000 - at[:, 1]], 1)


def test_the_curve_is_the_logarithm_of_the_density():
    at = points(density_figure(TWO, width=0.5))
    left, right = at[at[:, 0] < 500], at[at[:, 0] > 500]
    peaks = [part[part[:, 1].argmax()] for part in (left, right)]
    # the grid runs from -2 to 12, four widths beyond both
    np.testing.assert_allclose([p[0] for p in peaks], [1000 * 2 / 14, 1000 * 12 / 14], atol=4)
    bottom = at[:, 1].min()
    span = at[:, 1].max() - bottom
    # eight decades are drawn, the smaller peak stands log10(9) of one below the larger
    assert abs((peaks[0][1] - peaks[1][1]) / span - np.log10(9) / 8) < 0.01
    other = points(density_figure(Density(TWO.values, TWO.weights[::-1], 50), width=0.5))
    assert other[other[:, 0] > 500][:, 1].max() > other[other[:, 0] < 500][:, 1].max()


def test_its_words():
    drawn = density_figure(TWO, "<b>H</b>")
    assert "50 eigenvalues between 0 and 10" in drawn
    assert "is about 50" in drawn  # 50 · 0.1 · 10
    assert "&lt;b&gt;H&lt;/b&gt;" in drawn and "<b>" not in drawn


def test_one_eigenvalue():
    assert points(density_figure(Density(np.array([3.0]), np.ones(1), 4))).shape[1] == 2
    assert points(density_figure(Density(np.zeros(1), np.ones(1), 4))).shape[1] == 2


def test_the_page_stands_alone(tmp_path: Path):
    write_density(TWO, tmp_path / "density.html", "H")
    page = (tmp_path / "density.html").read_text()
    assert density_figure(TWO, "H") in page
    assert re.findall(r"(?:href|src)=\S+", page) == ['href="data:,">'] and "<script" not in page
    assert list(tmp_path.iterdir()) == [tmp_path / "density.html"]
