"""`train-multibit`: a run from a task to files, and what it prints."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bitwright import multibit
from bitwright.deploy import runtime
from bitwright.multibit.activations import chains
from bitwright.network import outputs
from bitwright.pipeline import MultibitSettings, train_multibit
from pipeline import tiny
from pipeline.tiny import call, given, refused

SHORT = {"bits": 2, "loops": 1, "straight": 1, "batch": 16, "size": 18}


def test_the_command_trains_writes_and_says_what_it_wrote(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    tiny.write(tmp_path)
    words = given(tmp_path, out=tmp_path / "run", group="0=kernel", **SHORT)
    assert call("train-multibit", *words, "--labels", "--quiet") == 0
    said = capsys.readouterr().out.splitlines()
    written = json.loads((tmp_path / "run" / "multibit.json").read_text())
    found = multibit.load(tmp_path / "run" / "model.safetensors")
    assert said[0] == (
        f"{found.average_bits:.3f} bits a weight: signs, coordinates, counts of bases"
    )
    assert said[1].startswith("KL to the original ") and ", top-1 0." in said[1] + "0."
    size = (tmp_path / "run" / "model.onnx").stat().st_size
    assert said[3] == f"{tmp_path / 'run' / 'model.onnx'}: {size:,} bytes"
    assert written["bits"] == found.average_bits <= 2.2, "float16 and folding change nothing much"
    assert [line["what"] for line in written["history"]] == [
        "start", "prune", "bases", "coordinates", "straight", "coordinates",
    ]  # fmt: skip
    page = (tmp_path / "run" / "multibit.html").read_text()
    assert "<svg" in page and f"{len(written['history']) - 1}</th>" in page
    x = tiny.rows(8, 3)
    session = runtime.session(tmp_path / "run" / "model.onnx")
    answers = session.run(None, {"input": x.numpy()})[0]
    assert np.abs(answers - outputs(found.network.module, x).numpy()).max() < 1e-4


def test_a_finished_training_is_not_repeated(tmp_path: Path):
    tiny.write(tmp_path)
    words = given(tmp_path, out=tmp_path / "run", **SHORT)
    assert call("train-multibit", *words, "--quiet") == 0
    before = tiny.digests(tmp_path / "run", ("model.safetensors", "model.onnx"))
    kept = (tmp_path / "run" / "training.safetensors").stat().st_mtime_ns
    assert call("train-multibit", *words, "--quiet") == 0
    assert tiny.digests(tmp_path / "run", before) == before
    assert (tmp_path / "run" / "training.safetensors").stat().st_mtime_ns == kept


def test_activations_have_bases_where_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    tiny.write(tmp_path)
    words = given(tmp_path, out=tmp_path / "run", **SHORT)
    assert call("train-multibit", *words, "--activation-bases", "2", "--quiet") == 0
    found = multibit.load(tmp_path / "run" / "model.safetensors")
    cuts = chains(found.network)
    assert len(cuts) == len(found.layers) - 1 and {len(cut.values) for cut in cuts} == {4}
    assert "1 to 4 bases" in refused(
        capsys, "train-multibit", *words, "--activation-bases", "7", "--out", str(tmp_path / "b")
    )


def test_bad_groups_are_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    tiny.write(tmp_path)
    words = given(tmp_path, out=tmp_path / "run", **SHORT)
    assert "no layer '9'" in refused(capsys, "train-multibit", *words, "--group", "9=kernel")
    assert "divide" in refused(capsys, "train-multibit", *words, "--group", "0=5")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("--bits", "1.5"), "another training (bits)"),
        (("--temperature", "2"), "another training (temperature)"),
        (("--labels",), "another training (labels, temperature, teacher)"),
        (("--most", "4"), "another training (most, starting weights)"),
    ],
)
def test_a_changed_option_does_not_go_on_from_the_training_in_the_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: tuple[str, ...], says: str
):
    tiny.write(tmp_path)
    out = tmp_path / "run"
    words = given(tmp_path, out=out, **SHORT)
    assert call("train-multibit", *words, "--quiet") == 0
    before = tiny.digests(out, ("model.safetensors", "multibit.json", "training.safetensors"))
    assert says in refused(capsys, "train-multibit", *words, *change)
    assert tiny.digests(out, before) == before


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("--size", "0", "groups have 0 weights"),
        ("--size", "-3", "groups have -3 weights"),
        ("--batch", "0", "batch is 0; give 1 or more"),
        ("--most", "9", "1 to 8 bases, not 9"),
        ("--loops", "0", "loops is 0; give 1 or more"),
        ("--bits", "50", "50.0 bits a weight is no target"),
        ("--temperature", "0", "temperature is 0.0; give a number above 0"),
        ("--rate", "-0.01", "rate is -0.01; give a number above 0"),
        ("--straight-rate", "nan", "straight_rate is nan; give a number above 0"),
        ("--final", "-1", "final is -1; give 0 or more"),
        ("--skip", "nosuch", "--skip nosuch matches no layer"),
    ],
)
def test_numbers_that_cannot_be_are_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, value: str, says: str
):
    tiny.write(tmp_path)
    words = given(tmp_path, out=tmp_path / "run", **SHORT)
    assert says in refused(capsys, "train-multibit", *words, option, value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("settings", "changes", "wanted"),
    [
        ({}, {}, ("kl", 1, 4.0)),
        ({"temperature": 2.0}, {"class_axis": -1}, ("kl", -1, 2.0)),
        ({"labels": True}, {}, ("kl", 1, 1.0)),
        ({}, {"divergence": "squared"}, ("squared", 1, 1.0)),
    ],
)
def test_curvature_is_that_of_the_loss_that_is_trained(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, Any],
    changes: dict[str, Any],
    wanted: tuple[str, int, float],
):
    asked = []
    real = multibit.curvatures

    def watched(*args: Any, **options: Any) -> Any:
        asked.append((options["kind"], options["class_axis"], options["temperature"]))
        return real(*args, **options)

    module = importlib.import_module("bitwright.multibit.train")  # `train` is the function, too
    monkeypatch.setattr(module, "curvatures", watched)
    recipe = multibit.Recipe(3.0, loops=1, straight=0, final=0, batch=16, curvature="gauss-newton")
    task = tiny.task(**changes)
    train_multibit(task, MultibitSettings(recipe, {}, most=4, **settings), tmp_path / "run")
    assert set(asked) == {wanted}


def test_labels_are_learnt_by_the_tasks_own_loss(tmp_path: Path):
    recipe = multibit.Recipe(3.0, loops=1, straight=0, final=0, batch=16)
    settings = MultibitSettings(recipe, {}, most=4, labels=True)
    x = tiny.rows(80)
    wanted = tiny.network()(x).detach() + 0.01
    task = tiny.task(calibration_labels=wanted, divergence="squared", test=None, test_labels=None)
    found = train_multibit(task, settings, tmp_path / "squared")
    assert all(line["loss"] < 5 for line in found.history[1:]), "squares, not cross-entropy"
    axis = tiny.task(class_axis=-1)
    by_axis = train_multibit(axis, settings, tmp_path / "axis").history
    assert by_axis == train_multibit(tiny.task(), settings, tmp_path / "one").history


def test_the_network_is_prepared_with_rows_from_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    import bitwright.pipeline.multibit as stage

    seen = []
    monkeypatch.setattr(stage, "EXAMPLES", 20)
    monkeypatch.setattr(
        stage, "prepare", lambda model, x, **o: seen.append(x) or multibit.prepare(model, x, **o)
    )
    recipe = multibit.Recipe(3.0, loops=1, straight=0, final=0, batch=16)
    task = tiny.task()
    train_multibit(task, MultibitSettings(recipe, {}, most=4), tmp_path / "run")
    places = [int((task.calibration == row).flatten(1).all(1).nonzero()[0]) for row in seen[0]]
    assert len(set(places)) == 20 and max(places) > 60 and min(places) < 20
