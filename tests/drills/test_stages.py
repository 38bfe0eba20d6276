"""Stages in any order, killed, repeated, with files lost or spoilt between: the same bytes at last.

A kill is an exception that comes out of a random operation on files, and out of all after it: what
would tidy up cannot, as in a process that is gone.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from pipeline import tiny

STAGES = ("measure", "search", "quantize", "finetune", "export", "verify", "compress")
FILES = (*tiny.RESULTS, "scores.safetensors", "quantized.safetensors", "stages.json", "run.json",
         "float.onnx", "timings.json")  # fmt: skip
#: what of those may be edited by hand, so that a change in them is not damage
EDITED = {"plan.json"}


class Killed(BaseException):
    """The process is gone."""


def dying(patch: pytest.MonkeyPatch, left: int) -> None:
    """The `left`-th operation on files from now on is the first that does not happen."""

    def watched(original: Any) -> Any:
        def operation(*args: Any, **kwargs: Any) -> Any:
            nonlocal left
            left -= 1
            if left <= 0:
                raise Killed
            return original(*args, **kwargs)

        return operation

    patch.setattr(Path, "write_bytes", watched(Path.write_bytes))
    patch.setattr(Path, "unlink", watched(Path.unlink))
    patch.setattr(os, "replace", watched(os.replace))


class Stages(RuleBasedStateMachine):
    """One folder, and whatever may happen to it."""

    place: Path
    wanted: dict[str, str]

    @initialize()
    def begin(self) -> None:
        self.out = Path(tempfile.mkdtemp(dir=self.place)) / "run"

    def words(self, stage: str) -> list[str]:
        given = tiny.given(self.place, method="channels", epochs=1)
        return [stage, *given, "--out", str(self.out), "--quiet"]

    @rule(stage=st.sampled_from(STAGES))
    def stage(self, stage: str) -> None:
        assert tiny.call(*self.words(stage)) == 0

    @rule(stage=st.sampled_from(STAGES), left=st.integers(1, 30))
    def killed(self, stage: str, left: int) -> None:
        with pytest.MonkeyPatch.context() as patch:
            dying(patch, left)
            try:
                tiny.call(*self.words(stage))
            except Killed:
                return

    @rule(name=st.sampled_from(FILES), at=st.floats(0, 1, exclude_max=True), cut=st.booleans())
    def spoilt(self, name: str, at: float, cut: bool) -> None:
        path = self.out / name
        if name in EDITED or not path.is_file():
            return
        data = bytearray(path.read_bytes())
        if cut:
            data = data[: int(at * len(data))]
        else:
            data[int(at * len(data))] ^= 1
        path.write_bytes(data)

    @rule(name=st.sampled_from(FILES))
    def lost(self, name: str) -> None:
        (self.out / name).unlink(missing_ok=True)

    def teardown(self) -> None:
        assert tiny.call(*self.words("compress")) == 0
        assert tiny.digests(self.out) == self.wanted
        assert not list(self.out.glob("*.part"))
        shutil.rmtree(self.out)


@pytest.mark.slow
def test_any_order_of_stages_ends_in_the_same_bytes(
    tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
):
    tiny.write(tmp_path)
    calm = tmp_path / "calm"
    options = tiny.given(tmp_path, method="channels", epochs=1)
    assert tiny.call("compress", *options, "--out", str(calm), "--quiet") == 0
    monkeypatch.setattr(Stages, "place", tmp_path, raising=False)
    monkeypatch.setattr(Stages, "wanted", tiny.digests(calm), raising=False)
    run_state_machine_as_test(Stages, settings=stories(os.environ.get("BITWRIGHT_EXAMPLES")))


def stories(asked: str | None) -> settings:
    """Four stories, always the same; or as many as are asked for, new ones in every run."""
    return settings(
        max_examples=4 if asked is None else int(asked),
        stateful_step_count=6,
        deadline=None,
        derandomize=asked is None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )


def test_stories_are_the_same_unless_more_are_asked_for():
    told: list[list[str]] = []

    class Told(RuleBasedStateMachine):
        @initialize()
        def begin(self) -> None:
            told[-1].append("begin")

        @rule(at=st.integers(0, 2**30))
        def happens(self, at: int) -> None:
            told[-1].append(str(at))

    for asked in (None, None, "4", "4"):
        told.append([])
        run_state_machine_as_test(Told, settings=stories(asked))
    always, again, new, newer = told
    assert always == again and len({*map(tuple, (always, new, newer))}) == 3
    assert always.count("begin") == new.count("begin") == 4
