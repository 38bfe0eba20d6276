"""Every file of a folder flipped, cut, emptied or gone in turn, and clocks that jump.

A rerun makes the same bytes again, or says in one line which file to delete. `plan.json` may be
edited by hand, so a digit changed in it can be a plan of its own, which is then what comes out;
`run.json` is written anew from the command.
"""

from __future__ import annotations

import os
import random
import shutil
import time
from pathlib import Path

from harness import COMPRESS, SEARCH, Drill, digests, main, run, start


def spoil(path: Path, harm: str, rng: random.Random) -> None:
    """Damage a file."""
    data = bytearray(path.read_bytes())
    if harm == "gone" or not data:
        path.unlink()
    elif harm == "flip":
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
    else:
        path.write_bytes(data[: 0 if harm == "empty" else rng.randrange(len(data))])


def half_done(found: Drill) -> Path:
    """A folder whose fine-tuning was killed behind its first epoch: its checkpoint is there."""
    while True:
        out = found.folder()
        child = start(*found.words("compress", out, method="channels", epochs=40))
        while not list(out.glob("finetune-*.safetensors")):
            time.sleep(0.002)
        child.kill()
        child.wait()
        if list(out.glob("finetune-*.safetensors")):
            return out
        shutil.rmtree(out)


def unsteady(rng: random.Random) -> None:
    """Clocks that jump by years, back and forth; each file's time too."""
    real = time.time

    def jumping() -> float:
        return max(0.0, real() + rng.uniform(-2e9, 2e9))

    time.time = jumping
    steady = time.perf_counter
    time.perf_counter = lambda: steady() - 1e6 * rng.random()


def drill(found: Drill, quick: bool, count: int) -> None:
    """Each file `count` times in each way."""
    rng = random.Random(0)
    found.warm()
    cases = [
        ("compress", COMPRESS, found.calm("compress", **COMPRESS)[0]),
        ("search", SEARCH, found.calm("search", **SEARCH)[0]),
        ("compress", {"method": "channels", "epochs": 40}, half_done(found)),
    ]
    for number, (command, options, calm) in enumerate(cases):
        wanted = digests(calm) if number < 2 else found.calm(command, **options)[1]
        tried = same = refused = edited = 0
        bad: list[str] = []
        names = sorted(p.name for p in calm.iterdir() if p.is_file())
        if number == 2:  # what is only there meanwhile
            names = [n for n in names if n.startswith("finetune-")]
        elif quick:
            names = names[::4]
        for name in names:
            for harm in ("flip", "cut", "empty", "gone") if not quick else ("flip",):
                for _ in range(count if harm in ("flip", "cut") else 1):
                    out = found.folder()
                    shutil.copytree(calm, out)
                    spoil(out / name, harm, rng)
                    ended = run(*found.words(command, out, **options))
                    tried += 1
                    alike = ended.code == 0 and digests(out) == wanted
                    hand = ended.code == 0 and not alike and name == "plan.json"
                    same, edited = same + alike, edited + hand
                    refused += ended.one_line
                    if not (alike or ended.one_line or hand):
                        bad.append(f"{name} {harm}: {ended.code} {ended.err[-200:]}")
                    shutil.rmtree(out)
        what = f"{command}, killed in epoch 2" if number == 2 else command
        found.say(f"damage, {what}: same bytes or one line", same + refused + edited, not bad,
                  of=tried, same=same, one_line=refused, taken_as_edited=edited,
                  files=len(names), **({"bad": bad[:5]} if bad else {}))  # fmt: skip
    calm, wanted = cases[0][2], digests(cases[0][2])
    good = 0
    for _ in range(count):
        out = found.folder()
        ended = run(*found.words("compress", out, **COMPRESS), harm=lambda: unsteady(rng))
        once = ended.code == 0 and digests(out) == wanted
        for path in out.iterdir():
            os.utime(path, (rng.uniform(0, 4e9), rng.uniform(0, 4e9)))
        again = run(*found.words("compress", out, **COMPRESS), harm=lambda: unsteady(rng))
        good += once and again.code == 0 and digests(out) == wanted
        shutil.rmtree(out, ignore_errors=True)
    found.say("clocks that jump: same bytes, also of a rerun", good, good == count, of=count)


if __name__ == "__main__":
    main(drill, "damage", count=3, quick=1)
