"""Hostile files by the hundred thousand. A part of `deploy.py`.

Cases are numbered and drawn from their number, so that one can be looked at again:
`python benchmarks/deploy_fuzz.py "artefact" 4711`. They run in a process of their own, which says
before each case what it is about to read: a crash or a hang costs that process and names the case.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fuzz_bombs
import fuzz_mutations as m
import harness
import numpy as np
from fuzz_targets import TARGETS, Target

from bitwright.errors import BitwrightError

#: cases of each target, in full and in a quick run
CASES = {
    "artefact": (100_000, 200),
    "plan": (20_000, 100),
    "onnx, read": (20_000, 100),
    "onnx, verified": (2_000, 20),
    "inspect artefact": (2_000, 20),
    "inspect plan": (2_000, 20),
    "inspect sensitivity": (4_000, 20),
}
#: how much of the file's honest memory a hostile one may take, and every how many-th is measured
MEMORY, EVERY = 2.0, 20
#: seconds that a case may take, and bytes that nobody counts
_SECONDS, _SLACK = 20, 65_536
#: cases in one process
_BATCH = 10_000


def case(target: Target, number: int) -> tuple[str, bool, bytes]:
    """The name of the mutation, whether the file was sealed again, and the hostile file."""
    rng = np.random.default_rng(number)
    if target.mutations and rng.random() < 0.5:
        name = str(rng.choice(list(target.mutations)))
        content = target.mutations[name](target.honest, rng)
        return name, True, m.reseal(content) if rng.random() < 0.9 else content
    name = str(rng.choice(list(m.BYTES)))
    content = m.BYTES[name](target.honest, rng)
    again = rng.random() < 0.3
    return name, again, m.reseal(content) if again else content


def attempt(target: Target, path: Path, resealed: bool) -> str:
    """Read one file; `refused`, `the same` or `whole`.

    Raises:
        AssertionError: a file that is not the honest one was accepted, or an error is no line.
        Exception: whatever the reader raised that it must not.
    """
    try:
        found = target.read(path)
    except BitwrightError as error:
        line = str(error)
        assert line.isprintable() and 10 < len(line) < 1000, f"error {line[:2000]!r}"
        return "refused"
    content = path.read_bytes()
    if content == target.honest:
        return "the same"
    assert resealed or not target.sealed, "other bytes were accepted"
    target.whole(found, content)
    return "whole"


def peak(read: Callable[[Path], object], path: Path) -> int:
    """Most bytes that Python and numpy held while the file was read."""
    tracemalloc.start()
    try:
        read(path)
    except BitwrightError:
        pass
    finally:
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return found


def _hung(*_: Any) -> None:
    raise AssertionError(f"no answer after {_SECONDS} s")


def batch(name: str, numbers: range, say: Any = None) -> dict[str, Any]:
    """Outcomes of some cases, defects, the largest share of the honest memory."""
    target = TARGETS[name]
    outcomes: Counter[str] = Counter()
    defects: list[str] = []
    most = 0.0
    signal.signal(signal.SIGALRM, _hung)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"honest{target.suffix}"
        path.write_bytes(target.honest)
        attempt(target, path, False)  # what is loaded once is nobody's memory
        honest = peak(target.read, path)
        path = Path(folder) / f"hostile{target.suffix}"
        for number in numbers:
            if say:
                say(number)
            kind, resealed, content = case(target, number)
            path.write_bytes(content)
            signal.alarm(_SECONDS)
            try:
                outcomes[attempt(target, path, resealed)] += 1
                if number % EVERY == 0:
                    taken = peak(target.read, path)
                    share = (taken - _SLACK) / (
                        honest * max(1.0, len(content) / len(target.honest))
                    )
                    most = max(most, share)
                    assert share <= MEMORY, f"{taken} bytes of memory, {honest} for the honest file"
            except Exception as error:
                first = (str(error).splitlines() or [""])[0][:300]
                defects.append(f"case {number} ({kind}): {type(error).__name__}: {first}")
            finally:
                signal.alarm(0)
    return {"outcomes": dict(outcomes), "defects": defects, "most": most}


def _child(name: str, numbers: range) -> dict[str, Any]:
    """The same in another process; a process that dies is a defect of the case it was at."""
    with tempfile.NamedTemporaryFile() as mark:
        command = [sys.executable, __file__, name, f"{numbers.start}:{numbers.stop}", mark.name]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=3600)
            if done.returncode == 0:
                found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
                return found
            reason = f"process ended with {done.returncode}: {done.stderr[-300:]}"
        except subprocess.TimeoutExpired:
            reason = "process did not end"
        at = int(Path(mark.name).read_text() or numbers.start)
    before = _child(name, range(numbers.start, at)) if at > numbers.start else batch(name, range(0))
    after = _child(name, range(at + 1, numbers.stop)) if at + 1 < numbers.stop else before
    outcomes = Counter(before["outcomes"]) + Counter(after["outcomes"] if after != before else {})
    defects = [*before["defects"], f"case {at}: {reason}", *after["defects"]]
    return {
        "outcomes": dict(outcomes),
        "defects": defects,
        "most": max(before["most"], after["most"]),
    }


def measure(rows: harness.Rows, quick: bool) -> None:
    """A row a target: cases, how they ended, and what must not have happened."""
    total = 0
    for name, (full, few) in CASES.items():
        count, begin = few if quick else full, time.perf_counter()
        outcomes: Counter[str] = Counter()
        defects: list[str] = []
        most = 0.0
        for start in range(0, count, _BATCH):
            found = _child(name, range(start, min(count, start + _BATCH)))
            outcomes.update(found["outcomes"])
            defects += found["defects"]
            most = max(most, found["most"])
        total += count
        rows.add(
            f"fuzz, {name}: defects in {count:,} cases",
            len(defects),
            bar="0",
            holds=not defects,
            outcomes=dict(outcomes),
            memory=round(most, 2),
            seconds=round(time.perf_counter() - begin, 1),
            defects=defects[:20],
        )
    chosen = ["plan of lists", "header of lists"] if quick else list(fuzz_bombs.BOMBS)
    for name, found in fuzz_bombs.explode(chosen).items():
        rows.add(
            f"memory, {name}",
            found["taken"],
            bar=f"<= {fuzz_bombs.MEMORY} x honest, or {fuzz_bombs.ALWAYS}",
            holds=found.pop("holds"),
            peer="honest file as long",
            peer_value=found["honest"],
            **found,
        )
    rows.add("fuzz, all cases", total, bar=">= 100000", holds=quick or total >= 100_000)


def _main(name: str, numbers: str, mark: str = "") -> None:
    start, _, stop = numbers.partition(":")
    chosen = range(int(start), int(stop)) if stop else range(int(start), int(start) + 1)
    say = (lambda n: Path(mark).write_text(str(n))) if mark else None
    print(json.dumps(batch(name, chosen, say)))


if __name__ == "__main__":
    _main(*sys.argv[1:])
