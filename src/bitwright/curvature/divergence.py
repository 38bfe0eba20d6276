"""How far outputs are from the float model's, and the square root of that distance's Hessian.

`kl`: mean over rows (and positions) of KL(p_float ‖ p). At the float outputs its gradient is zero
and its Hessian in the logits is `Λ = diag(p) − p pᵀ`, so its Hessian in the weights is exactly the
Gauss-Newton matrix `Jᵀ Λ J`, for every architecture. `squared`: ½‖y − y_float‖², `Λ = I`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bitwright.errors import BitwrightError

KINDS = ("kl", "squared")


def check(kind: str) -> None:
    """Refuse unknown divergences by name."""
    if kind not in KINDS:
        raise BitwrightError(f"divergence {kind!r} is unknown; use one of {', '.join(KINDS)}")


def flat(outputs: Tensor, kind: str, class_axis: int) -> Tensor:
    """Outputs as [n, P, C]: P positions of C classes; for `squared` [n, 1, all numbers]."""
    if kind == "squared":
        return outputs.flatten(1)[:, None]
    return outputs.movedim(class_axis, -1).reshape(len(outputs), -1, outputs.shape[class_axis])


def per_sample(reference: Tensor, outputs: Tensor, kind: str, class_axis: int = 1) -> Tensor:
    """Divergence of each row, float64 [n]: summed over positions, nats or squared output units."""
    check(kind)
    a = flat(reference, kind, class_axis).double()
    b = flat(outputs, kind, class_axis).double()
    if kind == "squared":
        return 0.5 * (a - b).square().sum((1, 2))
    p = a.log_softmax(-1)
    return (p.exp() * (p - b.log_softmax(-1))).sum((1, 2))


def leading_directions(logits: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Leading eigenpairs of `Λ = diag(p) − p pᵀ` for each row of logits.

    Exact (dense, float64) up to 32 classes; beyond, 30 rounds of block power iteration with twice
    the columns, started at the likeliest classes: `Λ v = p ⊙ v − p (pᵀ v)` costs O(C) a column.

    Args:
        logits: [n, C].
        count: number of eigenpairs k.

    Returns:
        Eigenvalues [n, k], eigenvectors [n, C, k] and traces `1 − Σ p²` [n], all float64.
    """
    p = logits.double().softmax(-1)
    trace = 1 - p.square().sum(-1)
    n, classes = p.shape
    count = min(count, classes)
    if classes <= 32:
        values, vectors = torch.linalg.eigh(torch.diag_embed(p) - p[:, :, None] * p[:, None])
        return values.flip(-1)[:, :count].clamp(min=0), vectors.flip(-1)[..., :count], trace
    width = min(classes, 2 * count + 2)
    likely = p.topk(width, dim=-1).indices
    basis = torch.zeros(n, classes, width, dtype=p.dtype).scatter_(1, likely[:, None, :], 1.0)
    for _ in range(30):
        product = p[..., None] * (basis - (p[:, None] @ basis))
        basis = torch.linalg.qr(product).Q
    product = p[..., None] * (basis - (p[:, None] @ basis))
    values, rotation = torch.linalg.eigh(basis.mT @ product)
    vectors = basis @ rotation
    return values.flip(-1)[:, :count].clamp(min=0), vectors.flip(-1)[..., :count], trace


def random_direction(flat_outputs: Tensor, kind: str, generator: torch.Generator) -> Tensor:
    """`S ε` with random signs ε, so that `E[Sε εᵀSᵀ] = Λ`; same shape as `flat_outputs`.

    For `kl`, `S = diag(√p) − p √pᵀ` at each position; for `squared`, S is the identity.
    """
    signs = torch.randint(0, 2, flat_outputs.shape, generator=generator) * 2.0 - 1.0
    if kind == "squared":
        return signs.to(flat_outputs.dtype)
    p = flat_outputs.softmax(-1)
    root = p.sqrt()
    return root * signs - p * (root * signs).sum(-1, keepdim=True)
