"""What stays makes up for what is gone: least squares for the layers that read removed channels.

Such a layer keeps the columns W_S of its inputs x_S. With the pruned network's inputs x_S (pruning
further up has changed them already) and the outputs y that the layer had in the model,

    min over (V, b) of  E‖y − V x_S − b‖² + λ ‖V − W_S‖²,   λ = damping · mean E[x_i²],

layer after layer in the order of the forward pass, each seeing what those before it leave: the
reconstruction of ThiNet and of Optimal Brain Surgeon, for all columns at once. The bias takes up
the mean; a layer without one gets one, which folds into batch-norm on export.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bitwright.prune.edit import MATRICES, Edit, add_bias, kept

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
#: positions of a sample that are looked at, of more than these a random choice
_POSITIONS = 32


class _Enough(Exception):
    """The layer of interest has been reached."""


def compensated(
    model: nn.Module,
    pruned: nn.Module,
    edit: Edit,
    x: Tensor,
    *,
    damping: float = 1e-2,
    chunk: int = 64,
    seed: int = 0,
    progress: Callable[[float], None] | None = None,
) -> Edit:
    """Refit the layers of `pruned`, in place, that read less than they did.

    Args:
        model: as it was; pruned: by `edit`, from :func:`bitwright.prune.pruned`.
        x: [n, ...] rows; some hundreds do. Cost: for each such layer a forward pass of both up to
            it, and a solve in its fan-in.
        damping: λ; chunk: rows in a pass; seed: of the positions looked at.

    Returns:
        The edit with the biases that were added.
    """
    layers = [
        cut.path
        for cut in edit.cuts
        if not cut.out and _solvable(pruned.get_submodule(cut.path), cut.path)
    ]
    layers = [path for path in _called(pruned, x[:1]) if path in layers]
    generator = torch.Generator().manual_seed(seed)
    biases = list(edit.biases)
    for i, path in enumerate(layers):
        module = pruned.get_submodule(path)
        if getattr(module, "bias", None) is None:
            add_bias(module, path)
            biases.append(path)
        rows = kept(model, edit, path, True)
        gram, cross = _moments(model, pruned, path, rows, x.split(chunk), generator)
        _solve(module, gram, cross, damping)
        if progress:
            progress((i + 1) / len(layers))
    return replace(edit, biases=tuple(dict.fromkeys(biases)))


def _solvable(module: nn.Module, path: str) -> bool:
    """Layers whose inputs can be laid out as columns; others are left as they are."""
    if isinstance(module, nn.Linear):
        return True
    known = isinstance(module, CONVOLUTIONS)
    return known and module.padding_mode == "zeros" and not isinstance(module.padding, str)


def _called(model: nn.Module, x: Tensor) -> list[str]:
    """Paths of the layers in the order of the forward pass; of one called twice the first call."""
    found: dict[str, None] = {}
    hooks = [
        module.register_forward_hook(lambda *_, path=path: found.setdefault(path))
        for path, module in model.named_modules()
        if isinstance(module, MATRICES)
    ]
    try:
        with torch.no_grad():
            model(x)
    finally:
        for hook in hooks:
            hook.remove()
    return list(found)


def _seen(model: nn.Module, path: str, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Input and output of a layer's first call."""
    found: list[tuple[Tensor, Tensor]] = []

    def hook(_: nn.Module, inputs: Any, output: Tensor) -> None:
        found.append((inputs[0], output))
        raise _Enough

    handle = model.get_submodule(path).register_forward_hook(hook)
    try:
        with torch.no_grad():
            model(rows)
    except _Enough:
        pass
    finally:
        handle.remove()
    return found[0]


def _moments(
    model: nn.Module,
    pruned: nn.Module,
    path: str,
    rows: Tensor,
    pieces: Any,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """`E[(x, 1)(x, 1)ᵀ]` and `E[(x, 1) yᵀ]`, float64 [groups, fan_in + 1, fan_in + 1 or rows]."""
    gram = cross = torch.zeros(())
    count = 0
    module = pruned.get_submodule(path)
    for piece in pieces:
        _, wanted = _seen(model, path, piece)
        x, _ = _seen(pruned, path, piece)
        for a, y in columns(module, x, wanted, rows, generator):
            one = torch.cat([a, a.new_ones(*a.shape[:2], 1)], 2)
            gram = gram + (one.mT @ one).double()
            cross = cross + (one.mT @ y).double()
            count += a.shape[1]
    return gram / count, cross / count


def columns(
    module: nn.Module, x: Tensor, y: Tensor, rows: Tensor, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """What the weights multiply and what came out: [groups, samples, fan_in] and [… , rows].

    Args:
        module: linear, or a convolution of any dimension; x: its input.
        y: outputs, of which the channels `rows` count; generator: of the positions looked at.
    """
    if isinstance(module, nn.Linear):
        yield x.reshape(1, -1, x.shape[-1]), y[..., rows].reshape(1, -1, len(rows))
        return
    groups = module.groups
    wanted = y[:, rows].flatten(2)
    some = torch.randperm(wanted.shape[2], generator=generator)[:_POSITIONS]
    found = windows(module, x, y.shape[2:], some)
    found = found.unflatten(1, (groups, -1)).permute(1, 0, 3, 2, 4)  # groups, n, positions, …
    wanted = wanted[:, :, some].unflatten(1, (groups, -1)).permute(1, 0, 3, 2)
    yield found.flatten(3).flatten(1, 2), wanted.flatten(1, 2)


def windows(module: Any, x: Tensor, size: Sequence[int], some: Tensor) -> Tensor:
    """What a convolution's kernel covers at some output positions: [n, C, positions, kernel].

    Args:
        module: a convolution; x: [n, C, ...] its input.
        size: of its output's space; some: positions there, counted row by row.
    """
    x = F.pad(x, [p for pair in reversed(module.padding) for p in (pair, pair)])
    index = torch.zeros(len(some), 1, dtype=torch.int64)
    rest = some
    stride = 1
    axes = list(zip(size, x.shape[2:], module.kernel_size, module.stride, module.dilation,
                    strict=True))  # fmt: skip
    for out, width, kernel, step, dilation in reversed(axes):
        at = (rest % out * step)[:, None] + torch.arange(kernel) * dilation
        index = (at[:, :, None] * stride + index[:, None, :]).flatten(1)
        rest, stride = rest // out, stride * width
    return x.flatten(2)[:, :, index]


def _solve(module: nn.Module, gram: Tensor, cross: Tensor, damping: float) -> None:
    """Put the minimizer into the module's weight and bias."""
    assert isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)
    weight = module.weight.detach().flatten(1).double()
    groups = len(gram)
    before = weight.unflatten(0, (groups, -1)).mT  # [groups, fan_in, rows]
    before = torch.cat([before, before.new_zeros(groups, 1, before.shape[2])], 1)
    fan_in = weight.shape[1]
    diagonal = gram.diagonal(dim1=1, dim2=2)[:, :fan_in].mean(1).clamp(min=1e-30)
    ridge = torch.ones(groups, fan_in + 1, dtype=torch.float64) * damping * diagonal[:, None]
    ridge[:, fan_in] = 1e-12  # the bias is free
    found = before + torch.linalg.solve(gram + torch.diag_embed(ridge), cross - gram @ before)
    with torch.no_grad():
        module.weight.copy_(found[:, :fan_in].mT.flatten(0, 1).reshape(module.weight.shape))
        assert module.bias is not None
        module.bias.copy_(found[:, fan_in].flatten())
