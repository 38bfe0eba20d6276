"""Random `kill -9` during `compress` and `search`: every rerun ends in the same bytes.

Half of the runs are killed at a random moment; the others before or after a random one of their
file operations (write, rename, remove), where a kill can do most. One in four is killed twice.
"""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path
from typing import Any

from harness import COMPRESS, SEARCH, Drill, digests, main, run, start


def at_operation(number: int, after: bool) -> None:
    """From now on, this process dies at its `number`-th operation on files."""
    left = number

    def watched(original: Any) -> Any:
        def operation(*args: Any, **kwargs: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0 and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            if left == 0 and original is write:
                path, content = args  # half of it gets to the disk
                original(path, content[: len(content) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            found = original(*args, **kwargs)
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return found

        return operation

    write = Path.write_bytes
    Path.write_bytes = watched(write)  # type: ignore[method-assign]
    Path.unlink = watched(Path.unlink)  # type: ignore[method-assign]
    os.replace = watched(os.replace)


def operations(drill: Drill, words: list[str]) -> int:
    """How many operations on files a whole run makes."""
    count = drill.place / "count"

    def counting() -> None:
        def counted(original: Any) -> Any:
            def operation(*args: Any, **kwargs: Any) -> Any:
                with count.open("a") as file:
                    file.write("1\n")
                return original(*args, **kwargs)

            return operation

        Path.write_bytes = counted(Path.write_bytes)  # type: ignore[method-assign]
        Path.unlink = counted(Path.unlink)  # type: ignore[method-assign]
        os.replace = counted(os.replace)

    count.unlink(missing_ok=True)
    assert run(*words, harm=counting).code == 0
    return len(count.read_text().splitlines())


def drill(found: Drill, quick: bool, count: int) -> None:
    """Runs of each command until `count` kills have fallen into one."""
    rng = random.Random(0)
    found.warm()
    for command, options in (("compress", COMPRESS), ("search", SEARCH)):
        _, wanted, seconds = found.calm(command, **options)
        many = operations(found, found.words(command, found.folder(), **options))
        same = kills = late = lines = runs = 0
        begun = time.perf_counter()
        while kills < count and runs < 4 * count:
            runs += 1
            out = found.folder()
            words = found.words(command, out, **options)
            for _ in range(1 + (rng.random() < 0.25)):
                if rng.random() < 0.5:
                    child = start(*words)
                    time.sleep(rng.random() * seconds)
                    child.kill()
                else:
                    number, after = rng.randint(1, many), rng.random() < 0.5
                    child = start(*words, harm=lambda n=number, a=after: at_operation(n, a))
                killed = child.wait().code == -signal.SIGKILL
                kills += killed
                late += not killed
            ended = run(*words)
            lines += ended.one_line
            same += ended.code == 0 and digests(out) == wanted and not list(out.glob("*.part"))
        holds = same == runs and kills >= count
        found.say(f"{command}: reruns with the same bytes", same, holds, of=runs, kills=kills,
                  too_late=late, refused=lines, run_s=round(seconds, 2),
                  file_operations=many, all_s=round(time.perf_counter() - begun, 1))  # fmt: skip


if __name__ == "__main__":
    main(drill, "kills", count=100, quick=3)
