"""Control-C at a random moment: one clear line, status 130, and a rerun that goes on to the bytes.

One in four gets a second Control-C a moment later. The last is a new interpreter, whose whole
process group is interrupted, as a terminal does it, while a search works in several processes.
"""

from __future__ import annotations

import os
import random
import signal
import time
from contextlib import suppress

from harness import COMPRESS, SEARCH, Drill, digests, fresh, main, run, start

LINE = "bitwright: interrupted; the same command continues\n"


def drill(found: Drill, quick: bool, count: int) -> None:
    """`count` interrupted runs."""
    rng = random.Random(0)
    found.warm()
    _, wanted, seconds = found.calm("compress", **COMPRESS)
    clear = same = late = 0
    bad = ""
    for _ in range(count):
        out = found.folder()
        words = found.words("compress", out, **COMPRESS)
        child = start(*words)
        time.sleep(0.05 + rng.random() * max(seconds - 0.05, 0))
        child.kill(signal.SIGINT)
        if rng.random() < 0.25:
            time.sleep(0.01)
            with suppress(ProcessLookupError):
                child.kill(signal.SIGINT)
        ended = child.wait()
        fine = ended.code == 130 and ended.err == LINE
        late += ended.code == 0
        clear += fine or ended.code == 0
        bad = bad or ("" if fine or ended.code == 0 else f"{ended.code} {ended.err[-400:]}")
        same += run(*words).code == 0 and digests(out) == wanted
    found.say("Control-C: one line and status 130", clear, clear == count, of=count, too_late=late,
              **({"bad": bad} if bad else {}))  # fmt: skip
    found.say("Control-C: then the same bytes", same, same == count, of=count)
    if quick:
        return
    options = {**SEARCH, "processes": 2, "batch": 2, "evaluations": 400}
    out = found.folder()
    process = fresh(*found.words("search", out, **options))
    while not list(out.glob("search-*.jsonl")) and process.poll() is None:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=120)
    fine = process.returncode == 130 and err == LINE
    found.say("Control-C, workers and all: one line", int(fine), fine, of=1,
              **({} if fine else {"bad": err[-600:]}))  # fmt: skip


if __name__ == "__main__":
    main(drill, "interrupt", count=40, quick=2)
