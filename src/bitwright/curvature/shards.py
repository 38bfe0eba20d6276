"""Sharded models: whole parameters in the place of shards, for a while.

A DTensor says itself how its shards make a whole (`full_tensor`), whether FSDP2 made it or
`distribute_tensor` or `parallelize_module`. All are gathered once, and the hooks that gather or
convert in every pass are put aside: passes then need nobody else, and each process makes as many as
its rows take.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from bitwright.errors import BitwrightError

#: modules whose hooks gather parameters, or make DTensors of activations
_TALKING = ("torch.distributed.fsdp.", "torch.distributed.tensor.")


def is_sharded(t: Any) -> bool:
    """Whether t is a DTensor, of any placement."""
    loaded = sys.modules.get("torch.distributed.tensor")  # seconds to import; without it, none is
    return loaded is not None and isinstance(t, loaded.DTensor)


@contextmanager
def unsharded(model: nn.Module) -> Iterator[None]:
    """Within, the model holds whole plain parameters and buffers instead of DTensors.

    All processes of the group enter together; inside and on leaving, none waits for another.
    Afterwards the model has its own parameters and hooks again, also after an exception; FSDP2
    modules are left sharded, as by `state_dict()`.

    Args:
        model: sharded by `fully_shard`, `distribute_tensor`, `distribute_module` or
            `parallelize_module`; others are left as they are.

    Raises:
        BitwrightError: a wrapper that communicates in its own forward pass, or a parameter of which
            this process has no shard.

    Cost: each process holds the whole model besides its shards, in the parameters' own dtype
    (FSDP2's mixed precision is not applied).
    """
    if not (dist.is_available() and dist.is_initialized()):
        yield
        return
    _check(model)
    _reshard(model)
    known: dict[int, Tensor] = {}
    changes = [(vars(m), _plain(path, m, known)) for path, m in model.named_modules()]
    before = [{k: held[k] for k in new} for held, new in changes]
    try:
        for held, new in changes:
            held.update(new)
        yield
    finally:
        for (held, _), old in zip(changes, before, strict=True):
            held.update(old)
        _reshard(model)  # a forward pass may have called unshard()


def _check(model: nn.Module) -> None:
    from torch.distributed.fsdp import FullyShardedDataParallel
    from torch.nn.parallel import DistributedDataParallel

    advice = {
        DistributedDataParallel: "give the model inside, its .module",
        FullyShardedDataParallel: "use fully_shard (FSDP2) instead",
    }
    for name, m in model.named_modules():
        for kind, fix in advice.items():
            if isinstance(m, kind):
                raise BitwrightError(
                    f"{f'module {name!r}' if name else 'the model'} is a {kind.__name__}, whose "
                    f"passes wait for other processes, which may have fewer rows; {fix}"
                )


def _reshard(model: nn.Module) -> None:
    """Register FSDP2's shards again where whole parameters are left, maybe of another dtype."""
    from torch.distributed.fsdp import FSDPModule

    for m in model.modules():
        if isinstance(m, FSDPModule):
            m.reshard()


def _plain(path: str, module: nn.Module, known: dict[int, Tensor]) -> dict[str, Any]:
    """The module's attributes that must be others, and what: nothing for a plain module.

    `known`: id of a DTensor -> what stands for it, so that tied parameters stay tied.
    """
    found: dict[str, Any] = {}
    for kind in ("_parameters", "_buffers"):
        tensors = getattr(module, kind)
        if any(is_sharded(t) for t in tensors.values()):
            found[kind] = {
                name: _gathered(f"{path}.{name}".lstrip("."), t, known) if is_sharded(t) else t
                for name, t in tensors.items()
            }
    for kind in ("_forward_pre_hooks", "_forward_hooks"):
        hooks = getattr(module, kind)
        silent = {k: h for k, h in hooks.items()
                  if not str(getattr(h, "__module__", "")).startswith(_TALKING)}  # fmt: skip
        if len(silent) < len(hooks):
            found[kind] = OrderedDict(silent)
    for name, method in vars(module).items():  # of register_fsdp_forward_method
        if isinstance(method, MethodType):
            space = getattr(method.__func__, "__globals__", {})
            if space.get("__name__", "").startswith(_TALKING):
                found[name] = method.__wrapped__  # type: ignore[attr-defined]
    return found


def _gathered(name: str, t: Any, known: dict[int, Tensor]) -> Tensor:
    if id(t) not in known:
        if t.device_mesh.get_coordinate() is None:
            raise BitwrightError(
                f"parameter {name!r} has no shard on process {dist.get_rank()}; measure a plain "
                "copy of the model, loaded from each parameter's full_tensor()"
            )
        with torch.no_grad():
            found = t.full_tensor()
        if isinstance(t, nn.Parameter):
            found = nn.Parameter(found, t.requires_grad)
        known[id(t)] = found
    return known[id(t)]
