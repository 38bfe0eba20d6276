"""A folder that one was given runs no code of its own: `run.json` is sealed by who wrote it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import bitwright
from bitwright.cli import signed
from bitwright.cli.memory import REMEMBERED, defaults, remember
from pipeline import tiny
from pipeline.tiny import call, given, refused

pytestmark = pytest.mark.usefixtures("quick")
EVIL = "from pathlib import Path\nPath(__file__).with_suffix('.ran').touch()\nraise SystemExit(3)\n"
LINE = "was not written here by this user, so the code that it names"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `net.py`, `data.npz` and a `run` whose widths are chosen."""
    return tiny.ran(tmp_path_factory.mktemp("signed"), "search")


@pytest.fixture
def run(place: Path, tmp_path: Path) -> Path:
    """A copy of the run with a file `evil.py` in it."""
    out = shutil.copytree(place / "run", tmp_path / "run")
    (out / "evil.py").write_text(EVIL)
    return out


def another_user(patch: pytest.MonkeyPatch, home: Path) -> None:
    for name in ("XDG_STATE_HOME", "LOCALAPPDATA"):
        patch.setenv(name, str(home))


def change(out: Path, **options: Any) -> None:
    """Edit `run.json`; the seal stays as it was."""
    path = out / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | options))


@pytest.mark.parametrize("stage", ["verify", "search", "profile", "bench", "report"])
def test_code_beside_an_edited_file_is_not_run(
    stage: str, run: Path, capsys: pytest.CaptureFixture[str]
):
    change(run, model=f"{run}/evil.py:net")
    said = refused(capsys, stage, "--out", str(run))
    assert LINE in said and f"{run}/evil.py:net" in said and "give --model and --data" in said
    assert not (run / "evil.ran").exists()


@pytest.mark.parametrize("name", ["model", "data", "task"])
@pytest.mark.parametrize("seal", ["none", "another user's", "of something else"])
def test_no_seal_but_ours_is_taken(
    name: str,
    seal: str,
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    options = {**defaults(), "model": "demo", "data": "demo", name: f"{run}/evil.py:net"}
    if name == "task":
        options |= {"model": None, "data": None}
    with monkeypatch.context() as patch:
        if seal == "another user's":
            another_user(patch, tmp_path / "other")
        remember(run / "run.json", options)
    if seal == "none":
        change(run, hmac=None)
    elif seal == "of something else":
        change(run, seed=1)
    assert LINE in refused(capsys, "verify", "--out", str(run))
    assert not (run / "evil.ran").exists()
    if seal == "another user's":  # its writer may
        another_user(monkeypatch, tmp_path / "other")
        assert "failed" in refused(capsys, "verify", "--out", str(run))
        assert (run / "evil.ran").exists()


@pytest.mark.parametrize(
    "text", ['"hmac": 3', '"hmac": "\\ud800"', '"x": ' + "[" * 900 + "]" * 900]
)
def test_a_seal_may_be_anything(text: str, run: Path, capsys: pytest.CaptureFixture[str]):
    path = run / "run.json"
    path.write_text(path.read_text().rstrip()[:-1] + f", {text}}}")
    assert LINE in refused(capsys, "search", "--out", str(run))


def test_our_own_run_goes_on_and_what_is_typed_needs_no_seal(place: Path, run: Path):
    assert call("search", "--out", str(run), "--quiet") == 0
    (run / "run.json").write_text("{}")
    assert call("search", *given(place, out=run), "--quiet") == 0
    assert call("search", "--out", str(run), "--quiet") == 0


def test_a_relative_path_is_not_another_file_elsewhere(
    place: Path, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(place)
    words = ("--model", "net.py:network", "--data", "npz:data.npz", "--out", str(run), "--quiet")
    assert call("search", *words) == 0
    assert call("search", "--out", str(run), "--quiet") == 0
    (run / "evil.py").rename(run / "net.py")
    shutil.copy("data.npz", run)
    monkeypatch.chdir(run)
    assert LINE in refused(capsys, "search", "--out", ".")
    assert not (run / "net.ran").exists()


def test_what_is_no_code_needs_no_seal(place: Path, run: Path, capsys: pytest.CaptureFixture[str]):
    change(run, hmac=None, model="demo", data="demo", method="none")
    assert "none" in refused(capsys, "search", "--out", str(run))  # the method, not the seal
    options = {"task": None, "model": "demo"}
    for data in ("demo", "npz:evil.py:x", "folder:evil.py:x?size=3"):
        assert signed.code({**options, "data": data}) == []
    for name, spec in (
        ("model", "a.py:b"), ("model", "a.b:c"), ("model", "npz:x"), ("data", "a.py:b"),
        ("data", "a:b"), ("data", " npz:x"), ("task", "a.py:b"), ("task", "demo"),
    ):  # fmt: skip
        assert signed.code({name: spec}) == [spec]


def test_without_a_place_for_a_key_stages_have_to_be_told_again(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "file").touch()
    another_user(monkeypatch, tmp_path / "file")  # no folder can be made in a file
    out = tmp_path / "run"
    assert call("search", *given(place, out=out), "--quiet") == 0
    assert json.loads((out / "run.json").read_text())["hmac"] is None
    assert LINE in refused(capsys, "search", "--out", str(out))
    assert call("quantize", *given(place, out=out), "--quiet") == 0


# --------------------------------------------------------------------------------------- the key


def test_the_seal_is_hmac_sha256(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """RFC 2104: H(K ⊕ opad ‖ H(K ⊕ ipad ‖ text)), of the options and where their code lies."""
    another_user(monkeypatch, tmp_path)
    options = {"model": str(tmp_path / "net.py:f"), "data": "demo", "seed": 1}
    found = signed.seal(options)
    key = (tmp_path / "bitwright" / "key").read_bytes().ljust(64, b"\0")
    text = json.dumps([options, [[str((tmp_path / "net.py").resolve())]]], sort_keys=True).encode()
    inner = hashlib.sha256(bytes(b ^ 0x36 for b in key) + text).digest()
    assert found == hashlib.sha256(bytes(b ^ 0x5C for b in key) + inner).hexdigest()
    assert signed.is_ours(options, found)
    assert not signed.is_ours({**options, "seed": 2}, found)
    assert not signed.is_ours({**options, "model": str(tmp_path / "a" / "net.py:f")}, found)


def test_every_option_is_under_the_seal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    another_user(monkeypatch, tmp_path)
    options = {**defaults(), "model": "a.py:b"}
    found = signed.seal(options)
    assert signed.is_ours(options, found)
    assert not [n for n in REMEMBERED if signed.is_ours({**options, n: "else.py:b"}, found)]


def test_a_package_is_where_it_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    another_user(monkeypatch, tmp_path)
    for name in ("a", "b"):
        (tmp_path / name / "somebodys").mkdir(parents=True)
        (tmp_path / name / "somebodys" / "__init__.py").write_text("raise RuntimeError")
    options = {"model": "somebodys.nets:net"}
    with monkeypatch.context() as patch:
        patch.syspath_prepend(tmp_path / "a")
        found = signed.seal(options)
        assert signed.is_ours(options, found)  # and nothing was imported
    monkeypatch.syspath_prepend(tmp_path / "b")
    assert not signed.is_ours(options, found)


@pytest.mark.skipif(os.name == "nt", reason="permissions of POSIX")
def test_the_key_is_the_users_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    another_user(monkeypatch, tmp_path / "state")
    first = signed.seal({})
    path = tmp_path / "state" / "bitwright" / "key"
    assert path.stat().st_mode & 0o777 == 0o600 and len(path.read_bytes()) == 32
    assert [p.name for p in path.parent.iterdir()] == ["key"]
    assert signed.seal({}) == first
    path.write_bytes(path.read_bytes()[:31])  # damaged: another one
    second = signed.seal({})
    assert second not in (None, first) and len(path.read_bytes()) == 32
    another_user(monkeypatch, tmp_path / "other")
    assert signed.seal({}) not in (None, first, second)
    monkeypatch.setenv("XDG_STATE_HOME", "state")  # XDG: relative paths are ignored
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert signed.seal({}) and (tmp_path / "home/.local/state/bitwright/key").is_file()


def test_processes_that_start_together_have_one_key(tmp_path: Path):
    text = """
import importlib.util, sys
from pathlib import Path
spec = importlib.util.spec_from_file_location("signed", sys.argv[1])
signed = importlib.util.module_from_spec(spec)
spec.loader.exec_module(signed)
print("ready", flush=True)
sys.stdin.readline()
print(signed._key().hex())
"""
    state = {"XDG_STATE_HOME": str(tmp_path), "LOCALAPPDATA": str(tmp_path)}
    children = [
        subprocess.Popen(
            [sys.executable, "-c", text, str(Path(bitwright.__file__).parent / "cli/signed.py")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **state},
        )
        for _ in range(6)
    ]  # fmt: skip
    for child in children:
        assert child.stdout is not None and child.stdout.readline() == "ready\n"
    for child in children:
        assert child.stdin is not None
        child.stdin.write("\n")
        child.stdin.flush()
    keys = {child.communicate()[0].strip() for child in children}
    assert keys == {(tmp_path / "bitwright" / "key").read_bytes().hex()}
