"""8 GB of images through a measurement in at most 2 GB of memory; a network of 100,000 channels.

The images are float32 [n, 3, 224, 224] in a sparse .npy file, each row with a page of noise of its
own, mapped (`np.load(…, mmap_mode="c")`) by the user's data file. What counts is memory of the
process's own (RssAnon): pages of a mapped file are the system's, which it takes back at need.
"""

from __future__ import annotations

import os
import resource
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from harness import ROOT, Drill, main, run

ROW = 3 * 224 * 224
FILES = """
import numpy as np
import torch
from torch import nn


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 7, stride=8), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=4), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10),
    ).eval()


def data():
    x = np.load("{path}", mmap_mode="c")
    return {{"train_x": x[:-64], "test_x": x[-64:]}}


def batches():
    x = np.load("{path}", mmap_mode="c")
    return (torch.from_numpy(x[i:i + 32].copy()) for i in range(0, len(x), 32))
"""


def write(path: Path, rows: int) -> None:
    """`rows` images, sparse on disk."""
    found = np.lib.format.open_memmap(path, "w+", np.float32, (rows, 3, 224, 224))
    rng = np.random.default_rng(0)
    for i in range(rows):
        start = int(rng.integers(ROW - 1024))
        found[i].reshape(-1)[start : start + 1024] = rng.standard_normal(1024, np.float32)
    found.flush()


@contextmanager
def watched(into: dict[str, float]) -> Iterator[None]:
    """The most memory of its own that this process has meanwhile, in GB."""
    over, most = threading.Event(), 0

    def look() -> None:
        nonlocal most
        while not over.wait(0.02):
            for line in Path("/proc/self/status").read_text().splitlines():
                if line.startswith("RssAnon"):
                    most = max(most, int(line.split()[1]))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        into["anon_gb"] = most * 1024 / 1e9
        into["with_mapped_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def streamed(found: Drill, size: float, factory: str) -> None:
    """Measure and search from the command line, with `size` GB from a function of the data file."""
    path = found.place / "images.npy"
    rows = int(size * 1e9 / (4 * ROW))
    write(path, rows)
    (found.place / "big.py").write_text(FILES.format(path=path))
    spec = f"{found.place}/big.py"
    said = found.place / "memory"
    out = found.folder()
    words = ["search", "--model", f"{spec}:network", "--data", f"{spec}:{factory}", "--out",
             str(out), "--calibration-rows", "256", "--quiet"]  # fmt: skip

    def measuring() -> None:
        watch = watched(use := {})
        watch.__enter__()
        exit_ = os._exit

        def leave(code: int) -> None:
            watch.__exit__(None, None, None)
            said.write_text(repr(use))
            exit_(code)

        os._exit = leave  # type: ignore[assignment]

    begun = time.perf_counter()
    ended = run(*words, harm=measuring)
    use = eval(said.read_text())
    fits = ended.code == 0 and use["anon_gb"] <= 2
    found.say(f"GB of images searched in memory: {factory}", round(rows * ROW * 4 / 1e9, 2), fits,
              rows=rows, **{k: round(v, 2) for k, v in use.items()},
              seconds=round(time.perf_counter() - begun, 1),
              **({} if ended.code == 0 else {"bad": ended.err[-400:]}))  # fmt: skip


def channels(found: Drill, layers: int, width: int) -> None:
    """Measure and allocate a network of layers × width channels."""
    import torch
    from torch import nn

    from bitwright import Settings, Task, allocate
    from bitwright.pipeline import Run

    torch.manual_seed(0)
    parts: list[nn.Module] = [nn.Conv2d(4, width, 1)]
    for _ in range(layers - 1):
        parts += [nn.ReLU(), nn.Conv2d(width, width, 1, groups=width // 4)]
    model = nn.Sequential(*parts, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                          nn.Linear(width, 10)).eval()  # fmt: skip
    x = torch.randn(64, 4, 2, 2)
    use: dict[str, float] = {}
    times: dict[str, float] = {}
    with watched(use):
        begun = time.perf_counter()
        run_ = Run(Task(model, x), Settings(activations=None, score="trace"), found.folder())
        traced = run_.sensitivity
        times["measure_s"] = time.perf_counter() - begun
        begun = time.perf_counter()
        problem = run_.bench.problem(int(3 * run_.network.weights))
        times["problem_s"] = time.perf_counter() - begun
        begun = time.perf_counter()
        plan = allocate.knapsack(problem)
        times["knapsack_s"] = time.perf_counter() - begun
    count = sum(len(e.value) for e in traced.layers.values())
    bound = allocate.lp_bound(problem)
    fits = plan.cost <= 3 * run_.network.weights and plan.loss >= bound * (1 - 1e-9)
    found.say("channels measured and allocated", count, bool(fits and use["anon_gb"] <= 4),
              layers=layers + 1, loss_over_bound=round(plan.loss / bound, 6),
              **{k: round(v, 2) for k, v in (times | use).items()})  # fmt: skip


def drill(found: Drill, quick: bool, count: int) -> None:
    """`count` GB of images, and as many channels as that times 12,500."""
    found.warm()
    for factory in ("data", "batches"):
        streamed(found, 0.7 if quick else count, factory)
    channels(found, *((4, 400) if quick else (25, 500 * count)))


if __name__ == "__main__":
    plain = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    if len(plain) < len(os.environ):  # freed memory that is kept would count; read at the start
        os.execve(sys.executable, [sys.executable, *sys.argv], plain)
    os.chdir(ROOT)
    main(drill, "size", count=8, quick=1)
