"""A folder belongs to one process at a time, however that one ends."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bitwright import BitwrightError
from bitwright.pipeline.prune import _read_history
from bitwright.pipeline.store import Store
from pipeline import tiny

HOLD = """
import fcntl, os, sys
handle = os.open(sys.argv[1], os.O_RDONLY)
try:
    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    print("held", flush=True)
except BlockingIOError:
    print("busy", flush=True)
sys.stdin.read()
"""


def other(folder: Path) -> tuple[subprocess.Popen[str], str]:
    """A process that tries to hold the folder as we do, and whether it does."""
    process = subprocess.Popen(
        [sys.executable, "-S", "-c", HOLD, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


@pytest.mark.skipif(sys.platform == "win32", reason="no locks of folders there")
def test_one_process_at_a_time(tmp_path: Path):
    part = tmp_path / "model.onnx.part"  # what the other one is writing
    part.write_bytes(b"half")
    process, said = other(tmp_path)
    assert said == "held"
    with pytest.raises(BitwrightError, match="another process works in"):
        Store(tmp_path)
    assert part.exists()
    process.kill()
    process.wait()

    first, second = Store(tmp_path), Store(tmp_path)  # of one process: as many as it likes
    assert not part.exists()
    del first
    process, said = other(tmp_path)
    assert said == "busy"
    process.kill()
    process.wait()
    del second
    process, said = other(tmp_path)
    assert said == "held"
    process.kill()
    process.wait()


@pytest.mark.skipif(sys.platform == "win32", reason="no locks of folders there")
def test_a_finished_command_lets_go_of_its_folder(tmp_path: Path):
    tiny.write(tmp_path)
    out = tmp_path / "run"
    assert tiny.call("compress", *tiny.given(tmp_path), "--out", str(out), "--quiet") == 0
    process, said = other(out)
    process.kill()
    process.wait()
    assert said == "held"


@pytest.mark.parametrize("text", [b"", b"\xff", b"[1, 2", b'{"a": 1}', b"[null]", b"3"])
def test_a_damaged_history_of_pruning_loses_the_curve_alone(text: bytes, tmp_path: Path):
    path = tmp_path / "finetune-pruned.json"
    assert _read_history(path) == []
    path.write_bytes(text)
    assert _read_history(path) == []
    path.write_text("[0.5, 0.25]")
    assert _read_history(path) == [0.5, 0.25]


@pytest.mark.skipif(sys.platform == "win32", reason="no locks of folders there")
def test_two_trainings_of_bases_do_not_share_a_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    tiny.write(tmp_path)
    out = tmp_path / "run"
    out.mkdir()
    process, said = other(out)
    line = tiny.refused(capsys, "train-multibit", *tiny.given(tmp_path, out=out))
    process.kill()
    process.wait()
    assert said == "held" and "another process works in" in line and not list(out.iterdir())
