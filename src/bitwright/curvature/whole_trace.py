"""The trace of a whole operator from few products, where its spectrum falls: Hutch++ and XTrace.

Plain random signs have the variance `2 (‖A‖² − Σ A_ii²)`, ruled by the large eigenvalues. Both
methods take the space that holds those exactly and leave chance to the rest. They need the whole
operator: for the traces of channels use :func:`bitwright.traces`.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from bitwright.curvature.spectrum import Product


def hutch_plus_plus(
    product: Product, dimension: int, *, probes: int = 30, seed: int = 0
) -> tuple[float, float]:
    """Trace of an operator by Hutch++ (Meyer, Musco, Musco, Woodruff, arXiv 2010.09649).

    A third of the probes span a space Q that holds the large eigenvalues, whose trace is taken
    exactly; a third estimate what is orthogonal to it: `tr(QᵀAQ) + tr((I−QQᵀ)A(I−QQᵀ))`.

    Args:
        product: v -> A v, float64 [d].
        dimension: d.
        probes: products to spend, at least 6.
        seed: of the probes.

    Returns:
        The estimate and the standard error of its random part.

    Raises:
        ValueError: fewer than 6 probes.
    """
    if probes < 6:
        raise ValueError(f"Hutch++ needs at least 6 probes, got {probes}")
    third = min(probes // 3, dimension)
    signs = _signs(dimension, 2 * third, seed)
    q = torch.linalg.qr(_products(product, signs[:, :third])).Q
    large = float((q * _products(product, q)).sum())
    if q.shape[1] == dimension:
        return large, 0.0
    z = signs[:, third:]
    z = z - q @ (q.mT @ z)
    rest = (z * _products(product, z)).sum(0).numpy()
    return large + float(rest.mean()), float(rest.std(ddof=1) / np.sqrt(third))


def xtrace(
    product: Product, dimension: int, *, probes: int = 30, seed: int = 0
) -> tuple[float, float]:
    """Trace of an operator by XTrace (Epperly, Tropp, Webber, arXiv 2301.07825).

    With random signs ω_1 … ω_k and Q₍ᵢ₎ an orthonormal basis of all Aω_j but the i-th,

        t̂ = mean_i  tr(Q₍ᵢ₎ᵀ A Q₍ᵢ₎) + ωᵢᵀ (I − Q₍ᵢ₎Q₍ᵢ₎ᵀ) A (I − Q₍ᵢ₎Q₍ᵢ₎ᵀ) ωᵢ :

    every product serves the space and the rest. `Q₍ᵢ₎Q₍ᵢ₎ᵀ = Q (I − sᵢsᵢᵀ) Qᵀ`, sᵢ the normalized
    i-th column of R⁻ᵀ in `AΩ = QR`, so that the k spaces cost one factorization.

    Args:
        product: v -> A v, float64 [d].
        dimension: d.
        probes: products to spend (half of them span), at least 4.
        seed: of the probes.

    Returns:
        The estimate and its standard error `√(Σ (t̂ᵢ − t̂)² / (k (k − 1)))` (the authors' estimate;
        the t̂ᵢ share probes).

    Raises:
        ValueError: fewer than 4 probes.
    """
    if probes < 4:
        raise ValueError(f"XTrace needs at least 4 probes, got {probes}")
    k = probes // 2
    if k >= dimension:  # as many products give all of it
        eye = torch.eye(dimension, dtype=torch.float64)
        return float(_products(product, eye).trace()), 0.0
    signs = _signs(dimension, k, seed)
    image = _products(product, signs)
    scale = image.norm(dim=0).max()
    if not scale:
        return 0.0, 0.0
    q, r = torch.linalg.qr(image)
    rank = int((r.diagonal().abs() > 1e-12 * scale).sum())
    if rank < k:  # the operator's whole range is spanned: nothing is left to chance
        q = torch.linalg.svd(image, full_matrices=False).U[:, :rank]
        return float((q * _products(product, q)).sum()), 0.0
    s = torch.linalg.inv(r).mT
    s = s / s.norm(dim=0)
    z = _products(product, q)
    h = q.mT @ z
    coefficients = q.mT @ signs
    coefficients = coefficients - s * (s * coefficients).sum(0)  # of Q₍ᵢ₎Q₍ᵢ₎ᵀ ωᵢ in Q
    rest = signs - q @ coefficients
    within = h.trace() - (s * (h @ s)).sum(0)
    found = (within + (rest * (image - z @ coefficients)).sum(0)).numpy()
    return float(found.mean()), float(found.std(ddof=1) / np.sqrt(k))


def _products(product: Product, columns: Tensor) -> Tensor:
    return torch.stack([product(v) for v in columns.mT], 1)


def _signs(dimension: int, count: int, seed: int) -> Tensor:
    """Random signs ±1, [dimension, count]."""
    generator = torch.Generator().manual_seed(seed)
    signs = torch.randint(0, 2, (count, dimension), generator=generator)
    return signs.mT.double() * 2 - 1
