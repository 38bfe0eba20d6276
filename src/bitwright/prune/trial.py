"""Trials of what a trace found: groups are cut, and compared with zeros in the same places."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bitwright.checkpoint import said
from bitwright.errors import BitwrightError
from bitwright.network import join
from bitwright.prune.edit import masked, pruned
from bitwright.prune.groups import Coupling, Group

#: relative difference of a trial from zeros in the same places, in float64 and in float32
_EQUAL, _EQUAL_SINGLE = 1e-9, 1e-4


def tried(
    model: nn.Module, x: Tensor, groups: Sequence[Group]
) -> tuple[list[Group], dict[str, str]]:
    """The groups that can be cut, after a trial; those that end in the output, with the reason.

    Raises:
        BitwrightError: some are coupled otherwise than the trace says.
    """
    whole = {g.name: "it has a single channel" for g in groups if g.units < 2}
    some = [g for g in groups if g.units > 1]
    double, rows, limit = _doubled(model, x)
    with torch.no_grad():
        before = join(double(rows))
    if some and _trial(double, rows, some, before.shape, limit) is None:
        return some, whole
    found, wrong = [], {}
    for group in some:
        why = _trial(double, rows, [group], before.shape, limit)
        if why == "output":
            whole[group.name] = "its channels are the model's output"
        elif why is None:
            found.append(group)
        else:
            wrong[group.name] = why
    if wrong:
        first, why = next(iter(wrong.items()))
        more = f" (and {len(wrong) - 1} more: {', '.join(list(wrong)[1:4])})" * (len(wrong) > 1)
        raise BitwrightError(
            f"the channels of {first!r}{more} cannot be cut: {why}; leave them whole with "
            f"{' '.join(f'--skip {name}' for name in wrong)}"
        )
    return found, whole


def _doubled(model: nn.Module, x: Tensor) -> tuple[nn.Module, Tensor, float]:
    """The model in float64 with its rows, where it runs so."""
    double = copy.deepcopy(model).cpu().eval().double()
    rows = x.double() if x.is_floating_point() else x
    try:
        with torch.no_grad():
            double(rows)
    except Exception:  # it makes float32 tensors of its own
        return copy.deepcopy(model).cpu().eval(), x, _EQUAL_SINGLE
    return double, rows, _EQUAL


def _trial(
    model: nn.Module, x: Tensor, groups: Sequence[Group], shape: torch.Size, limit: float
) -> str | None:
    """Cut every other unit of the groups: None if that equals zeros there, else what is wrong."""
    coupling = Coupling(tuple(groups), {})
    edit = coupling.edit({g.name: range(0, g.units, 2) for g in groups})
    try:
        with torch.no_grad():
            found = join(pruned(model, edit)(x))
            wanted = join(masked(model, edit)(x))
    except Exception as error:
        return f"without some of them the forward pass fails ({said(error)})"
    if found.shape != shape:
        return "output"
    apart = float((found - wanted).abs().max() / wanted.abs().max().clamp(min=1e-30))
    if not apart <= limit:
        return f"the network without them differs from one with zeros in their place by {apart:.1g}"
    return None
