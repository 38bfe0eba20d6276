"""Channels that only go together, by torch-pruning's dependency graph (DepGraph, arXiv 2301.12900).

Its tracing finds which channels of which modules a removed channel takes along: through residual
adds, concatenations, grouped and depthwise convolutions, batch-norm, flattening and attention. What
it finds is not believed: each group is cut for a trial in float64 and compared with zeros in the
same places. A group that reaches the output, or whose channels a normalization mixes, stays whole.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from bitwright.checkpoint import said
from bitwright.errors import BitwrightError
from bitwright.network import join
from bitwright.prune.edit import MATRICES, VECTORS, depthwise, spatial
from bitwright.prune.groups import Coupling, Group, Member
from bitwright.prune.trial import tried

#: attributes that count the heads of an attention, and those that hold their width together
_COUNTS = ("num_heads", "num_attention_heads", "heads", "n_heads", "n_head", "nhead")
_WIDTHS = ("all_head_size", "inner_dim")


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
    groups, ends = tried(model, x[:2], groups)
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
