"""The papers' estimator: `Tr(H) = E[zᵀ H z]` with random signs z, by Hessian-vector products.

HAWQ-V2 (Dong et al., arXiv 1911.03852, section 3): one joint probe for all layers,
`Hz = ∂⟨∂L/∂w, z⟩/∂w`, and `z_c · (Hz)_c` summed over a channel estimates that channel's trace. L is
the training loss, so labels are needed. Kept as the papers' variant and as a cross-check of
:mod:`~bitwright.curvature.gauss_newton`: it needs about a million times the work for the same
error.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from bitwright.curvature.estimate import Estimate, Sensitivity
from bitwright.network import Network, batches, join, run

Loss = Callable[[Tensor, Tensor], Tensor]


def hutchinson(
    network: Network,
    x: Tensor,
    labels: Tensor,
    loss: Loss = torch.nn.functional.cross_entropy,
    *,
    probes: int = 32,
    chunk: int = 128,
    seed: int = 0,
    progress: Callable[[float], None] | None = None,
) -> Sensitivity:
    """Traces per output channel of the Hessian of the mean training loss.

    Args:
        network: captured float network (evaluation mode).
        x: [n, ...] rows; labels: their targets.
        loss: mean loss of a batch from outputs and labels.
        probes: random vectors, all layers at once; at least 2, so that an error is known.
        chunk: rows in a pass; chunks are weighted by size, so that unequal ones agree with one.
        seed: of the probes.
        progress: called with the finished fraction.

    Returns:
        Means over probes with the standard error over probes; the error of the data is not known
        from joint probes and is NaN.

    Cost: about six forward passes a probe (the graph of the gradient is kept).
    """
    if probes < 2:
        raise ValueError(f"probes must be at least 2 for a standard error, got {probes}")
    names = [layer.weight for layer in network.layers]
    generator = torch.Generator().manual_seed(seed)
    signs = [
        [
            torch.randint(0, 2, layer.shape, generator=generator) * 2.0 - 1.0
            for layer in network.layers
        ]
        for _ in range(probes)
    ]
    each = [torch.zeros(probes, layer.rows, dtype=torch.float64) for layer in network.layers]
    pieces = list(zip(batches(x, chunk), batches(labels, chunk), strict=True))
    done = 0
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):  # fused attention: no double backward
        for rows, targets in pieces:
            leaves = [network.tensor(n).detach().requires_grad_(True) for n in names]
            constants = dict(zip(names, leaves, strict=True))
            value = loss(join(run(network.module, rows, constants=constants)), targets)
            gradients = torch.autograd.grad(value, leaves, create_graph=True)
            weight = len(rows) / len(x)
            for k, z in enumerate(signs):
                z = [v.to(g.dtype) for v, g in zip(z, gradients, strict=True)]
                products = torch.autograd.grad(gradients, leaves, z, retain_graph=True)
                for i, layer in enumerate(network.layers):
                    terms = (z[i] * products[i]).reshape(layer.rows, -1).sum(1)
                    each[i][k] += terms.detach().double() * weight
                done += 1
                if progress:
                    progress(done / (probes * len(pieces)))
    layers = {}
    for layer, table in zip(network.layers, each, strict=True):
        stderr = table.std(0, unbiased=True) / math.sqrt(probes)
        unknown = torch.full_like(stderr, torch.nan)
        layers[layer.name] = Estimate(
            table.mean(0).numpy(), stderr.numpy(), unknown.numpy(), len(x)
        )
    return Sensitivity("hutchinson", layers, details={"probes": probes, "estimator": "hutchinson"})
