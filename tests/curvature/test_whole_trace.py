"""Hutch++ and XTrace: unbiased, their errors true, better than random signs where spectra fall."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from bitwright.curvature.whole_trace import hutch_plus_plus, xtrace

SIZE = 100
METHODS = {"hutch++": hutch_plus_plus, "xtrace": xtrace}


def operator(values: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    q = torch.linalg.qr(torch.randn(SIZE, SIZE, generator=generator, dtype=torch.float64)).Q
    return q @ torch.diag(values) @ q.mT


SPECTRA = {
    "falling": 1.0 / torch.arange(1, SIZE + 1, dtype=torch.float64) ** 2,
    "flat": torch.ones(SIZE, dtype=torch.float64) + torch.arange(SIZE) / SIZE,
    "indefinite": torch.linspace(-1, 2, SIZE, dtype=torch.float64) ** 3,
}


def runs(method: Callable, a: Tensor, count: int = 60) -> tuple[np.ndarray, np.ndarray]:
    found = [method(lambda v: a @ v, SIZE, probes=30, seed=s) for s in range(count)]
    return np.array([v for v, _ in found]) - float(a.trace()), np.array([e for _, e in found])


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("name", METHODS)
def test_unbiased_with_a_true_error(name: str, spectrum: str):
    a = operator(SPECTRA[spectrum])
    errors, claimed = runs(METHODS[name], a)
    assert abs(errors.mean()) < 4 * errors.std() / np.sqrt(len(errors))
    assert 0.5 < errors.std() / np.sqrt((claimed**2).mean()) < 2
    biased = errors + 0.5 * abs(errors).max()  # the check can fail
    assert abs(biased.mean()) > 4 * biased.std() / np.sqrt(len(errors))


def test_where_the_spectrum_falls_both_beat_signs_and_xtrace_is_the_better():
    a = operator(SPECTRA["falling"])
    plain = []
    for s in range(60):
        generator = torch.Generator().manual_seed(s)
        z = torch.randint(0, 2, (30, SIZE), generator=generator).double() * 2 - 1
        plain.append(float(((z @ a) * z).sum(1).mean() - a.trace()))
    hutch, x = (runs(m, a)[0].std() for m in METHODS.values())
    assert x < hutch < 0.2 * np.std(plain)


@pytest.mark.parametrize("name", METHODS)
def test_exact_where_the_probes_span_everything(name: str):
    a = operator(SPECTRA["flat"])
    value, error = METHODS[name](lambda v: a @ v, SIZE, probes=300)
    assert value == pytest.approx(float(a.trace())) and error == 0
    few = SPECTRA["flat"] * (torch.arange(SIZE) < 4)  # rank 4
    value, error = METHODS[name](lambda v: operator(few) @ v, SIZE, probes=30)
    assert value == pytest.approx(float(few.sum())) and error < 1e-12
    assert METHODS[name](torch.zeros_like, SIZE, probes=30) == (0, 0)


@pytest.mark.parametrize(("name", "least"), [("hutch++", 6), ("xtrace", 4)])
def test_too_few_probes(name: str, least: int):
    with pytest.raises(ValueError, match=f"at least {least}"):
        METHODS[name](lambda v: v, 10, probes=least - 1)
    assert METHODS[name](lambda v: v, 10, probes=least)[0] > 0


def test_products_are_those_paid_for():
    for method, probes in ((hutch_plus_plus, 30), (xtrace, 30)):
        count = 0

        def product(v: Tensor) -> Tensor:
            nonlocal count
            count += 1
            return torch.arange(SIZE) * v

        method(product, SIZE, probes=probes)
        assert count == probes
