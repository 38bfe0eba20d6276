"""Channels that only go together, by torch-pruning's dependency graph (DepGraph, arXiv 2301.12900).

Its tracing finds which channels of which modules a removed channel takes along: through residual
adds, concatenations, grouped and depthwise convolutions, batch-norm, flattening and attention. What
it finds is not believed: each group is cut for a trial in float64 and compared with zeros in the
same places. A group that reaches the output, or whose channels a normalization mixes, stays whole.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from bitwright.checkpoint import said
from bitwright.errors import BitwrightError
from bitwright.network import join
from bitwright.prune.edit import (
    MATRICES,
    VECTORS,
    Cut,
    Edit,
    depthwise,
    masked,
    merged,
    pruned,
    spatial,
)

#: attributes that count the heads of an attention, and those that hold their width together
_COUNTS = ("num_heads", "num_attention_heads", "heads", "n_heads", "n_head", "nhead")
_WIDTHS = ("all_head_size", "inner_dim")
#: relative difference of a trial from zeros in the same places, in float64 and in float32
_EQUAL, _EQUAL_SINGLE = 1e-9, 1e-4


@dataclass(frozen=True)
class Member:
    """A module's part in a group.

    Attributes:
        path: of the module.
        out: whether its output channels, or its input channels.
        channels: of each unit, which channels of the module.
    """

    path: str
    out: bool
    channels: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Group:
    """Channels that are removed together, unit by unit.

    Attributes:
        name: path of the first layer that makes them.
        kind: `channels`, or `heads` of an attention.
        members: every module with a part.
        counts: (path, attribute, now) of numbers that a forward reads, proportional to the units.
    """

    name: str
    kind: str
    members: tuple[Member, ...]
    counts: tuple[tuple[str, str, int], ...] = ()

    @property
    def units(self) -> int:
        """What can be removed by itself."""
        return len(self.members[0].channels)

    @property
    def consumers(self) -> tuple[Member, ...]:
        """Members that read the channels."""
        return tuple(m for m in self.members if not m.out)


@dataclass(frozen=True)
class Coupling:
    """What of a model can be removed.

    Attributes:
        groups: in the order of the forward pass.
        whole: layer path -> why its channels stay.
        filters: paths of the convolutions whose k×k filters an implant can replace.
    """

    groups: tuple[Group, ...]
    whole: Mapping[str, str]
    filters: frozenset[str] = frozenset()

    def edit(
        self,
        removed: Mapping[str, Iterable[int]],
        implanted: Mapping[str, Iterable[int]] | None = None,
        *,
        rank: int = 0,
    ) -> Edit:
        """The edit that takes units out and gives others implants: group name -> units.

        `rank` is that of the implants.
        """
        cuts: list[Cut] = []
        attributes: list[tuple[str, str, int]] = []
        orders: list[Cut] = []
        implants: list[tuple[str, int, int]] = []
        for group in self.groups:
            units = sorted(set(removed.get(group.name, ())))
            last = sorted(set((implanted or {}).get(group.name, ())))
            if last:
                stay = [u for u in range(group.units) if u not in units and u not in last] + last
                for m in group.members:
                    orders.append(_order(m, stay))
                    if m.out and m.path in self.filters:
                        implants.append((m.path, len(last), rank))
            if not units:
                continue
            for m in group.members:
                cuts.append(Cut(m.path, m.out, tuple(c for u in units for c in m.channels[u])))
            left = group.units - len(units)
            attributes += [(path, name, n * left // group.units) for path, name, n in group.counts]
        return Edit(merged(cuts), tuple(attributes), (), tuple(orders), tuple(implants))


def _order(member: Member, units: Sequence[int]) -> Cut:
    """Places, among the channels that stay, of the units in a new order."""
    stays = sorted(c for u in units for c in member.channels[u])
    place = {c: i for i, c in enumerate(stays)}
    return Cut(member.path, member.out, tuple(place[c] for u in units for c in member.channels[u]))


def coupled(model: nn.Module, x: Tensor, skip: Sequence[str] = ()) -> Coupling:
    """The groups of a model.

    Args:
        model: any module; left as it is.
        x: two rows or more, as the model takes them; cost: a few forward passes of two rows each.
        skip: layers to leave whole (a name, or a prefix ending in `.`), with all that is coupled.

    Raises:
        BitwrightError: the model cannot be traced, or the channels of a layer cannot be cut; the
            layer's path is named, and `skip` leaves it whole.
    """
    found, whole = _traced(model, x[:2])
    for name in skip:
        if not any(_matches(p, name) for p, _ in model.named_modules() if p):
            raise BitwrightError(f"--skip {name} matches no layer of the model")
    groups = []
    for group in found:
        if any(_matches(m.path, s) for m in group.members if m.out for s in skip):
            whole[group.name] = "left whole as asked"
        else:
            groups.append(group)
    groups, ends = _tried(model, x[:2], groups)
    order = {path: i for i, (path, _) in enumerate(model.named_modules())}
    groups.sort(key=lambda g: order[g.name])
    if not groups:
        said_of = "; ".join(f"{k}: {v}" for k, v in list({**whole, **ends}.items())[:3])
        raise BitwrightError(f"no channel of the model can be removed ({said_of})")
    filters = frozenset(path for path, m in model.named_modules() if spatial(m))
    return Coupling(tuple(groups), {**whole, **ends}, filters)


def _matches(path: str, name: str) -> bool:
    return path == name or (name.endswith(".") and path.startswith(name))


def _traced(model: nn.Module, x: Tensor) -> tuple[list[Group], dict[str, str]]:
    """Groups as torch-pruning sees them, and what stays whole."""
    import torch_pruning as tp

    copied = copy.deepcopy(model).cpu().eval().requires_grad_(True)
    graph = tp.DependencyGraph()
    failing: list[str] = []
    hooks = _watched(copied, failing)
    try:
        with torch.enable_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph.build_dependency(
                copied, x, forward_fn=lambda m, rows: join(m(rows)), verbose=False
            )
            found = list(graph.get_all_groups())
    except Exception as error:
        at = failing[-1] if failing else type(model).__name__
        raise BitwrightError(
            f"module {at!r} cannot be traced for pruning: {said(error)}; prune a model whose "
            "forward pass runs on its own rows"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    names = {module: path for path, module in copied.named_modules()}
    groups, whole = [], {}
    for each in found:
        root = names[each[0].dep.target.module]
        group = _group(root, each, names, graph)
        if isinstance(group, str):
            whole[root] = group
        else:
            groups.append(_heads(copied, group))
    return groups, whole


def _watched(model: nn.Module, failing: list[str]) -> list[Any]:
    """Hooks that keep the stack of modules being called: the last one is where an error was."""

    def enter(path: str) -> Any:
        return lambda *_: failing.append(path)

    def leave(*_: Any) -> None:
        failing.pop()

    hooks = []
    for path, module in model.named_modules():
        if path:
            hooks.append(module.register_forward_pre_hook(enter(path)))
            hooks.append(module.register_forward_hook(leave))
    return hooks


def _group(root: str, items: Any, names: Mapping[nn.Module, str], graph: Any) -> Group | str:
    """A group in our words, or why its channels stay."""
    members: list[tuple[str, bool, dict[int, list[int]]]] = []
    width, parts = len(items[0].idxs), 1
    for item in items:
        module = item.dep.target.module
        if isinstance(module, nn.Parameter):
            return "a parameter outside of layers holds a number for each channel"
        if module not in names:  # an operation without parameters
            continue
        if not isinstance(module, MATRICES + VECTORS):
            return f"the {type(module).__name__} {names[module]} mixes the channels"
        if None in item.root_idxs:
            return f"the trace loses the channels on their way to {names[module]}"
        places: dict[int, list[int]] = {}
        for root_index, index in zip(item.root_idxs, item.idxs, strict=True):
            places.setdefault(int(root_index), []).append(int(index))
        out = graph.is_out_channel_pruning_fn(item.dep.handler)
        members.append((names[module], out, places))
        if isinstance(module, nn.modules.conv._ConvNd) and not depthwise(module):
            parts = max(parts, module.groups)
    step = width // parts
    units = [[j + g * step for g in range(parts)] for j in range(step)]
    return Group(
        root,
        "channels",
        tuple(
            Member(
                path, out, tuple(tuple(sorted(c for r in u for c in p.get(r, ()))) for u in units)
            )
            for path, out, p in members
        ),
    )


def _heads(model: nn.Module, group: Group) -> Group:
    """The group by heads, where several linear layers of a module with heads make its channels."""
    makers = [
        m for m in group.members if m.out and isinstance(model.get_submodule(m.path), nn.Linear)
    ]
    parents = {m.path.rpartition(".")[0] for m in makers}
    widths = {len(m.channels) for m in makers}
    if len(makers) < 2 or len(parents) > 1 or len(widths) > 1:
        return group
    path, width = parents.pop(), widths.pop()
    parent = model.get_submodule(path)
    for name in _COUNTS:
        heads = getattr(parent, name, None)
        if isinstance(heads, int) and heads > 1 and width % heads == 0:
            counts = [(path, name, heads)]
            counts += [(path, n, width) for n in _WIDTHS if getattr(parent, n, None) == width]
            return replace(
                group, kind="heads", members=_joined(group, width // heads), counts=tuple(counts)
            )
    return group


def _joined(group: Group, size: int) -> tuple[Member, ...]:
    """Members with `size` units in a row as one."""
    return tuple(
        replace(
            m,
            channels=tuple(
                tuple(c for u in m.channels[a : a + size] for c in u)
                for a in range(0, len(m.channels), size)
            ),
        )
        for m in group.members
    )


def _tried(
    model: nn.Module, x: Tensor, groups: Sequence[Group]
) -> tuple[list[Group], dict[str, str]]:
    """The groups that can be cut, after a trial; those that end in the output, with the reason."""
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
