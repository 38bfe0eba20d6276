"""HAWQ's fine-tuning order (Dong et al., arXiv 1905.03696): layers one after another, not at once.

The paper's: layers are quantized and fine-tuned in the order of falling

    Ω_i = λ_i · ‖Q(W_i) − W_i‖² ,

λ_i the top eigenvalue of the Hessian's block of layer i, W_i its float and Q(W_i) its quantized
weights; the layers that would disturb the network most adapt first. We know no more of it than a
summary: that text gives neither the number of stages nor what happens to the layers still to come.
**Our reconstruction**: the steps of all epochs are split evenly over stages, a layer each, or
several where a stage would have fewer than :data:`STAGE_STEPS` steps; a layer is quantized from its
stage to the end and trained on together with all before it; layers to come stay as in the float
network and are not trained; activations are quantized from the start, an edge being no one layer's;
one optimizer, whose rate falls over all stages together, serves them all. λ is that of the
Gauss-Newton matrix, which for the KL to the network itself is the Hessian.

Measured on ResNet-20 at 2.5 bits, 2 to 4 epochs of 5,120 rows: better than the reverse order, and
no better than all layers at once (docs/decisions/0012-finetune-order.md).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from bitwright.allocate import finetune_order
from bitwright.quantize import Quantized, Rows, layer_eigenvalues, rows_that_fit

#: steps a stage has at least: with fewer, a layer has not settled when the next one comes
STAGE_STEPS = 8
#: rows λ is looked for on, and the bytes that a graph of their gradients may about take
_ROWS, _GRAPH_BYTES = 128, 1.5e9


def hawq_order(
    quantized: Quantized, x: Tensor, *, kind: str = "kl", class_axis: int = 1
) -> list[str]:
    """Names of the layers by falling Ω.

    Args:
        quantized: the corrected network; what it stores is Q(W).
        x: [n, ...] calibration rows; the first 128 are used, fewer of a network whose activations
            are too many.
        kind, class_axis: of the divergence.

    Cost: some ten Hessian products a layer.
    """
    network = quantized.network
    rows = min(_ROWS, rows_that_fit(network, _GRAPH_BYTES / 6))
    values = layer_eigenvalues(network, Rows(x[:rows], kind=kind, class_axis=class_axis))
    errors = [
        float((quantized.layers[la.name].matrix() - network.matrix(la)).double().square().sum())
        for la in network.layers
    ]
    names = [la.name for la in network.layers]
    order = finetune_order(np.array([values[n] for n in names]), np.array(errors))
    return [names[i] for i in order]


def stages(order: Sequence[str], steps: int) -> dict[int, list[str]]:
    """Number of a stage's first step -> the layers that are quantized from then on.

    As many stages as there are layers, but none shorter than :data:`STAGE_STEPS`; layers and steps
    are spread evenly.

    >>> stages(["a", "b", "c"], 30)
    {0: ['a'], 10: ['b'], 20: ['c']}
    >>> stages(["a", "b", "c"], 20)
    {0: ['a'], 10: ['b', 'c']}
    """
    count = max(1, min(len(order), steps // STAGE_STEPS))
    return {
        k * steps // count: list(order[k * len(order) // count : (k + 1) * len(order) // count])
        for k in range(count)
    }
