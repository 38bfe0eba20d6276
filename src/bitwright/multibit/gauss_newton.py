"""Gauss-Newton curvature of weights and of coordinates: our own step beyond ALQ's statistics.

One backward pass of `⟨S ε, outputs⟩`, Λ = S Sᵀ the Hessian of the KL in the outputs and ε random
signs, gives `u = Jᵀ S ε` with `E[u uᵀ] = Jᵀ Λ J` (as :mod:`bitwright.curvature.gauss_newton` says).
So the diagonal of a weight is E[u²], and that of a coordinate, whose signs are b, E[⟨b, u⟩²]:
exact in the α domain, with all interactions inside the group.

Λ is that of the loss which is trained: `T² KL` of answers softened by T has Λ at `outputs / T`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bitwright.arith.multibit import projected
from bitwright.curvature.losses import flatten, output_hessian
from bitwright.multibit.net import Multibit
from bitwright.network import join


def curvatures(
    net: Multibit,
    rows: Sequence[Tensor],
    *,
    weights: bool,
    kind: str = "kl",
    class_axis: int = 1,
    temperature: float = 1.0,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Diagonal of the Gauss-Newton matrix of the mean loss of a row, by layer.

    Args:
        net: in the mode it is measured in; its bases and gradients are left as they are.
        rows: batches; each is one direction.
        weights: of the weights, [G, n]; else of the coordinates, [G, I].
        kind: `kl` of logits, or `squared`.
        class_axis: of the classes in the outputs.
        temperature: T; of `kl` alone.
        seed: of the random signs.

    Returns:
        Unbiased estimates. Cost: a forward and a backward pass a batch.
    """
    generator = torch.Generator().manual_seed(seed)
    sums: dict[str, Tensor] = {}
    held = {name: net[name].weight().requires_grad_() for name in net.names}
    for batch in rows:
        with torch.enable_grad():
            outputs = join(net.run(held, batch))
            numbers = flatten(outputs, kind, class_axis)
        block, _ = output_hessian(kind, outputs.detach() / temperature, None, class_axis)
        signs = torch.randint(0, 2, numbers.shape, generator=generator) * 2.0 - 1
        found = torch.autograd.grad(numbers, list(held.values()), block.random(signs))
        for name, gradient in zip(held, found, strict=True):
            layer = net[name]
            u = layer.grouping.cut(gradient)
            if not weights:
                u = projected(u, layer.codes, layer.alpha.shape[1])
            sums[name] = sums.get(name, torch.zeros(())) + u.square()
    rows_seen = sum(len(batch) for batch in rows)
    return {name: value / rows_seen for name, value in sums.items()}
