"""Cuts: which channels of which modules go, for real (by torch-pruning's editors) or by zeros."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bitwright.errors import BitwrightError

#: modules whose parameters and buffers are one number a channel
VECTORS = (nn.modules.batchnorm._BatchNorm, nn.PReLU)
#: modules with a weight of output and input channels
MATRICES = (nn.modules.conv._ConvNd, nn.Linear)


@dataclass(frozen=True)
class Cut:
    """Channels that a module loses.

    Attributes:
        path: of the module.
        out: whether its outputs (and what it keeps for each of them), or its inputs.
        channels: ascending.
    """

    path: str
    out: bool
    channels: tuple[int, ...]


@dataclass(frozen=True)
class Edit:
    """What turns a module of the user's factory into the pruned one: nothing but names and numbers.

    Attributes:
        cuts: one for each module and side.
        attributes: (module path, attribute, new value) of counts of heads that a forward reads.
        biases: paths of layers that get a bias, which compensation fills.
        orders: how the channels that stay are put in another order, so that those with implants
            come last: cuts whose channels are places after the cuts, in the new order.
        implants: (path, channels at the end, rank) of convolutions with implants.
    """

    cuts: tuple[Cut, ...] = ()
    attributes: tuple[tuple[str, str, int], ...] = ()
    biases: tuple[str, ...] = ()
    orders: tuple[Cut, ...] = ()
    implants: tuple[tuple[str, int, int], ...] = ()


def merged(cuts: Iterable[Cut]) -> tuple[Cut, ...]:
    """One cut for each module and side."""
    found: dict[tuple[str, bool], set[int]] = {}
    for cut in cuts:
        found.setdefault((cut.path, cut.out), set()).update(cut.channels)
    return tuple(Cut(path, out, tuple(sorted(c))) for (path, out), c in found.items() if c)


def depthwise(module: nn.Module) -> bool:
    """Whether every output channel of a convolution reads one input channel, the same."""
    conv = isinstance(module, nn.modules.conv._ConvNd)
    return conv and module.groups == module.out_channels == module.in_channels > 1  # type: ignore


def spatial(module: nn.Module) -> bool:
    """Whether a convolution's windows have a middle: k odd, padded by half of it with zeros."""
    if not isinstance(module, nn.Conv1d | nn.Conv2d) or point(module):
        return False
    if module.padding_mode != "zeros" or isinstance(module.padding, str):
        return False
    shape = zip(module.kernel_size, module.padding, module.dilation, strict=True)
    return all(k % 2 == 1 and p == d * (k - 1) // 2 for k, p, d in shape)


def point(module: Any) -> bool:
    """Whether a convolution's filters are 1×1."""
    return all(k == 1 for k in module.kernel_size)


def slots(module: nn.Module, out: bool) -> list[tuple[str, int]]:
    """Names of the module's tensors that have an axis of these channels, and the axis.

    Raises:
        BitwrightError: a type of module whose channels cannot be cut.
    """
    if isinstance(module, VECTORS):
        own = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        return [(name, 0) for name, value in own.items() if value.ndim]
    if isinstance(module, MATRICES):
        if not out:
            return [("weight", 0 if getattr(module, "transposed", False) else 1)]
        found = [("weight", 1 if getattr(module, "transposed", False) else 0)]
        return [*found, ("bias", 0)] if module.bias is not None else found
    raise BitwrightError(f"a {type(module).__name__} has no channels that can be cut")


def within(module: nn.Module, cut: Cut) -> tuple[int, ...]:
    """The cut's places along the tensors' axis: of grouped inputs, those within a group."""
    groups = getattr(module, "groups", 1)
    if cut.out or groups == 1 or not isinstance(module, nn.modules.conv._ConvNd):
        return cut.channels
    return tuple(sorted({c % (module.in_channels // groups) for c in cut.channels}))


def masked(model: nn.Module, edit: Edit) -> nn.Module:
    """A copy with zeros where the edit cuts: the same function, the same shapes as before."""
    found = copy.deepcopy(model)
    with torch.no_grad():
        for cut in edit.cuts:
            module = found.get_submodule(cut.path)
            for name, axis in slots(module, cut.out):
                if name not in ("running_mean", "running_var"):
                    place = torch.tensor(within(module, cut))
                    getattr(module, name).index_fill_(axis, place, 0.0)
    return found


def pruned(model: nn.Module, edit: Edit) -> nn.Module:
    """A copy without the channels that the edit cuts; new biases are zero.

    Raises:
        BitwrightError: the edit is not one of this model.
    """
    found = copy.deepcopy(model)
    for cut in edit.cuts:
        _cut(_module(found, cut.path), cut)
    for path, name, value in edit.attributes:
        setattr(_module(found, path), name, value)
    for path in edit.biases:
        add_bias(_module(found, path), path)
    for each in edit.orders:
        _reorder(_module(found, each.path), each)
    for path, count, rank in edit.implants:
        _implant(found, path, count, rank)
    return found


def _reorder(module: nn.Module, order: Cut) -> None:
    for name, axis in slots(module, order.out):
        value = getattr(module, name)
        if sorted(order.channels) != list(range(value.shape[axis])):
            raise BitwrightError(
                f"{order.path}: the order is not one of its {value.shape[axis]} channels; use the "
                "factory that the network was pruned with"
            )
        with torch.no_grad():
            value.copy_(value.index_select(axis, torch.tensor(order.channels)))


def _implant(model: nn.Module, path: str, count: int, rank: int) -> None:
    from bitwright.prune.implant import split

    module = _module(model, path)
    if not spatial(module) or not 0 < count < module.out_channels:  # type: ignore[operator]
        raise BitwrightError(
            f"{path} takes no implant of {count} channels; use the factory that the network was "
            "pruned with"
        )
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, split(module, count, rank))  # type: ignore


def _module(model: nn.Module, path: str) -> nn.Module:
    try:
        return model.get_submodule(path)
    except AttributeError:
        raise BitwrightError(
            f"the model has no module {path!r}; use the factory that the network was pruned with"
        ) from None


def add_bias(module: nn.Module, path: str) -> None:
    """A bias of zeros for a layer that has none."""
    if not isinstance(module, MATRICES):
        raise BitwrightError(f"{path} is a {type(module).__name__}, which takes no bias")
    if module.bias is None:
        weight = module.weight
        module.bias = nn.Parameter(weight.new_zeros(_width(module, True)))


def _cut(module: nn.Module, cut: Cut) -> None:
    """Take the channels out, by torch-pruning's editor for this type of module."""
    import torch_pruning as tp

    width = _width(module, cut.out)
    if not cut.channels or cut.channels[0] < 0 or cut.channels[-1] >= width:
        raise BitwrightError(
            f"{cut.path}: channels {cut.channels[:3]}… are not among its {width}; use the factory "
            "that the network was pruned with"
        )
    if len(cut.channels) == width:
        raise BitwrightError(f"{cut.path}: all {width} channels would go; keep one at least")
    editor = tp.pruner.function.PrunerBox[tp.ops.module2type(module)]
    act = editor.prune_out_channels if cut.out else editor.prune_in_channels
    act(module, list(cut.channels))


def _width(module: nn.Module, out: bool) -> int:
    """How many channels a module has on one side."""
    names = ("out_channels", "out_features") if out else ("in_channels", "in_features")
    for name in (*names, "num_features", "num_parameters"):
        if hasattr(module, name):
            return int(getattr(module, name))
    raise BitwrightError(f"a {type(module).__name__} has no channels that can be cut")


def kept(model: nn.Module, edit: Edit, path: str, out: bool) -> Tensor:
    """Which channels of `model` stay on one side of a module, in the order they then have."""
    gone = {c for cut in edit.cuts if (cut.path, cut.out) == (path, out) for c in cut.channels}
    width = _width(model.get_submodule(path), out)
    stay = torch.tensor([c for c in range(width) if c not in gone])
    orders = [o.channels for o in edit.orders if (o.path, o.out) == (path, out)]
    return stay[list(orders[0])] if orders else stay


def to_json(edit: Edit) -> dict[str, object]:
    """As plain lists, for a file."""
    return {
        "cuts": [{"path": c.path, "out": c.out, "channels": list(c.channels)} for c in edit.cuts],
        "attributes": [list(a) for a in edit.attributes],
        "biases": list(edit.biases),
        "orders": [
            {"path": c.path, "out": c.out, "channels": list(c.channels)} for c in edit.orders
        ],
        "implants": [list(i) for i in edit.implants],
    }


def from_json(found: Mapping[str, object]) -> Edit:
    """The edit that :func:`to_json` wrote.

    Raises:
        BitwrightError: it is something else.
    """
    try:
        cuts = tuple(
            Cut(str(c["path"]), _flag(c["out"]), _numbers(c["channels"]))
            for c in _list(found["cuts"])
        )
        attributes = tuple(
            (str(a[0]), str(a[1]), _number(a[2])) for a in _list(found["attributes"])
        )
        orders = tuple(
            Cut(str(c["path"]), _flag(c["out"]), tuple(map(_number, _list(c["channels"]))))
            for c in _list(found["orders"])
        )
        implants = tuple(
            (str(i[0]), _number(i[1]), _number(i[2])) for i in _list(found["implants"])
        )
        biases = tuple(str(b) for b in _list(found["biases"]))
        return Edit(cuts, attributes, biases, orders, implants)
    except (KeyError, TypeError, IndexError, ValueError) as error:
        raise BitwrightError(f"the description of the pruned network is damaged: {error}") from None


def _list(value: object) -> Sequence[dict]:  # type: ignore[type-arg]
    if not isinstance(value, list):
        raise TypeError(f"{value!r} is no list")
    return value


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{value!r} is neither true nor false")
    return value


def _number(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise TypeError(f"{value!r} is no whole number")
    return value


def _numbers(value: object) -> tuple[int, ...]:
    return tuple(sorted(_number(v) for v in _list(value)))
