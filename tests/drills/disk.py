"""A full disk, a file-size limit, a folder that may not be written: one line, and then it goes on.

The disk is a tmpfs of 256 KB … 8 MB where this process may mount one; a limit on the size of files
(RLIMIT_FSIZE) does everywhere. Modes do not stop root, so "read-only" is a read-only mount, or a
child that has given up its user.
"""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from harness import COMPRESS, Drill, Ended, digests, main, run


def small_files(limit: int) -> None:
    """No file may grow beyond `limit` bytes: writes beyond fail, as on a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))


def nobody() -> None:
    """Give up root, where this process is root."""
    if os.getuid() == 0:
        os.setgroups([])
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)


def mounted(folder: Path, *options: str) -> bool:
    """Whether a mount on `folder` came about."""
    if sys.platform != "linux" or os.getuid() != 0 or shutil.which("mount") is None:
        return False
    return subprocess.run(["mount", *options, str(folder)], capture_output=True).returncode == 0


def drill(found: Drill, quick: bool, count: int) -> None:
    """`count` sizes of a disk, and of a limit, each too small; then there is room."""
    found.warm()
    calm, wanted, _ = found.calm("compress", **COMPRESS)
    sizes = sorted(p.stat().st_size for p in calm.iterdir())
    total = sum(sizes)

    def judge(what: str, outcomes: list[tuple[Ended, Ended, Path]]) -> None:
        clear = sum(first.one_line or first.code == 0 for first, _, _ in outcomes)
        refused = sum(first.one_line for first, _, _ in outcomes)
        same = sum(after.code == 0 and digests(out) == wanted for _, after, out in outcomes)
        said = next((first.err.strip()[-160:] for first, _, _ in outcomes if first.err), "")
        bad = next((f.err[-400:] for f, _, _ in outcomes if not f.one_line and f.code), "")
        found.say(f"{what}: one line", clear, clear == len(outcomes), of=len(outcomes),
                  refused=refused, said=said, **({"bad": bad} if bad else {}))  # fmt: skip
        found.say(f"{what}: then the same bytes", same, same == len(outcomes), of=len(outcomes))

    limits = [int(sizes[-1] * (i + 0.5) / count) for i in range(count)]
    outcomes = []
    for limit in limits:
        out = found.folder()
        words = found.words("compress", out, **COMPRESS)
        first = run(*words, harm=lambda n=limit: small_files(n))
        outcomes.append((first, run(*words), out))
    judge("file size limit", outcomes)

    outcomes = []
    for i in range(count):
        out = found.folder()
        out.mkdir()
        size = max(8192, int(total * (i + 0.5) / count))
        if not mounted(out, "-t", "tmpfs", "-o", f"size={size}", "tmpfs"):
            break
        words = found.words("compress", out, **COMPRESS)
        try:
            first = run(*words)
            subprocess.run(["mount", "-o", "remount,size=64m", str(out)], check=True)
            again = run(*words)
            kept = found.folder()
            shutil.copytree(out, kept)
        finally:
            subprocess.run(["umount", str(out)], check=True)
        outcomes.append((first, again, kept))
    if outcomes:
        judge("full disk", outcomes)
    else:
        found.say("full disk: skipped, no tmpfs may be mounted here", None)

    out = found.folder()
    out.mkdir(mode=0o555)
    os.chmod(found.place, 0o755)
    words = found.words("compress", out, **COMPRESS)
    ended = run(*words, harm=nobody)
    found.say("a folder of another user: one line", int(ended.one_line), ended.one_line, of=1,
              said=ended.err.strip()[-160:])  # fmt: skip
    kept = found.folder()
    shutil.copytree(calm, kept)
    if mounted(kept, "--bind", "-o", "ro", str(kept)):
        try:
            ended = run(*found.words("compress", kept, **COMPRESS))
        finally:
            subprocess.run(["umount", str(kept)], check=True)
        whole = digests(kept) == wanted
        found.say("a read-only mount: one line, files as they were", int(ended.one_line and whole),
                  ended.one_line and whole, of=1, said=ended.err.strip()[-160:])  # fmt: skip


if __name__ == "__main__":
    main(drill, "disk", count=12, quick=2)
