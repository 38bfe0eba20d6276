"""Eigenvalues of a symmetric operator from its products: Lanczos, and densities by quadrature.

After m steps from a unit vector v, `A ≈ V T Vᵀ` with T tridiagonal: T's largest eigenvalues are
those of A, from below, and the squared first components of T's eigenvectors are the weights of a
Gauss quadrature for `vᵀ f(A) v` (Golub and Welsch 1969). All vectors are kept and orthogonalized
twice, so nothing is found twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from bitwright.curvature.hessian import Graphs, Hessian

Product = Callable[[Tensor], Tensor]


def lanczos_steps(product: Product, start: Tensor) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Ritz values (rising) and quadrature weights, float64 [m], after m = 1, 2, … products.

    It ends where the space that `start` reaches does.

    Args:
        product: v -> A v, float64 [d] -> [d].
        start: [d], any length but zero.
    """
    basis = [start / start.norm()]
    diagonal: list[float] = []
    beside: list[float] = []
    while True:
        w = product(basis[-1])
        diagonal.append(float(w @ basis[-1]))
        matrix = np.diag(diagonal) + np.diag(beside, 1) + np.diag(beside, -1)
        values, vectors = np.linalg.eigh(matrix)
        yield values, vectors[0] ** 2
        space = torch.stack(basis)
        for _ in range(2):
            w = w - space.mT @ (space @ w)
        norm = float(w.norm())
        if norm <= 1e-10 * max(map(abs, [*diagonal, *beside])) or len(basis) == len(start):
            return
        beside.append(norm)
        basis.append(w / norm)


def lanczos(product: Product, start: Tensor, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """What :func:`lanczos_steps` has after `steps` products, or fewer where it ends before."""
    *_, last = islice(lanczos_steps(product, start), steps)
    return last


def top_eigenvalues(
    hessian: Hessian, *, tolerance: float = 1e-3, steps: int = 50, seed: int = 0
) -> dict[str, float]:
    """The largest eigenvalue of every weight's own block: HAWQ's λ (arXiv 1905.03696).

    Args:
        hessian: of the loss.
        tolerance: relative change of λ over each of two Lanczos steps at which it is taken as
            found.
        steps: products a weight at most.
        seed: of the starting vectors.

    Returns:
        Weight name -> eigenvalue (the largest, not the largest in magnitude).
    """
    found = {}
    for i, (name, weight) in enumerate(hessian.weights.items()):
        generator = torch.Generator().manual_seed(seed * 10_007 + i)
        start = torch.randn(weight.numel(), generator=generator, dtype=torch.float64)
        history: list[float] = []
        for values, _ in islice(lanczos_steps(block(hessian, name), start), steps):
            history.append(float(values[-1]))
            before = [abs(history[-1] - h) for h in history[-3:-1]]
            if len(history) > 3 and max(before) <= tolerance * abs(history[-1]):
                break
        found[name] = history[-1]
    return found


def block(hessian: Hessian, name: str) -> Product:
    """The product with one weight's diagonal block, on flat float64 vectors.

    It holds the gradient's graph where the data is one pass, for all its products.
    """
    weight = hessian.weights[name]
    kept: Graphs = {}

    def product(v: Tensor) -> Tensor:
        z = v.reshape(weight.shape)
        return hessian.products([{name: z}], [name], kept)[0][name].flatten()

    return product


def whole(hessian: Hessian) -> tuple[Product, int]:
    """The product in all weights together, flat, and their number; graphs as in :func:`block`."""
    kept: Graphs = {}
    sizes = [w.numel() for w in hessian.weights.values()]

    def product(v: Tensor) -> Tensor:
        parts = v.split(sizes)
        z = {n: p.reshape(w.shape)
             for (n, w), p in zip(hessian.weights.items(), parts, strict=True)}  # fmt: skip
        found = hessian.products([z], kept=kept)[0]
        return torch.cat([found[n].flatten() for n in hessian.weights])

    return product, sum(sizes)


@dataclass(frozen=True)
class Density:
    """Eigenvalue density of an operator, from several starts.

    Attributes:
        values, weights: Ritz values and their quadrature weights over all starts; weights sum to 1.
        dimension: of the operator.
    """

    values: np.ndarray
    weights: np.ndarray
    dimension: int

    @property
    def trace(self) -> float:
        """`dimension · Σ w λ`, an unbiased estimate."""
        return float(self.dimension * (self.values * self.weights).sum())

    def on(self, grid: np.ndarray, width: float) -> np.ndarray:
        """The density on a grid, each value a normal distribution of the given width."""
        distance = (grid[:, None] - self.values) / width
        bell = np.exp(-0.5 * distance**2) / (width * np.sqrt(2 * np.pi))
        return np.asarray(bell @ self.weights)


def density(
    product: Product, dimension: int, *, steps: int = 40, starts: int = 4, seed: int = 0
) -> Density:
    """Spectral density by stochastic Lanczos quadrature (Ghorbani et al., arXiv 1901.10159).

    Args:
        product: v -> A v, float64 [d].
        dimension: d.
        steps: of Lanczos for each start; starts: random ones, normally distributed.
        seed: of the starts.
    """
    generator = torch.Generator().manual_seed(seed)
    values, weights = [], []
    for _ in range(starts):
        start = torch.randn(dimension, generator=generator, dtype=torch.float64)
        v, w = lanczos(product, start, steps)
        values.append(v)
        weights.append(w / starts)
    return Density(np.concatenate(values), np.concatenate(weights), dimension)
