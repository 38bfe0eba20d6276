"""Files are there whole or as they were; nothing is left beside them."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from bitwright.files import put, replacing
from bitwright.folders import made


def test_text_is_utf8_and_bytes_are_bytes(tmp_path: Path):
    assert put(tmp_path / "a", "½\n") == tmp_path / "a"
    assert (tmp_path / "a").read_bytes() == b"\xc2\xbd\n"
    put(tmp_path / "a", b"\r\n")
    assert (tmp_path / "a").read_bytes() == b"\r\n"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_what_fails_leaves_the_file_as_it_was(tmp_path: Path):
    path = put(tmp_path / "a", "before")
    with pytest.raises(KeyboardInterrupt), replacing(path) as temporary:
        temporary.write_text("half")
        assert path.read_text() == "before"
        raise KeyboardInterrupt
    assert path.read_text() == "before"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_folder_that_is_not_there_is_the_systems_error(tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        put(tmp_path / "no" / "a", "x")


def test_a_full_disk_names_the_file(tmp_path: Path):
    path = tmp_path / "plan.json"
    with pytest.raises(OSError, match=r"No space left on device: '.*plan\.json'"), replacing(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(FileNotFoundError, match="other"), replacing(path):
        (tmp_path / "other").read_bytes()
    assert not list(tmp_path.iterdir())


def test_a_folder_made_for_nothing_is_gone_again(tmp_path: Path):
    out = tmp_path / "a" / "b"
    with pytest.raises(ValueError, match="bad"), made(out):
        assert out.is_dir()
        raise ValueError("bad")
    assert not out.exists()
    with pytest.raises(ValueError, match="bad"), made(out):
        put(out / "kept", "x")
        raise ValueError("bad")
    assert (out / "kept").is_file()
    (tmp_path / "own").mkdir()
    with pytest.raises(ValueError, match="bad"), made(tmp_path / "own"):
        raise ValueError("bad")
    assert (tmp_path / "own").is_dir(), "it was there before"
