"""A data loader that raises at a random batch, and NaN in the middle of a training: one line.

The loader fails where it is read, so nothing is written; after it is mended, the same command runs.
The training goes on from the epoch before the NaN once that is mended, with the same bytes.
"""

from __future__ import annotations

import random

from harness import Drill, digests, main, run

LOADER = """
import os
import torch
import numpy as np

HERE = os.path.dirname(os.path.abspath(__file__))


class Rows:
    def __init__(self, x, y, bad):
        self.x, self.y, self.bad = x, y, bad

    def __iter__(self):
        for i in range(0, len(self.x), 10):
            if i // 10 == self.bad:
                {how}
            yield self.x[i : i + 10], self.y[i : i + 10]


def data():
    found = {{k: torch.from_numpy(v) for k, v in np.load(HERE + "/data.npz").items()}}
    return (Rows(found["train_x"], found["train_y"], {train}),
            Rows(found["test_x"], found["test_y"], {test}))
"""
HOWS = (
    'raise OSError("stale file handle\\nof a disk")',
    'raise KeyError("image")',
    "1 / 0",
    "yield self.x[i : i + 10] * float('nan'), self.y[i : i + 10]",
    "yield self.x[i : i + 10, :, :5], self.y[i : i + 10]",
    'raise SystemExit("worker gone")',
)


def poisoned(step: int) -> None:
    """The gradients of one step of the training become NaN."""
    import torch

    done, original = 0, torch.optim.Adam.step

    def stepped(self: torch.optim.Adam, *args: object) -> object:
        nonlocal done
        done += 1
        if done == step:
            for group in self.param_groups:
                for p in group["params"]:
                    p.grad = None if p.grad is None else p.grad * float("nan")
        return original(self, *args)

    torch.optim.Adam.step = stepped  # type: ignore[method-assign]


def drill(found: Drill, quick: bool, count: int) -> None:
    """`count` loaders, and as many trainings."""
    rng = random.Random(0)
    found.warm()
    file = found.place / "rows.py"
    data = f"{file}:data"
    file.write_text(LOADER.format(how="pass", train=-1, test=-1))
    _, wanted, _ = found.calm("compress", data=data)
    clear = same = untouched = 0
    bad = ""
    for i in range(count):
        out = found.folder()
        where = rng.choice(("train", "test"))
        at = {"train": -1, "test": -1, where: rng.randrange(8 if where == "train" else 4)}
        file.write_text(LOADER.format(how=HOWS[i % len(HOWS)], **at))
        ended = run(*found.words("compress", out, data=data))
        clear += ended.one_line
        untouched += not out.exists()
        bad = bad or ("" if ended.one_line else f"{HOWS[i % len(HOWS)]}: {ended.err[-300:]}")
        file.write_text(LOADER.format(how="pass", train=-1, test=-1))
        same += run(*found.words("compress", out, data=data)).code == 0 and digests(out) == wanted
    found.say("a loader that fails: one line", clear, clear == count, of=count,
              **({"bad": bad} if bad else {}))  # fmt: skip
    found.say("a loader that fails: nothing written", untouched, untouched == count, of=count)
    found.say("a loader that fails: then the same bytes", same, same == count, of=count)

    options = {"method": "channels", "epochs": 6}
    _, wanted, _ = found.calm("compress", **options)
    clear = same = 0
    bad = ""
    for _ in range(count):
        out = found.folder()
        words = found.words("compress", out, **options)
        step = rng.randint(1, 6)  # a step an epoch: 68 rows in batches of 64
        ended = run(*words, harm=lambda n=step: poisoned(n))
        fine = ended.one_line and "not finite" in ended.err
        clear += fine
        bad = bad or ("" if fine else f"step {step}: {ended.code} {ended.err[-300:]}")
        same += run(*words).code == 0 and digests(out) == wanted
    found.say("NaN while fine-tuning: one line", clear, clear == count, of=count,
              **({"bad": bad} if bad else {}))  # fmt: skip
    found.say("NaN while fine-tuning: then the same bytes", same, same == count, of=count)
    out = found.folder()
    ended = run(*found.words("compress", out, rate=1e30, **options))
    found.say("a rate of 1e30: one line", int(ended.one_line), ended.one_line, of=1,
              said=ended.err.strip()[-160:])  # fmt: skip


if __name__ == "__main__":
    main(drill, "training", count=12, quick=2)
