"""Scores of units: HAP's `Tr(H_c)/(2 p_c) · ‖w_c‖²` (arXiv 2101.08940, eq. 6), actual removal.

HAP's, from our traces: exact where the reference draws three random probes and keeps them in a file
that other checkpoints then read. Coupled layers' scores are added, as their blocks would be. Actual
removal leaves the change where it is (:mod:`bitwright.prune.gates`) in place of spreading its
square over all directions, and adds coupled layers before squaring.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor, nn

from bitwright.curvature import traces
from bitwright.errors import BitwrightError
from bitwright.prune.edit import MATRICES
from bitwright.prune.gates import removal
from bitwright.prune.groups import Group

SCORES = ("removal", "trace")


def scores(
    model: nn.Module,
    groups: Sequence[Group],
    x: Tensor,
    *,
    score: str = "removal",
    kind: str = "kl",
    class_axis: int = 1,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """The predicted loss of removing each unit: group name -> float64 [units].

    Args:
        model: in evaluation mode; left as it is.
        groups: of :func:`bitwright.prune.coupled`; x: [n, ...] rows.
        score: one of :data:`SCORES`.
        kind, class_axis, seed: of the divergence and what its passes leave to chance.

    Raises:
        BitwrightError: an unknown score.
    """
    if score == "removal":
        found = removal(model, groups, x, kind=kind, class_axis=class_axis, seed=seed)
        return {name: 0.5 * estimate.value for name, estimate in found.items()}
    if score == "trace":
        return _hap(model, groups, x, kind, class_axis, seed)
    raise BitwrightError(f"score {score!r} is unknown; use {' or '.join(SCORES)}")


def _hap(
    model: nn.Module, groups: Sequence[Group], x: Tensor, kind: str, class_axis: int, seed: int
) -> dict[str, np.ndarray]:
    """HAP's score of each unit."""
    measured = traces(model, x, kind, class_axis=class_axis, edges=False, seed=seed).layers
    result = {}
    for group in groups:
        total = np.zeros(group.units)
        for member in group.members:
            module = model.get_submodule(member.path)
            if not member.out or not isinstance(module, MATRICES) or member.path not in measured:
                continue
            weight = module.weight.detach()
            if getattr(module, "transposed", False):
                weight = weight.transpose(0, 1)
            rows = weight.flatten(1)
            norms = rows.double().square().sum(1).numpy()
            each = measured[member.path].value / (2 * rows.shape[1]) * norms
            total += [each[list(some)].sum() for some in member.channels]
        result[group.name] = total
    return result
