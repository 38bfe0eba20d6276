"""Files of one network side by side in the runtime: latency, load time, bytes, memory.

All forms are run in turns, every round beginning with another one, so that what else the machine
does hits all alike; ratios are medians over the rounds. Peak memory is that of a child process that
loads and runs nothing else.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from torch import Tensor

from bitwright.cost.latency import empty_call, in_turns
from bitwright.cost.table import Machine
from bitwright.deploy import runtime
from bitwright.errors import BitwrightError

#: loads of each file behind its load time
LOADS = 9


@dataclass(frozen=True)
class Form:
    """One file.

    Attributes:
        name: what it is.
        size_bytes: of the file, external data included.
        latency_s, p95_s: median and 95th percentile for one row, a session's empty call taken off.
        ratio: latency over the first form's, median over the rounds.
        load_s: median of the processor time of loading.
        peak_bytes: peak memory of a process that loads it and runs one row, less what it had with
            the runtime imported.
        operations: what the runtime executes, with counts.
    """

    name: str
    size_bytes: int
    latency_s: float
    p95_s: float
    ratio: float
    load_s: float
    peak_bytes: int
    operations: dict[str, int]

    @property
    def convolutions(self) -> tuple[int, int]:
        """Fused integer ones, and all."""
        plain = sum(self.operations.get(op, 0) for op in ("Conv", "FusedConv", "NhwcFusedConv"))
        fused = self.operations.get("QLinearConv", 0)
        return fused, fused + plain


@dataclass(frozen=True)
class Bench:
    """All forms, the first of them the measure.

    Attributes:
        machine: what the seconds depend on.
        repeats: rounds behind each latency.
        forms: in the order given.
        spent_s: float64 [repeats, forms], seconds of each run; not stored.
    """

    machine: Machine
    repeats: int
    forms: tuple[Form, ...]
    spent_s: np.ndarray = field(repr=False, compare=False)

    def __getitem__(self, name: str) -> Form:
        return next(form for form in self.forms if form.name == name)

    def ratio(self, name: str, other: str) -> float:
        """Median over the rounds of one form's time over another's."""
        i, j = ([form.name for form in self.forms].index(n) for n in (name, other))
        return float(np.median(self.spent_s[:, i] / self.spent_s[:, j]))

    def to_json(self) -> str:
        """As `bench.json` has it."""
        said = asdict(self)
        del said["spent_s"]
        return json.dumps(said, indent=1)


def bench(
    files: Mapping[str, Path],
    row: Tensor,
    *,
    threads: int = 1,
    repeats: int = 200,
    progress: Callable[[float], None] = lambda fraction: None,
) -> Bench:
    """Measure the files in turns.

    Args:
        files: name -> ONNX file; the first is what the others are compared with.
        row: [1, ...] as the network takes it.
        threads: of the runtime, 0 for its own choice. Idle threads of one session spin while
            another is timed: one thread is the surest.
        repeats: rounds.
        progress: called with the finished fraction.

    Raises:
        BitwrightError: the runtime refuses a file.
    """
    live = [runtime.session(path, threads=threads) for path in files.values()]
    called = [partial(one.run, None, {one.get_inputs()[0].name: row.numpy()}) for one in live]
    spent = in_turns([empty_call(), *called], repeats)
    spent = (spent[:, 1:] - np.median(spent[:, :1])).clip(min=1e-9)
    progress(0.4)
    del live, called
    loads = load_times(list(files.values()), threads)
    progress(0.7)
    forms = []
    for i, (name, path) in enumerate(files.items()):
        forms.append(
            Form(
                name=name,
                size_bytes=runtime.size_bytes(path),
                latency_s=float(np.median(spent[:, i])),
                p95_s=float(np.quantile(spent[:, i], 0.95)),
                ratio=float(np.median(spent[:, i] / spent[:, 0])),
                load_s=float(np.median(loads[:, i])),
                peak_bytes=peak_bytes(path, row, threads),
                operations=dict(sorted(runtime.optimized_operations(path).items())),
            )
        )
        progress(0.7 + 0.3 * (i + 1) / len(files))
    return Bench(Machine.here(threads), repeats, tuple(forms), spent)


def load_times(files: Sequence[Path], threads: int = 1) -> np.ndarray:
    """Processor seconds of loading each file, float64 [LOADS, n], in turns.

    Processor time, because a load is one thread's work and other processes make its wall time say
    little.
    """
    spent = np.empty((LOADS + 1, len(files)))
    for i in range(LOADS + 1):
        for k in range(len(files)):
            j = (i + k) % len(files)
            begin = time.process_time()
            runtime.session(files[j], threads=threads)
            spent[i, j] = time.process_time() - begin
    return spent[1:]  # the first reads the file from the disk


#: with nothing but the runtime; prints the peak in bytes with and without the model
_CHILD = """
import pathlib, resource, sys
import numpy, onnxruntime
def peak():
    status = pathlib.Path("/proc/self/status")  # of this program alone, not of its parent
    if status.exists():
        return next(int(l.split()[1]) for l in status.open() if l.startswith("VmHWM")) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
options = onnxruntime.SessionOptions()
options.log_severity_level, options.intra_op_num_threads = 3, int(sys.argv[3])
row = numpy.load(sys.argv[2])
before = peak()
live = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
live.run(None, {live.get_inputs()[0].name: row})
print(peak() - before)
"""


def peak_bytes(path: Path, row: Tensor, threads: int = 1) -> int:
    """How much memory loading the file and running one row takes, in a process of its own.

    Raises:
        BitwrightError: the process fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "row.npy"
        np.save(place, row.numpy())
        words = [sys.executable, "-c", _CHILD, str(path), str(place), str(threads)]
        found = subprocess.run(words, capture_output=True, text=True)
    if found.returncode:
        last = (found.stderr.strip().splitlines() or [""])[-1]
        raise BitwrightError(f"{path} cannot be run in a process of its own: {last[:300]}")
    return int(found.stdout)
