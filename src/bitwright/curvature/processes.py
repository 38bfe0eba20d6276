"""Several processes that each hold a part of the data: sums and rows of all of them.

`torch.distributed` does the talking, over whatever group is there (`torchrun`); without one, the
group is this process alone. Sums are added in the order of ranks, so all processes see the same
numbers to the last bit and decide alike.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Group:
    """This process's rank and the number of processes."""

    rank: int
    size: int

    def gathered(self, t: Tensor) -> list[Tensor]:
        """Everybody's t, in the order of ranks."""
        if self.size == 1:
            return [t]
        found: list[Tensor] = [t] * self.size
        dist.all_gather_object(found, t.cpu())
        return found

    def total(self, t: Tensor) -> Tensor:
        """The sum of everybody's t."""
        parts = self.gathered(t)
        result = parts[0].clone()
        for part in parts[1:]:
            result += part
        return result

    def summed(self, t: Tensor) -> Tensor:
        """The sum of everybody's t, alike in all processes; for many numbers."""
        if self.size == 1:
            return t
        found = t.cpu()
        dist.all_reduce(found)
        return found.to(t.device)

    def together(self) -> None:
        """Wait for everybody."""
        if self.size > 1:
            dist.barrier()

    def joined(self, t: Tensor) -> Tensor:
        """Everybody's rows, one after another."""
        return torch.cat(self.gathered(t))

    def shard(self, x: Tensor) -> Tensor:
        """This process's rows of x: contiguous parts in the order of ranks."""
        return x.tensor_split(self.size)[self.rank]


def group() -> Group:
    """The group this process is in."""
    if dist.is_available() and dist.is_initialized():
        return Group(dist.get_rank(), dist.get_world_size())
    return Group(0, 1)


@contextmanager
def started() -> Iterator[Group]:
    """Join the group that `torchrun` describes in the environment; alone without it."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or dist.is_initialized():
        yield group()
        return
    dist.init_process_group("gloo")
    try:
        yield group()
    finally:
        dist.destroy_process_group()
