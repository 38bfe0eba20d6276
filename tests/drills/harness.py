"""What the drills share: runs in children that may be killed, JSON lines, one line or the bytes.

A child is forked from this process, where everything is imported and has run once: start-up costs
nothing, so a kill can fall on any moment of the work itself. `fresh` starts a new interpreter.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests")]
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch  # noqa: E402

from bitwright import interrupts  # noqa: E402
from pipeline import tiny  # noqa: E402

torch.set_num_threads(1)

#: what the same options and seed must make the same bytes of
SAME = (*tiny.RESULTS, "scores.safetensors", "quantized.safetensors", "frontier.json")
#: how a run may be started: what `compress` does from predicted losses, and a search by evaluation
COMPRESS: dict[str, Any] = {"method": "channels", "epochs": 1}
SEARCH: dict[str, Any] = {"method": "local-moves", "evaluations": 8, "processes": 1}


@dataclass(frozen=True)
class Ended:
    """How a run ended: exit status (−9: killed), what it printed, seconds."""

    code: int
    out: str
    err: str
    seconds: float

    @property
    def one_line(self) -> bool:
        """Whether it refused with one clear line, and nothing else on standard error."""
        return (
            self.code == 2
            and self.err.startswith("bitwright: ")
            and self.err.count("\n") == 1
            and "Traceback" not in self.out + self.err
        )


@dataclass
class Child:
    """A run in a process of its own."""

    pid: int
    folder: Path
    begun: float

    def wait(self) -> Ended:
        """Until it has ended."""
        _, status = os.waitpid(self.pid, 0)
        seconds = time.perf_counter() - self.begun
        out, err = ((self.folder / n).read_text(errors="replace") for n in ("out", "err"))
        shutil.rmtree(self.folder, ignore_errors=True)
        return Ended(os.waitstatus_to_exitcode(status), out, err, seconds)

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal, if it still runs."""
        os.kill(self.pid, number)


def start(*words: str, harm: Callable[[], object] | None = None) -> Child:
    """`bitwright words…` in a fork of this process, which `harm` has changed before."""
    folder = Path(tempfile.mkdtemp(prefix="drill-"))
    begun = time.perf_counter()
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return Child(pid, folder, begun)
    code = 70
    try:
        interrupts.watch()
        for number, name in ((1, "out"), (2, "err")):
            handle = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(handle, number)
        os.setpgid(0, 0)
        if harm is not None:
            harm()
        code = tiny.call(*words)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # too late to interrupt anything
    except BaseException:
        traceback.print_exc()
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)


def run(*words: str, harm: Callable[[], object] | None = None) -> Ended:
    """:func:`start`, then wait."""
    return start(*words, harm=harm).wait()


def fresh(*words: str) -> subprocess.Popen[str]:
    """`python -m bitwright words…` in a new interpreter."""
    return subprocess.Popen(
        [sys.executable, "-m", "bitwright", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        start_new_session=True,
    )


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of the files that must come out the same, as far as they are there."""
    return {
        n: hashlib.sha256((folder / n).read_bytes()).hexdigest()
        for n in SAME
        if (folder / n).is_file()
    }


class Drill:
    """A scratch folder with the tiny network and its data; prints one JSON line per figure.

    Args:
        name: of the drill.
        quick: whether figures are of a quick run, and say so.
        whole: whether each run exports and checks the float network itself, three quarters of its
            time; else it writes, under the same name, what this process found in :meth:`warm`.
    """

    def __init__(self, name: str, quick: bool, whole: bool = False) -> None:
        self.name, self.quick, self.whole = name, quick, whole
        self.place = Path(tempfile.mkdtemp(prefix=f"drill-{name}-"))
        self.failed = 0
        self.count = 0
        os.environ["XDG_STATE_HOME"] = str(self.place / "state")  # commands keep a key there
        tiny.write(self.place)

    def __enter__(self) -> Drill:
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.place, ignore_errors=True)

    def folder(self) -> Path:
        """A new name for a run."""
        self.count += 1
        return self.place / f"run{self.count}"

    def words(self, command: str, out: Path, **options: Any) -> list[str]:
        """`command` on the tiny network into `out`."""
        return [command, *tiny.given(self.place, **options), "--out", str(out), "--quiet"]

    def calm(self, command: str = "compress", **options: Any) -> tuple[Path, dict[str, str], float]:
        """A run that nothing disturbs: its folder, digests and seconds."""
        out = self.folder()
        ended = run(*self.words(command, out, **options))
        assert ended.code == 0, ended
        return out, digests(out), ended.seconds

    def warm(self) -> None:
        """Run everything once in this process, so that forks have it imported and compiled."""
        if not self.whole:
            tiny.stages.preflight = tiny.Remembered(tiny.stages.preflight)
        out = self.folder()
        with contextlib.redirect_stdout(io.StringIO()):
            assert tiny.call(*self.words("compress", out, **COMPRESS)) == 0
        shutil.rmtree(out)

    def say(self, figure: str, value: Any, holds: bool | None = None, **more: Any) -> None:
        """One figure; `holds` is whether what is asked of it does."""
        self.failed += holds is False
        row = {"drill": self.name, "figure": figure, "value": value, "holds": holds, **more}
        print(json.dumps(row | ({"quick": True} if self.quick else {})), flush=True)


def main(drill: Callable[[Drill, bool, int], None], name: str, count: int, quick: int) -> None:
    """Parse `--quick` and `--count`, run the drill, exit with 1 if something did not hold."""
    parser = argparse.ArgumentParser(description=sys.modules[drill.__module__].__doc__)
    parser.add_argument("--quick", action="store_true", help="a few cases, in seconds")
    parser.add_argument("--count", type=int, help=f"cases; {count}, or {quick} with --quick")
    parser.add_argument("--whole", action="store_true", help="check the float network each time")
    given = parser.parse_args()
    # where it is ignored, as in the background of a shell, children would inherit that
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with Drill(name, given.quick, given.whole) as found:
        drill(found, given.quick, given.count or (quick if given.quick else count))
    sys.exit(1 if found.failed else 0)
