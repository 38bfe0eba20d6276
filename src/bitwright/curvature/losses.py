"""The Hessian of a loss in the network's outputs: what the Gauss-Newton matrix `Jᵀ Λ J` needs.

Each row of outputs is read as P positions of C numbers. Two forms cover the losses whose Λ is
positive semi-definite:

- softmax: `Λ = a_p (diag(p) − p pᵀ)` at each position (KL divergence, cross-entropy with class
  weights, label smoothing, ignored targets); rank C − 1.
- diagonal: `Λ = diag(d)` (squared errors, binary cross-entropy).

A loss without a positive semi-definite Λ in closed form is refused: its Hessian is not a
Gauss-Newton matrix, and :func:`~bitwright.curvature.hutchinson` is the estimator for it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bitwright.curvature.divergence import flat
from bitwright.errors import BitwrightError


@dataclass(frozen=True)
class Block:
    """Λ of one head: P positions of C numbers for each of n rows.

    Attributes:
        logits: [n, P, C], for the softmax form; None for the diagonal one.
        scale: a [n, P, 1] for softmax, d [n, P, C] for diagonal; never negative.
    """

    logits: Tensor | None
    scale: Tensor

    @property
    def shape(self) -> tuple[int, int, int]:
        """(n, P, C)."""
        n, positions, numbers = (self.scale if self.logits is None else self.logits).shape
        return n, positions, numbers

    @property
    def rank(self) -> int:
        """Directions that make Λ up, for each row."""
        _, positions, classes = self.shape
        return positions * (classes if self.logits is None else classes - 1)

    def take(self, rows: Tensor) -> Block:
        """Of some of the rows."""
        return Block(None if self.logits is None else self.logits[rows], self.scale[rows])

    def trace(self) -> Tensor:
        """Tr Λ of each row, float64 [n]."""
        scale = self.scale.double()
        if self.logits is None:
            return scale.sum((1, 2))
        p = self.logits.double().softmax(-1)
        return (scale[..., 0] * (1 - p.square().sum(-1))).clamp(min=0).sum(1)

    def leading(self, count: int) -> tuple[Tensor, Tensor]:
        """Leading eigenvalues [n, k] and eigenvectors [n, P·C, k], float64, k = min(count, rank).

        Softmax: position by position (:func:`leading_directions`), then the largest of all.
        Diagonal: the unit vectors of the largest d.
        """
        n, positions, classes = self.shape
        count = min(count, self.rank)
        if self.logits is None:
            values, index = self.scale.double().flatten(1).topk(count, dim=1)
            vectors = torch.zeros(n, positions * classes, count, dtype=torch.float64)
            return values, vectors.scatter_(1, index[:, None, :], 1.0)
        each = min(count, classes - 1)
        values, vectors, _ = leading_directions(self.logits.flatten(0, 1), each)
        values = values * self.scale.double().reshape(-1, 1)
        best, index = values.reshape(n, positions * each).topk(count, dim=1)
        place, which = index // each, index % each
        vectors = vectors.reshape(n, positions, classes, each)
        found = torch.zeros(n, positions, classes, count, dtype=torch.float64)
        rows = torch.arange(n)
        for k in range(count):
            found[rows, place[:, k], :, k] = vectors[rows, place[:, k], :, which[:, k]]
        return best, found.flatten(1, 2)

    def random(self, signs: Tensor) -> Tensor:
        """`S ε` for random signs ε [n, P·C], so that `E[Sε εᵀSᵀ] = Λ`; [n, P·C].

        Softmax: `S = √a (diag(√p) − p √pᵀ)` at each position; diagonal: `S = diag(√d)`.
        """
        signs = signs.reshape(self.shape)
        # gradients of the roots stay finite where a scale or a probability underflows
        root = self.scale.clamp(min=torch.finfo(self.scale.dtype).tiny).sqrt() * (self.scale > 0)
        if self.logits is None:
            return (signs.to(root.dtype) * root).flatten(1)
        p = self.logits.softmax(-1)
        drawn = (0.5 * self.logits.log_softmax(-1)).exp() * signs.to(p.dtype)
        return (root * (drawn - p * drawn.sum(-1, keepdim=True))).flatten(1)

    def quadratic(self, change: Tensor) -> Tensor:
        """`½ dᵀ Λ d` of each row for changes d [n, P·C] of the outputs, [n]."""
        d = change.reshape(self.shape)
        scale = self.scale.to(d)
        if self.logits is None:
            return 0.5 * (scale * d.square()).sum((1, 2))
        p = self.logits.to(d).softmax(-1)
        spread = (p * d.square()).sum(-1) - (p * d).sum(-1).square()
        return 0.5 * (scale[..., 0] * spread).sum(1)


@dataclass(frozen=True)
class OutputHessian:
    """Λ of a loss that is a sum over heads: block-diagonal.

    Attributes:
        blocks: one a head.
    """

    blocks: tuple[Block, ...]

    @property
    def rows(self) -> int:
        """n."""
        return self.blocks[0].shape[0]

    @property
    def rank(self) -> int:
        """Directions that make Λ up, for each row."""
        return sum(block.rank for block in self.blocks)

    @property
    def concentrated(self) -> bool:
        """Whether few eigenvectors hold a row's Λ: one softmax a head, not a map or a vector."""
        return all(b.logits is not None and b.shape[1] == 1 for b in self.blocks)

    def take(self, rows: Tensor) -> OutputHessian:
        """Of some of the rows."""
        return OutputHessian(tuple(b.take(rows) for b in self.blocks))

    def trace(self) -> Tensor:
        """Tr Λ of each row, float64 [n]."""
        return torch.stack([b.trace() for b in self.blocks]).sum(0)

    def leading(self, count: int) -> tuple[Tensor, Tensor]:
        """Leading eigenvalues [n, k], falling, and eigenvectors [n, K, k] in all outputs."""
        found = [b.leading(count) for b in self.blocks]
        if len(found) == 1:
            return found[0]
        values = torch.cat([v for v, _ in found], 1)
        vectors = torch.stack([torch.block_diag(*[v[i] for _, v in found])
                               for i in range(self.rows)])  # fmt: skip
        best, index = values.topk(min(count, self.rank), dim=1)
        return best, vectors.gather(2, index[:, None, :].expand(-1, vectors.shape[1], -1))

    def random(self, signs: Tensor) -> Tensor:
        """`S ε` for random signs ε [n, K], with covariance Λ; [n, K]."""
        sizes = [b.shape[1] * b.shape[2] for b in self.blocks]
        parts = [b.random(s) for b, s in zip(self.blocks, signs.split(sizes, 1), strict=True)]
        return torch.cat(parts, 1)

    @property
    def numbers(self) -> int:
        """K, outputs of a row."""
        return sum(b.shape[1] * b.shape[2] for b in self.blocks)


def flatten(outputs: Tensor, kind: str, class_axis: int) -> Tensor:
    """Outputs in the order of Λ's rows, [n, K]: positions of classes for softmax losses."""
    return flat(outputs, kind, class_axis).flatten(1)


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
    if classes <= 32 or count > classes // 4:
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


# ------------------------------------------------------------------ from a loss to its Λ

Rule = Callable[[Any, Tensor, Tensor | None, int], tuple[Block, float]]


def output_hessian(
    loss: Any, outputs: Tensor, targets: Tensor | None = None, class_axis: int = 1
) -> tuple[Block, float]:
    """Λ of `loss` at `outputs`, as a sum over targets, and what a mean divides it by.

    Args:
        loss: "kl" for the KL divergence to the model itself (no targets needed), "squared" for
            ½‖y − y_float‖²; an `nn.CrossEntropyLoss`, `nn.MSELoss` or `nn.BCEWithLogitsLoss`.
        outputs: [n, ...], of the model.
        targets: what the loss takes.
        class_axis: of the classes in `outputs`, for softmax losses.

    Returns:
        Λ, and its divisor beside the number of rows: 1 for a mean over rows, the mean weight of a
        row's targets for a mean over targets.

    Raises:
        BitwrightError: a loss without a positive semi-definite Λ that is known here.
    """
    return _rule(loss)(loss, outputs, targets, class_axis)


def form(loss: Any) -> str:
    """Which order of outputs a loss's Λ has: "kl" (classes last) or "squared" (as they are)."""
    return "kl" if _rule(loss) in (_kl, _cross_entropy) else "squared"


def known(loss: Any) -> bool:
    """Whether the loss has a Λ here."""
    try:
        _rule(loss)
    except BitwrightError:
        return False
    return True


def _rule(loss: Any) -> Rule:
    for kind, rule in _RULES.items():
        if loss == kind if isinstance(kind, str) else isinstance(loss, kind):
            return rule
    name = loss if isinstance(loss, str) else getattr(loss, "__name__", type(loss).__name__)
    raise BitwrightError(
        f"loss {name!r} has no positive semi-definite output Hessian known here (known: kl, "
        "squared, CrossEntropyLoss, MSELoss, BCEWithLogitsLoss); measure its own Hessian with "
        "bitwright.curvature.hutchinson"
    )


def _kl(loss: Any, outputs: Tensor, targets: Tensor | None, class_axis: int) -> tuple[Block, float]:
    logits = flat(outputs, "kl", class_axis)
    return Block(logits, torch.ones_like(logits[..., :1])), 1.0


def _squared(
    loss: Any, outputs: Tensor, targets: Tensor | None, class_axis: int
) -> tuple[Block, float]:
    return Block(None, torch.ones_like(flat(outputs, "squared", class_axis))), 1.0


def _need(targets: Tensor | None, loss: Any) -> Tensor:
    if targets is None:
        raise BitwrightError(
            f"{type(loss).__name__} needs targets; give batches of (inputs, targets), or leave "
            "the loss out: the KL divergence to the model itself needs none"
        )
    return targets


def _mean(loss: Any, weight: Tensor) -> float:
    """What a mean divides by, for each row."""
    return float(weight.double().sum()) / len(weight) if loss.reduction == "mean" else 1.0


def _numbers(loss: Any, numbers: Tensor) -> float:
    return float(numbers.shape[-1]) if loss.reduction == "mean" else 1.0


def _cross_entropy(
    loss: nn.CrossEntropyLoss, outputs: Tensor, targets: Tensor | None, class_axis: int
) -> tuple[Block, float]:
    """`Λ = a (diag(p) − ppᵀ)`, `a = Σ_c w_c t_c` with the (smoothed) target distribution t."""
    logits = flat(outputs, "kl", class_axis)
    n, positions, classes = logits.shape
    targets = _need(targets, loss)
    weight = logits.new_ones(classes) if loss.weight is None else loss.weight.to(logits)
    smooth = loss.label_smoothing
    if targets.is_floating_point():  # class probabilities
        if targets.shape != outputs.shape:
            raise BitwrightError(
                f"targets are {targets.dtype} of shape {tuple(targets.shape)}, outputs "
                f"{tuple(outputs.shape)}; give class numbers (int64), or probabilities of that "
                "shape"
            )
        t = flat(targets, "kl", class_axis).to(logits)
        t = t * (1 - smooth) + smooth / classes
        scale = (t * weight).sum(-1)
        divisor = torch.ones_like(scale)  # torch divides by the number of targets, not by weights
    else:
        t = targets.reshape(n, positions)
        kept = t != loss.ignore_index
        strange = t[kept & ((t < 0) | (t >= classes))]
        if len(strange):
            raise BitwrightError(
                f"label {int(strange[0])} is out of range: the outputs have {classes} classes; "
                f"give labels of 0 to {classes - 1}"
            )
        chosen = weight[t.clamp(0, classes - 1)]
        scale = ((1 - smooth) * chosen + smooth / classes * weight.sum()) * kept
        divisor = chosen * kept
    return Block(logits, scale[..., None]), _mean(loss, divisor)


def _mse(
    loss: nn.MSELoss, outputs: Tensor, targets: Tensor | None, class_axis: int
) -> tuple[Block, float]:
    numbers = outputs.flatten(1)[:, None]
    return Block(None, torch.full_like(numbers, 2.0)), _numbers(loss, numbers)


def _bce(
    loss: nn.BCEWithLogitsLoss, outputs: Tensor, targets: Tensor | None, class_axis: int
) -> tuple[Block, float]:
    """`d = w (1 + (w₊ − 1) t) σ (1 − σ)`, element by element."""
    t = _need(targets, loss).to(outputs)
    positive = torch.ones_like(outputs)
    if loss.pos_weight is not None:
        positive = 1 + (loss.pos_weight.to(outputs) - 1) * t
    sigma = outputs.sigmoid()
    d = positive * sigma * (1 - sigma)
    if loss.weight is not None:
        d = d * loss.weight.to(outputs)
    numbers = d.flatten(1)[:, None]
    return Block(None, numbers), _numbers(loss, numbers)


_RULES: dict[str | type, Rule] = {
    "kl": _kl,
    "squared": _squared,
    nn.CrossEntropyLoss: _cross_entropy,
    nn.MSELoss: _mse,
    nn.BCEWithLogitsLoss: _bce,
}
