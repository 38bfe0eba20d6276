"""Pruning end to end: files that rebuild the module, resuming, quantizing what is left."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import onnxruntime
import pytest
import torch

import bitwright
from bitwright.errors import BitwrightError
from bitwright.pipeline import PruneSettings, load_network, run_prune
from bitwright.pipeline.keep import parse_keep
from pipeline import tiny

stage = importlib.import_module("bitwright.pipeline.prune")  # the name is the function's as well


@pytest.fixture(autouse=True)
def exported(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch):
    """Exports take seconds: files by which the clock can tell sizes stand for them."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    if "command" not in request.node.name:

        def stub(module, x, path):
            count = sum(p.numel() for p in module.parameters())
            path.write_bytes(bytes(4 * count))

        monkeypatch.setattr(stage, "_export", stub)


def _run(out: Path, **options):
    x = tiny.rows(options.pop("count", 80))
    return bitwright.prune(tiny.network(), x, out=out, test=tiny.rows(20, 7), **options)


def test_the_files_give_the_module_back_and_the_runtime_agrees(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.undo()
    found = _run(tmp_path, keep="60%", implant=0.2)
    x = tiny.rows(20, 7)
    again = bitwright.load_pruned(tiny.network(3), tmp_path)
    with torch.no_grad():
        wanted = found.module(x)
        assert torch.equal(again(x), wanted)
    live = onnxruntime.InferenceSession(tmp_path / "pruned.onnx")
    (answer,) = live.run(None, {live.get_inputs()[0].name: x.numpy()})
    assert torch.allclose(torch.from_numpy(answer), wanted, atol=1e-4)
    said = json.loads((tmp_path / "prune.json").read_text())
    count = sum(p.numel() for p in found.module.parameters())
    assert said["size"]["after"]["parameters"] == count == found.after.parameters
    assert count <= 0.6 * found.before.parameters
    page = (tmp_path / "pruning.html").read_text()
    assert "<script" not in page and "Groups of coupled channels" in page


@pytest.mark.parametrize("of", ["parameters", "macs", "bytes"])
def test_budgets_hold(tmp_path: Path, of: str):
    found = _run(tmp_path, keep="70%", of=of, compensate=False)
    assert found.after[of] <= 0.7 * found.before[of]


def test_a_latency_is_met_by_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The clock stands for one that counts parameters: the largest file within the bound."""
    from bitwright.pipeline import keep

    def clock(paths, x):
        return [path.stat().st_size * 1e-6 for path in paths]

    monkeypatch.setattr(keep.runtime, "latencies", clock)
    found = _run(tmp_path, keep="90%", of="latency", compensate=False)
    assert found.after.parameters < found.before.parameters
    with pytest.raises(BitwrightError, match="no share of channels"):
        _run(tmp_path / "b", keep="1us", compensate=False)


def test_a_finished_run_is_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    once = _run(tmp_path, keep="60%")

    def never(*args, **options):
        raise AssertionError("computed again")

    monkeypatch.setattr(stage, "unit_scores", never)
    monkeypatch.setattr(stage, "compensated", never)
    again = _run(tmp_path, keep="60%")
    assert again.judgement == once.judgement and again.edit == once.edit
    with pytest.raises(AssertionError, match="computed again"):
        _run(tmp_path, keep="50%")


def test_finetuning_lowers_the_held_out_loss_and_goes_on_after_a_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    options = {"keep": "40%", "epochs": 4, "compensate": False, "rate": 3e-3, "count": 600}
    whole = _run(tmp_path / "a", **options)
    assert min(whole.history) < whole.history[0]

    class Killed(Exception):
        pass

    def kill(name: str, fraction: float) -> None:
        if name == "finetune" and fraction > 0.6:
            raise Killed

    with pytest.raises(Killed):
        _run(tmp_path / "b", progress=kill, **options)
    assert len(list((tmp_path / "b").glob("prune-*.safetensors"))) == 2
    again = _run(tmp_path / "b", **options)
    assert again.history == whole.history
    left = {path.name for path in (tmp_path / "b").glob("prune-*.safetensors")}
    assert left == {"prune-scores.safetensors"}


def test_the_model_is_left_as_it_is(tmp_path: Path):
    model = tiny.network()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    bitwright.prune(model, tiny.rows(80), out=tmp_path, keep="60%", epochs=1)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"keep": "0%"}, "--keep '0%'"),
        ({"keep": "3bit"}, "--keep '3bit'"),
        ({"of": "joy"}, "--of 'joy'"),
        ({"score": "joy"}, "score 'joy'"),
        ({"implant": 2.0}, "--implant must be"),
        ({"rank": -1}, "--rank must be"),
        ({"skip": ("nothing",)}, "--skip nothing matches no layer"),
        ({"keep": "1%"}, "the floors of the layers leave"),
        ({"joy": 1}, "prune has no option 'joy'"),
    ],
)
def test_what_cannot_be_meant_is_refused(tmp_path: Path, options: dict, says: str):
    with pytest.raises(BitwrightError, match=says):
        _run(tmp_path, **options)


def test_one_plan_of_removed_implanted_and_quantized_channels(tmp_path: Path):
    """At one bit a weight, some channels are worth less than others' second bit."""
    settings = PruneSettings(keep="auto", calibration_rows=60)
    task = tiny.task()
    found = run_prune(task, settings, tmp_path, budget="1.5bit")
    assert found.after.parameters <= found.before.parameters
    with pytest.raises(BitwrightError, match="give --budget"):
        run_prune(task, settings, tmp_path / "b")


def test_keep_is_read_as_written():
    assert parse_keep("40%", "macs") == ("macs", 0.4, True)
    assert parse_keep("180KB", "parameters") == ("bytes", 180000.0, False)
    assert parse_keep("3ms", "macs") == ("latency", 0.003, False)


def test_the_command_prunes_and_quantizes_into_one_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    tiny.write(tmp_path)
    words = tiny.given(tmp_path, out=tmp_path / "out", keep="60%", budget="4bit")
    assert tiny.call("prune", *words, "--quiet") == 0
    said = capsys.readouterr().out
    assert "parameters: " in said and "model.onnx" in said
    page = (tmp_path / "out" / "report.html").read_text()
    assert "pruned first" in page and "KL to the original network" in page
    spec, weights = f"{tmp_path}/net.py:other", tmp_path / "out" / "pruned.safetensors"
    again = load_network(spec, weights)
    with torch.no_grad():
        wanted = bitwright.load_pruned(tiny.network(), tmp_path / "out")(tiny.rows(4))
        assert torch.equal(again(tiny.rows(4)), wanted)
