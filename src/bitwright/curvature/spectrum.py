"""Eigenvalues of a symmetric operator from its products: Lanczos, and densities by quadrature.

After m steps from a unit vector v, `A ≈ V T Vᵀ` with T tridiagonal: T's largest eigenvalues are
those of A, from below, and the squared first components of T's eigenvectors are the weights of a
Gauss quadrature for `vᵀ f(A) v` (Golub and Welsch 1969). All vectors are kept and orthogonalized
twice, so nothing is found twice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bitwright.curvature.hessian import Hessian

Product = Callable[[Tensor], Tensor]


def lanczos(product: Product, start: Tensor, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Ritz values (rising) and quadrature weights, float64 [m], m ≤ steps.

    Args:
        product: v -> A v, float64 [d] -> [d].
        start: [d], any length but zero.
        steps: m; fewer if the space the start reaches is smaller.
    """
    basis = [start / start.norm()]
    diagonal: list[float] = []
    beside: list[float] = []
    for _ in range(min(steps, len(start))):
        w = product(basis[-1])
        diagonal.append(float(w @ basis[-1]))
        space = torch.stack(basis)
        for _ in range(2):
            w = w - space.mT @ (space @ w)
        norm = float(w.norm())
        if norm <= 1e-10 * max(map(abs, [*diagonal, *beside])) or len(diagonal) == len(start):
            break
        beside.append(norm)
        basis.append(w / norm)
    size = len(diagonal)
    matrix = np.diag(diagonal) + np.diag(beside[: size - 1], 1) + np.diag(beside[: size - 1], -1)
    values, vectors = np.linalg.eigh(matrix)
    return values, vectors[0] ** 2


def top_eigenvalues(
    hessian: Hessian, *, tolerance: float = 1e-3, steps: int = 50, seed: int = 0
) -> dict[str, float]:
    """The largest eigenvalue of every weight's own block: HAWQ's λ (arXiv 1905.03696).

    Args:
        hessian: of the loss.
        tolerance: relative change of λ over one Lanczos step at which it is taken as found.
        steps: products a weight at most.
        seed: of the starting vectors.

    Returns:
        Weight name -> eigenvalue (the largest, not the largest in magnitude).
    """
    found = {}
    for i, (name, weight) in enumerate(hessian.weights.items()):
        product = block(hessian, name)
        generator = torch.Generator().manual_seed(seed * 10_007 + i)
        start = torch.randn(weight.numel(), generator=generator, dtype=torch.float64)
        history: list[float] = []

        def watched(v: Tensor, product: Product = product) -> Tensor:
            return product(v)

        # Lanczos with more and more steps would repeat products: they are remembered
        memory: list[Tensor] = []

        def remembered(v: Tensor, place: list[int], memory: list[Tensor] = memory) -> Tensor:
            if place[0] == len(memory):
                memory.append(watched(v))
            place[0] += 1
            return memory[place[0] - 1]

        for m in range(2, max(3, min(steps, weight.numel()) + 1)):
            place = [0]
            values, _ = lanczos(lambda v, place=place: remembered(v, place), start, m)  # type: ignore[misc]
            history.append(float(values[-1]))
            close = len(history) > 2 and all(
                abs(history[-1] - h) <= tolerance * abs(history[-1]) for h in history[-3:-1]
            )
            if close or len(values) < m:
                break
        found[name] = history[-1]
    return found


def block(hessian: Hessian, name: str) -> Product:
    """The product with one weight's diagonal block, on flat float64 vectors."""
    weight = hessian.weights[name]

    def product(v: Tensor) -> Tensor:
        z = v.reshape(weight.shape)
        return hessian.products([{name: z}], [name])[0][name].flatten()

    return product


def whole(hessian: Hessian) -> tuple[Product, int]:
    """The product in all weights together, flat, and their number."""
    sizes = [w.numel() for w in hessian.weights.values()]

    def product(v: Tensor) -> Tensor:
        parts = v.split(sizes)
        z = {n: p.reshape(w.shape)
             for (n, w), p in zip(hessian.weights.items(), parts, strict=True)}  # fmt: skip
        found = hessian.products([z])[0]
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
    generator = torch.Generator().manual_seed(seed)

    def signs() -> Tensor:
        return torch.randint(0, 2, (dimension,), generator=generator).double() * 2 - 1

    sketch = torch.stack([product(signs()) for _ in range(third)], 1)
    q = torch.linalg.qr(sketch).Q
    large = sum(float(q[:, k] @ product(q[:, k])) for k in range(q.shape[1]))
    if q.shape[1] == dimension:
        return large, 0.0
    rest = []
    for _ in range(third):
        z = signs()
        z = z - q @ (q.mT @ z)
        rest.append(float(z @ product(z)))
    return large + float(np.mean(rest)), float(np.std(rest, ddof=1) / np.sqrt(len(rest)))
