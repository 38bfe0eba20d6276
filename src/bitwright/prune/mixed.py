"""One plan of removed, implanted and quantized channels, by the knapsack that also chooses bits.

Each unit of a group is an item with the choices `removed`, `implant` and 1 to 8 bits, each with its
predicted loss and its bits; rows of layers that make no removable channels are items with 1 to 8
bits. A unit that stays costs its own rows, and its columns in the layers that read it at the mean
width, since these go with it. What is removed loses its score times the share that refits leave,
which the caller has measured; an implant loses as much of that as it leaves of its channels'
variance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from bitwright.allocate import Plan, Problem, knapsack
from bitwright.prune.edit import MATRICES, spatial
from bitwright.prune.groups import Coupling, Group
from bitwright.prune.implant import implantable
from bitwright.prune.least_squares import columns, moments, solved
from bitwright.prune.select import Selection

#: choices of an item: removed, an implant of 8 bits, then 1 to 8 bits
REMOVED, IMPLANT = 1, 2
CHOICES = tuple(range(1, 11))
IMPLANT_BITS = 8


@dataclass(frozen=True)
class Rows:
    """What the quantizer knows of every row of every layer.

    Attributes:
        layers: layer path -> places of its rows among all.
        loss, bits: float64 and int64 [rows, 8], at each width.
        budget: on the bits.
    """

    layers: Mapping[str, slice]
    loss: np.ndarray
    bits: np.ndarray
    budget: int


def mixed(
    model: nn.Module,
    coupling: Coupling,
    rows: Rows,
    scores: Mapping[str, np.ndarray],
    left: float,
    x: Tensor,
    *,
    floor: float = 0.05,
) -> tuple[Selection, Plan]:
    """Units to remove and to implant such that all fits the budget with the least predicted loss.

    Args:
        model, coupling: to prune; x: a few hundred rows.
        rows: of the model as it is.
        scores: predicted loss of each unit's removal; left: the share of it that refits leave.
        floor: share of a group's units that are not removed.

    Returns:
        The units, and the whole plan: labels of :data:`CHOICES`.

    Raises:
        BitwrightError: the budget is below what can be had.
    """
    mean = rows.budget / max(float(rows.bits[:, 0].sum()), 1.0)
    names: list[str] = []
    loss: list[np.ndarray] = []
    cost: list[np.ndarray] = []
    allowed: list[np.ndarray] = []
    free = np.ones(len(rows.loss), dtype=bool)
    credit = 0
    for group in coupling.groups:
        shares = _left_by_implants(model, group, x) if implantable(model, group) else None
        keep = max(1, int(np.ceil(floor * group.units)))
        fixed = set(np.argsort(-scores[group.name], kind="stable")[:keep].tolist())
        for unit in range(group.units):
            own = _own(group, unit, rows, model)
            free[own] = False
            reading = round(mean * _reading(group, unit, model))
            gone = left * float(scores[group.name][unit])
            part = 1.0 if shares is None else float(shares[unit])
            own_bits = rows.bits[own].sum(0)
            small = round(IMPLANT_BITS * own_bits[0] * _thin(group, model)) + reading
            names.append(f"{group.name}[{unit}]")
            loss.append(np.concatenate([[gone, gone * part], rows.loss[own].sum(0)]))
            cost.append(np.concatenate([[0, small], own_bits + reading]))
            credit += reading
            can = np.ones(len(CHOICES), dtype=bool)
            can[0], can[1] = unit not in fixed, shares is not None
            allowed.append(can)
    for place in np.flatnonzero(free):
        names.append(f"row {place}")
        loss.append(np.concatenate([[0.0, 0.0], rows.loss[place]]))
        cost.append(np.concatenate([[0, 0], rows.bits[place]]))
        allowed.append(np.array([False, False, *[True] * 8]))
    plan = knapsack(_problem(names, loss, cost, allowed, rows.budget + credit), "mixed")
    chosen = np.asarray(plan.bits)
    removed: dict[str, tuple[int, ...]] = {}
    implanted: dict[str, tuple[int, ...]] = {}
    at = 0
    for group in coupling.groups:
        some = chosen[at : at + group.units]
        at += group.units
        for label, found in ((REMOVED, removed), (IMPLANT, implanted)):
            if (some == label).any():
                found[group.name] = tuple(int(u) for u in np.flatnonzero(some == label))
    return Selection(removed, implanted), plan


def _problem(
    names: Sequence[str],
    loss: Sequence[np.ndarray],
    cost: Sequence[np.ndarray],
    allowed: Sequence[np.ndarray],
    budget: int,
) -> Problem:
    """An implant that costs more than some width is still one choice: costs may not fall."""
    costs = np.stack(cost).astype(np.int64)
    can = np.stack(allowed)
    for i in np.flatnonzero(can[:, 1]):  # no more than the narrowest width costs, or it is none
        can[i, 1] &= bool(costs[i, 1] <= costs[i, 2])
    costs[:, 1] = np.minimum(costs[:, 1], costs[:, 2])
    return Problem(
        tuple(names), CHOICES, np.stack(loss), costs, int(budget), can, np.arange(len(names))
    )


def _own(group: Group, unit: int, rows: Rows, model: nn.Module) -> list[int]:
    """Places of the rows that make a unit."""
    return [
        rows.layers[m.path].start + c
        for m in group.members
        if m.out and isinstance(model.get_submodule(m.path), MATRICES) and m.path in rows.layers
        for c in m.channels[unit]
    ]


def _reading(group: Group, unit: int, model: nn.Module) -> float:
    """Weights that read a unit."""
    total = 0.0
    for m in group.consumers:
        weight = model.get_submodule(m.path).weight
        assert isinstance(weight, Tensor)
        total += weight.numel() / weight.shape[1] * len(m.channels[unit])
    return total


def _thin(group: Group, model: nn.Module) -> float:
    """An implant's weights, as a share of its filters'."""
    sizes = [m.path for m in group.members if m.out and spatial(model.get_submodule(m.path))]
    kernels = [model.get_submodule(path).weight[0, 0].numel() for path in sizes]  # type: ignore
    return 1 / max(kernels, default=1)


def _left_by_implants(model: nn.Module, group: Group, x: Tensor) -> np.ndarray:
    """The share of each unit's variance that a 1×1 convolution of the same inputs does not give."""
    worst = np.zeros(group.units)
    for member in group.members:
        conv = model.get_submodule(member.path)
        if not member.out or not isinstance(conv, nn.Conv1d | nn.Conv2d) or not spatial(conv):
            continue
        kind = type(conv)
        point = kind(conv.in_channels, conv.out_channels, 1, stride=conv.stride)  # type: ignore
        every = torch.arange(conv.out_channels)
        generator = torch.Generator().manual_seed(0)
        gram, cross = moments(model, model, member.path, every, x.split(64), generator, point)
        weight, bias = solved(torch.zeros_like(point.weight), gram, cross, 1e-3)
        seen: list[tuple[Tensor, Tensor]] = []
        hook = conv.register_forward_hook(lambda _, i, o, seen=seen: seen.append((i[0], o)))
        try:
            with torch.no_grad():
                model(x[:64])
        finally:
            hook.remove()
        with torch.no_grad():
            for a, y in columns(point, *seen[0], every, generator):
                found = a[0].double() @ weight.flatten(1).T + bias
                rest = (y[0].double() - found).square().mean(0) / y[0].double().var(0).clamp(1e-30)
                each = rest.clamp(0, 1).numpy()
                worst = np.maximum(worst, [each[list(u)].max() for u in member.channels])
    return worst
