"""Plans evaluated by several processes at a time."""

from __future__ import annotations

import multiprocessing
import os
import pickle
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from bitwright.allocate import Plan
from bitwright.allocate.search import EvaluateMany
from bitwright.errors import BitwrightError
from bitwright.pipeline.roundings import ROUNDINGS

if TYPE_CHECKING:
    from bitwright.pipeline.bench import Workbench

_bench: Workbench | None = None


@contextmanager
def evaluators(bench: Workbench, processes: int, batch: int) -> Iterator[EvaluateMany | None]:
    """Something that gives the rewards of a batch of plans, in their order; None for one process.

    Every process holds a copy of the bench and evaluates with its share of the cores. They are
    started afresh, so a script that asks for several needs an `if __name__ == "__main__":`.

    Args:
        processes: at most; 0 takes as many as there are cores; batch: plans in a batch, more
            processes than that have nothing to do.

    Raises:
        BitwrightError: a process could not be started, or was killed; the weights are rounded, in
            searches too, by a function that is not ours.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    count = min(processes or cores or 1, batch)
    if count <= 1:
        yield None
        return
    own = ROUNDINGS[bench.rounding].in_search
    if own is None:  # they need no rounding of one's own, which they do not have
        bench = replace(bench, rounding="nearest")
    elif not own.__module__.startswith("bitwright."):
        raise BitwrightError(
            f"other processes do not have the rounding {bench.rounding}; use --processes 1"
        )
    content = pickle.dumps(bench)
    threads = max(1, torch.get_num_threads() // count)
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(count, spawn, _prepare, (content, threads)) as pool:

        def evaluate_many(plans: Sequence[Plan]) -> Sequence[float]:
            try:
                return list(pool.map(_reward, plans))
            except BrokenProcessPool as error:
                raise BitwrightError(
                    "a process that evaluates plans ended early (out of memory, or a script "
                    'without an `if __name__ == "__main__":`); try --processes 1'
                ) from error

        yield evaluate_many


def _prepare(content: bytes, threads: int) -> None:
    global _bench
    torch.set_num_threads(threads)
    _bench = pickle.loads(content)  # of our own parent process


def _reward(plan: Plan) -> float:
    assert _bench is not None
    return _bench.reward(plan)
