"""Rows that are many lie on the disk, and are the same rows."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bitwright.data import load_data, spool
from bitwright.data.spool import Spool, chosen
from bitwright.errors import BitwrightError


@pytest.fixture(params=[10**9, 100])
def memory(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Everything in memory, or all but the first rows on the disk."""
    monkeypatch.setattr(spool, "MEMORY", request.param)
    monkeypatch.setattr(spool, "_PART", 64)
    return int(request.param)


def mapped(rows: Tensor) -> bool:
    """Whether the memory of `rows` belongs to a deleted file."""
    address = rows.data_ptr()
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, _, end = line.split()[0].partition("-")
        if int(start, 16) <= address < int(end, 16):
            return line.endswith("(deleted)")
    raise AssertionError


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
def test_rows_come_back(memory: int, dtype: torch.dtype):
    parts = [torch.arange(6 * k).reshape(k, 2, 3).to(dtype) + 100 * k for k in (3, 1, 0, 4)]
    found = Spool()
    for part in parts:
        found.add(part.transpose(1, 2))
    rows = found.rows()
    assert len(found) == 8 and rows.dtype == dtype
    assert torch.equal(rows, torch.cat(parts).transpose(1, 2))
    assert mapped(rows) is (memory == 100)
    rows[0] = 7  # as of any tensor


def test_a_buffer_may_be_filled_again(memory: int):
    buffer, found = torch.zeros(4, 3), Spool()
    for i in range(12):
        found.add(buffer.fill_(i))
    assert torch.equal(found.rows()[:, 0], torch.arange(12.0).repeat_interleave(4))


def test_chosen_rows(memory: int):
    rows = torch.arange(40.0).reshape(20, 2)
    for which in ([3, 4, 5], [5, 4, 3], [0], [], [*range(20)], [*range(0, 20, 2), 1, *range(5)]):
        found = chosen(rows, which)
        assert torch.equal(found, rows[which])
    assert chosen(rows, [3, 4, 5]).data_ptr() == rows[3:].data_ptr()
    assert mapped(chosen(rows, [*reversed(range(20))])) is (memory == 100)


LOADER = """
import torch

def batches():
    generator = torch.Generator().manual_seed(0)
    for _ in range(9):
        yield torch.randn(4, 3, generator=generator), torch.arange(4)
"""


def test_a_loader_gives_the_same_rows_from_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "own.py").write_text(LOADER)
    plain = load_data(f"{tmp_path}/own.py:batches")
    monkeypatch.setattr(spool, "MEMORY", 100)
    found = load_data(f"{tmp_path}/own.py:batches")
    for name in ("x", "y", "test_x", "test_y"):
        assert torch.equal(getattr(found, name), getattr(plain, name))
    assert mapped(found.x) and not mapped(plain.x)


def test_no_space_is_one_line(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(spool, "MEMORY", 100)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(BitwrightError) as caught:
            for _ in range(100):
                found = Spool()
                found.add(torch.zeros(300, 2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    message = str(caught.value)
    assert "rows do not fit into" in message and "TMPDIR" in message and "\n" not in message
