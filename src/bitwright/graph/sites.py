"""Where a graph network has something to round, and what is rounded already."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torch_geometric.nn import Linear, MessagePassing

from bitwright.errors import BitwrightError

#: attribute of tensors that lie on a grid: their version when they were put there
_MARK = "_bitwright_rounded"


def target_row(net: nn.Module) -> int:
    """The row of `edge_index` that the messages of all layers go to."""
    flows = {m.flow for m in net.modules() if isinstance(m, MessagePassing)}
    if len(flows) != 1:
        raise BitwrightError(
            f"messages flow {' and '.join(sorted(flows)) or 'nowhere'}; a graph network "
            "has MessagePassing layers, all with the same flow"
        )
    return 1 if flows == {"source_to_target"} else 0


def low_bit(net: nn.Module) -> Iterator[str]:
    """Names of the weights to round: those of linear layers and of message passing itself."""
    for path, module in net.named_modules():
        if not isinstance(module, MessagePassing | Linear | nn.Linear):
            continue
        for name, value in module.named_parameters(path, recurse=False):
            if isinstance(value, nn.parameter.UninitializedParameter):
                raise BitwrightError(f"{name} has no shape yet; call the network once before")
            if value.dim() >= 2:
                yield name


def mark(x: Tensor) -> None:
    """Note that x lies on a grid, as long as it is not changed in place."""
    setattr(x, _MARK, x._version)


def is_rounded(x: Tensor) -> bool:
    """Whether x, or what it is a view of, came from a grid and has not changed since."""
    return any(
        t is not None and getattr(t, _MARK, None) == t._version
        for t in (x, x._base if x._is_view() else None)
    )


def keep_mark(module: nn.Module, args: Any, out: Tensor) -> None:
    """What a dropout leaves of rounded numbers is rounded."""
    if is_rounded(args[0]):
        mark(out)
