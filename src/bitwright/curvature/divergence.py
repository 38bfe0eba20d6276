"""How far outputs are from the float model's.

`kl`: mean over rows (and positions) of KL(p_float ‖ p). At the float outputs its gradient is zero
and its Hessian in the logits is `Λ = diag(p) − p pᵀ`, so its Hessian in the weights is exactly the
Gauss-Newton matrix `Jᵀ Λ J`, for every architecture. `squared`: ½‖y − y_float‖², `Λ = I`.
"""

from __future__ import annotations

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
