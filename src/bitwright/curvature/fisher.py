"""Trace of the empirical Fisher information of every channel: FIT's curvature (arXiv 2210.08502).

`Tr EF_c = E[‖∂ℓ(f(x), y)/∂w_c‖²]`, the squared gradients of the loss at the labels: one backward
pass a sample, of the one direction `∂ℓ/∂outputs` in place of the eigenvectors of Λ. With labels
drawn from the model itself its mean would be the Gauss-Newton trace; with the data's own labels it
is no curvature: it grows with the residuals, and wrongly labelled rows rule it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from bitwright.curvature.divergence import flat
from bitwright.curvature.estimate import Estimate, Sensitivity
from bitwright.curvature.ledger import estimate
from bitwright.curvature.losses import flatten
from bitwright.curvature.subjects import NetworkSubject
from bitwright.curvature.visits import squares
from bitwright.network import Network, outputs


def empirical_fisher(
    network: Network,
    x: Tensor,
    labels: Tensor,
    *,
    kind: str = "kl",
    class_axis: int = 1,
    chunk: int = 32,
    progress: Callable[[float], None] | None = None,
) -> Sensitivity:
    """Mean squared gradients of every layer's rows, with the data's standard error.

    Args:
        network: captured float network; x: [n, ...] rows.
        labels: classes as cross-entropy takes them ([n], or [n, ...] for outputs with positions)
            for `kl`, whose loss is the negative log-likelihood; targets of the outputs' shape for
            `squared`, whose loss is half the squared distance.
        kind, class_axis: of the divergence.
        chunk: rows in a pass.
        progress: called with the finished fraction.
    """
    subject = NetworkSubject(network, x, kind, class_axis, False)
    residual = residuals(outputs(network.module, x), labels, kind, class_axis)
    columns, width = {}, 0
    for layer in network.layers:
        columns[f"layer:{layer.weight}"] = slice(width, width + layer.rows)
        width += layer.rows
    sums = torch.zeros(3, width, dtype=torch.float64)  # as a ledger's: Σ t, no variance, Σ t²
    done = 0
    for rows in torch.arange(len(x)).split(chunk):
        for index, passed in subject.forward(rows):
            (found,) = squares(passed, subject.weights, [residual[rows[index]]], columns).double()
            sums[0] += found.sum(0)
            sums[2] += found.square().sum(0)
        done += len(rows)
        if progress:
            progress(done / len(x))
    layers: dict[str, Estimate] = {
        la.name: estimate(sums[:, columns[f"layer:{la.weight}"]], len(x)) for la in network.layers
    }
    return Sensitivity("empirical fisher", layers)


def residuals(found: Tensor, labels: Tensor, kind: str, class_axis: int) -> Tensor:
    """`∂ℓ/∂outputs` of each row, [n, K]: p − onehot(y) at each position, or y − target."""
    if kind == "squared":
        return flatten(found, kind, class_axis) - flatten(labels, kind, class_axis).to(found)
    logits = flat(found, kind, class_axis)
    hit = F.one_hot(labels.reshape(len(found), -1), logits.shape[-1])
    return (logits.softmax(-1) - hit).flatten(1)
