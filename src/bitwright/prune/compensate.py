"""What stays makes up for what is gone: least squares for the layers that read removed channels.

Such a layer keeps the columns W_S of its inputs x_S. With the pruned network's inputs x_S (pruning
further up has changed them already) and the outputs y that the layer had in the model,

    min over (V, b) of  E‖y − V x_S − b‖² + λ ‖V − W_S‖²,   λ = damping · mean E[x_i²],

layer after layer in the order of the forward pass, each seeing what those before it leave: the
reconstruction of ThiNet and of Optimal Brain Surgeon, for all columns at once. The bias takes up
the mean; a layer without one gets one, which folds into batch-norm on export. Implants are fitted
on the way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from bitwright.prune.edit import Edit, add_bias, kept
from bitwright.prune.implant import Implanted, fit
from bitwright.prune.least_squares import CONVOLUTIONS, fill, moments
from bitwright.prune.sizes import positions


def compensated(
    model: nn.Module,
    pruned: nn.Module,
    edit: Edit,
    x: Tensor,
    *,
    damping: float = 1e-2,
    refit: bool = True,
    implants: bool = True,
    chunk: int = 64,
    seed: int = 0,
    progress: Callable[[float], None] | None = None,
) -> Edit:
    """Refit the layers of `pruned`, in place, that read less than they did.

    Args:
        model: as it was; pruned: by `edit`, from :func:`bitwright.prune.pruned`.
        x: [n, ...] rows; some hundreds do. Cost: for each such layer a forward pass of both up to
            it, and a solve in its fan-in.
        damping: λ.
        refit: whether layers are refitted; implants: whether implants are, which start at zero.
        chunk: rows in a pass; seed: of the positions looked at.
        progress: called with the finished fraction.

    Returns:
        The edit with the biases that were added.
    """
    less = {cut.path for cut in edit.cuts if not cut.out} if refit else set()
    replaced = {path: count for path, count, _ in edit.implants}
    layers = [
        path
        for path in positions(model, x[:1])
        if (path in less and _solvable(model.get_submodule(path)))
        or (path in replaced and implants)
    ]
    generator = torch.Generator().manual_seed(seed)
    biases = list(edit.biases)
    pieces = x.split(chunk)
    for i, path in enumerate(layers):
        module: Any = pruned.get_submodule(path)
        rows = kept(model, edit, path, True)
        if isinstance(module, Implanted):
            rows, last = rows[: -replaced[path]], rows[-replaced[path] :]
            if implants:
                fit(model, pruned, path, last, pieces, generator)
            module = module.full
        if path in less:
            if module.bias is None:
                add_bias(module, path)
                biases.append(path)
            gram, cross = moments(model, pruned, path, rows, pieces, generator, module)
            fill(module, gram, cross, damping)
        if progress:
            progress((i + 1) / len(layers))
    return replace(edit, biases=tuple(dict.fromkeys(biases)))


def _solvable(module: nn.Module) -> bool:
    """Layers whose inputs can be laid out as columns; others are left as they are."""
    if isinstance(module, nn.Linear):
        return True
    known = isinstance(module, CONVOLUTIONS)
    return known and module.padding_mode == "zeros" and not isinstance(module.padding, str)
