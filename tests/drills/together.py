"""Two processes on one folder: one works, the other says so in a line; the bytes are one's own.

The second one comes at a random moment, or as soon as the first one has the folder's lock, with the
same options or with another budget.
"""

from __future__ import annotations

import random
import time
from pathlib import Path

from harness import COMPRESS, Drill, digests, main, run, start


def wait_for_lock(folder: Path, seconds: float) -> bool:
    """Until a process has locked the folder, as the system lists it; False if none does in time."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        if folder.is_dir():
            inode = str(folder.stat().st_ino)
            held = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
            if any("FLOCK" in words and words[-3].endswith(f":{inode}") for words in held):
                return True
        time.sleep(0.01)
    return False


def drill(found: Drill, quick: bool, count: int) -> None:
    """`count` pairs."""
    rng = random.Random(0)
    found.warm()
    budgets = {b: found.calm("compress", budget=b, **COMPRESS)[1] for b in ("3bit", "4bit")}
    _, _, seconds = found.calm("compress", **COMPRESS)
    clear = same = refused = met = 0
    bad = ""
    for i in range(count):
        out = found.folder()
        other = rng.choice(("3bit", "4bit"))
        first = start(*found.words("compress", out, budget="3bit", **COMPRESS))
        if i % 2:
            met += wait_for_lock(out, 20 * seconds)
        else:
            time.sleep(rng.random() * seconds)
        second = start(*found.words("compress", out, budget=other, **COMPRESS))
        ends = [first.wait(), second.wait()]
        fine = [e.code == 0 or (e.one_line and "another process" in e.err) for e in ends]
        clear += all(fine)
        refused += sum(e.one_line for e in ends)
        bad = bad or next((e.err[-300:] for e, f in zip(ends, fine, strict=True) if not f), "")
        done = [b for e, b in zip(ends, ("3bit", other), strict=True) if e.code == 0]
        alike = digests(out) in [budgets[b] for b in done]
        again = run(*found.words("compress", out, budget="4bit", **COMPRESS))
        same += alike and again.code == 0 and digests(out) == budgets["4bit"]
    found.say("two processes: each finishes or says why not in a line", clear,
              clear == count and 0 < met <= refused, of=count, met=met, refused=refused,
              **({"bad": bad} if bad else {}))  # fmt: skip
    found.say("two processes: bytes of one of them, and of a rerun", same, same == count, of=count)


if __name__ == "__main__":
    main(drill, "together", count=20, quick=2)
