"""Two processes of one gloo group."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist


def run(work: Callable[..., None], *given: Any) -> None:
    """`work(rank, *given)` in both; an error of either is raised here."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_member, (work, folder, given), nprocs=2)


def _member(rank: int, work: Callable[..., None], folder: str, given: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=2)
    work(rank, *given)
    dist.barrier()  # nobody leaves while the other talks
    dist.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # a thread of torch's that outlives the interpreter ends a process with SIGABRT
