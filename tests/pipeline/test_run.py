"""Runs: goals, methods, overrides, what is done again and what is not."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

import bitwright
from bitwright import Data, Settings, Task, allocate, curvature, quantize
from bitwright.deploy import artefact
from bitwright.errors import BitwrightError
from bitwright.pipeline import Run, built, planned
from bitwright.pipeline import search as searching
from bitwright.pipeline.budget import parse_budget
from bitwright.pipeline.store import Store
from bitwright.pipeline.summarize import summarize
from bitwright.task import assemble
from pipeline import tiny


@pytest.fixture
def start(measured: Path, tmp_path: Path) -> Any:
    """A run of other settings in a copy of that folder."""
    folder = tmp_path / "run"
    shutil.copytree(measured, folder)

    def make(what: Task | None = None, **settings: Any) -> Run:
        if "budget" in settings:
            settings["budget"] = settings["budget"] and parse_budget(settings["budget"])
        return Run(what or tiny.task(), Settings(**settings), folder)

    return make


def bits(run: Run) -> dict[str, list[int]]:
    found: dict[str, list[int]] = json.loads(allocate.plan.to_json(run.plan))["bits"]
    return found


# ------------------------------------------------------------------------------ methods, goals


@pytest.mark.parametrize("method", ["channels", "layers", "uniform", "cw-hawq"])
def test_methods_keep_the_budget_and_run_anywhere(method: str, start: Any):
    run = start(method=method, budget="2.5bit", evaluations=8)
    plan = run.plan
    assert plan.method == method and plan.cost <= 2.5 * tiny.WEIGHTS
    widths = [set(b) for b in bits(run).values()]
    if method == "uniform":
        assert widths == [{2}] * 3
    if method == "layers":
        assert all(len(w) == 1 for w in widths) and plan.cost > 2 * tiny.WEIGHTS
    if method in ("channels", "cw-hawq"):
        assert plan.cost > 2.4 * tiny.WEIGHTS
    if method == "cw-hawq":
        assert len(run.learning) == 8
        assert start(method=method, budget="2.5bit", evaluations=8).plan.key == plan.key
    live = onnxruntime.InferenceSession(str(run.onnx), providers=["CPUExecutionProvider"])
    (answers,) = live.run(None, {live.get_inputs()[0].name: run.task.test.numpy()})
    assert answers.shape == (40, 4) and np.isfinite(answers).all()
    assert {o.domain for o in onnx.load(run.onnx).opset_import} == {""}  # operations of anybody's


@pytest.mark.parametrize("method", ["channels", "layers", "uniform", "cw-hawq"])
def test_methods_keep_the_bit_operations(method: str, start: Any):
    run = start(method=method, budget="6bit", max_bops="0.45M", evaluations=8)
    found = bits(run)
    # positions by the weights that each channel reads, activations of 8 bits
    positions = {"0": 64 * 9, "3": 16 * 72, "7": 12}
    by_hand = 8e-6 * sum(positions[name] * sum(widths) for name, widths in found.items())
    (total,) = run.plan.limits
    assert (total.name, total.unit, total.bound) == ("BOPs", "M", 0.45)
    assert total.total == pytest.approx(by_hand)
    assert {"uniform": 0.44, "layers": 0.38}.get(method, 0.43) < total.total <= 0.45
    assert run.plan.cost < 5 * tiny.WEIGHTS  # the budget alone would give six bits
    assert set(run.rivals()) >= {"uniform", "layers", "channels"}
    for plan in run.rivals().values():
        assert plan.limits[0].total <= 0.45


def test_what_is_known_of_a_finished_run_is_not_found_out_again(start: Any):
    first = start(budget="2bit", activations=None)
    rows, flight = first.judgements, first.preflight
    kept = ("judge.json", "preflight.json", "float.onnx")
    before = {n: first.store.path(n).stat().st_mtime_ns for n in kept}

    def again(**changes: Any) -> Any:
        run = Run(tiny.task(**changes), first.settings, first.folder)
        run.preflight  # noqa: B018
        return run

    run = again()
    assert run.judgements == rows and run.preflight == flight
    assert {n: run.store.path(n).stat().st_mtime_ns for n in kept} == before
    test = tiny.rows(20, 200)
    other = again(test=test, test_labels=tiny.labels_of(test)).judgements
    assert other["channels"].judgement.kl != rows["channels"].judgement.kl
    wrong = again(test_labels=(first.task.test_labels + 1) % 4).judgements
    assert wrong["float"].judgement.metric == 0 and rows["float"].judgement.metric == 1
    plan = first.store.path("plan.json")
    text = plan.read_text()
    plan.write_text(text.replace('"channels"', '"layers"'))
    assert "layers" in again().judgements, "named as the plan says now"
    plan.write_text(text)
    for value in (0.25, 0.75):  # no key knows what a function computes
        found = again(metric=lambda answers, labels, value=value: torch.tensor(value)).judgements
        assert found["float"].judgement.metric == value
    path = first.store.path("judge.json")
    assert again().judgements["float"].judgement.metric == 1
    path.write_text(path.read_text().replace("1.0", "0.5"))
    float_file = first.store.path("float.onnx")
    content = float_file.read_bytes()
    float_file.write_bytes(content[:-1])
    run = again()
    assert run.judgements["float"].judgement.metric == 1 and float_file.read_bytes() == content


@pytest.mark.slow
def test_bounds_hold_with_every_goal(start: Any):
    free = start(budget=None, max_kl=0.05)
    bound = start(budget=None, max_kl=0.05, max_bops="1M")
    assert bound.bench.divergence(bound.plan) <= 0.05 and bound.plan.limits[0].total <= 1
    assert free.plan.limits == () and free._search_key != bound._search_key
    with pytest.raises(BitwrightError, match=r"even the largest plan \(1\.[0-9]+ bits a weight"):
        _ = start(budget=None, max_kl=0.001, max_bops="0.2M").plan
    run = start(budget="4.8KB", max_bops="0.45M")
    assert run.onnx.stat().st_size <= 4800 and run.plan.limits[0].total <= 0.45
    summary = summarize(run, "tiny", "bitwright")
    assert summary.budget == "4.8KB, BOPs ≤ 0.45 M"
    assert f"BOPs: {run.plan.limits[0].total:.4g} of at most 0.45 M" in summary.notes


def test_rounding_by_error_feedback(start: Any):
    plain = start(budget="2bit", activations=None)
    fed = start(budget="2bit", activations=None, rounding="feedback")
    same = fed.bench.divergence(plain.plan), plain.bench.divergence(plain.plan)
    assert same[0] < same[1]
    rounded = quantize.round_weights(
        fed.network, fed.tables, quantize.plan_bits(fed.network, fed.plan)
    )
    stored = fed.corrected.layers
    assert any(not torch.equal(stored[n].codes, rounded[n].codes) for n in stored)
    assert len(fed.bench.seen) == len(fed.calibration)  # nothing has to judge
    goal = start(budget=None, max_kl=0.5, activations=None, rounding="feedback")
    used, held = goal.bench.seen, goal.bench.held_out()
    assert len(used) + len(held) == len(goal.calibration)  # none both rounded for and judged on
    assert fed._search_key != plain._search_key


def test_searches_price_error_feedback(start: Any):
    run = start(method="cw-hawq", budget="2.5bit", evaluations=8, rounding="feedback")
    assert run.plan.cost <= 2.5 * tiny.WEIGHTS
    assert run.learning[0].value == run.bench.reward(
        allocate.knapsack(run.bench.problem(run.plan.budget))
    )
    assert run.verification.ok


def test_an_artefact_that_lost_something_is_no_success(start: Any):
    run = start(budget="4bit")
    _ = run.onnx
    kept = run.quantized.layers["3"]
    other = replace(kept, codes=(kept.codes + 1) % 2 ** kept.grid.bits[:, None])
    run.__dict__["quantized"] = replace(run.quantized, layers={**run.quantized.layers, "3": other})
    check = run.verification
    assert check.lost and check.why == str(check.lost[0]) and not check.differing
    assert not check.ok and json.loads(run.store.path("verify.json").read_text())["ok"] is False
    shown = summarize(run, "tiny").verification
    assert shown is not None and not shown.ok and shown.first_difference == check.lost[0].name


def test_a_loose_budget_ends_the_search_at_once(start: Any):
    run = start(method="cw-hawq", budget="8bit", evaluations=8)
    assert run.plan.cost > 7.5 * tiny.WEIGHTS  # some channels lose less at 7 bits than at 8
    assert len(run.learning) == 1


def test_float_activations_and_fine_tuning(start: Any):
    run = start(activations=None, epochs=8)
    assert not run.corrected.edges
    before = run.corrected.layers["3"].bias
    assert not torch.equal(before, run.quantized.layers["3"].bias)


def test_the_order_of_fine_tuning_counts_where_there_is_any(
    start: Any, monkeypatch: pytest.MonkeyPatch
):
    saved: list[Path] = []
    save = built.artefact.save

    def spy(quantized: Any, path: Path, *more: Any) -> None:
        saved.append(path)
        save(quantized, path, *more)

    monkeypatch.setattr(built.artefact, "save", spy)
    found = {}
    for epochs, order in ((0, "all"), (0, "hawq"), (24, "all"), (24, "hawq")):
        saved.clear()
        run = start(budget="1.5bit", epochs=epochs, order=order)
        _ = run.quantized
        assert [p.name for p in saved][-1:] == ["model.safetensors"] * bool(
            epochs or order == "all"
        )
        found[epochs, order] = run.store.path("model.safetensors").read_bytes()
    assert found[0, "all"] == found[0, "hawq"]
    assert len(set(found.values())) == 3
    _ = start().quantized, start(budget="1.5bit", epochs=24, order="hawq").quantized
    assert run.store.path("model.safetensors").read_bytes() == found[24, "hawq"]


@pytest.mark.slow
def test_rivals_fit_the_same_bytes(start: Any):
    run = start(budget="4.8KB")
    plans = run.rivals()
    sizes = {name: run.bench.onnx_bytes(plan) for name, plan in plans.items()}
    assert set(sizes) == {"uniform", "layers", "channels"} and max(sizes.values()) <= 4800
    assert plans["layers"].cost > plans["channels"].cost  # their graph takes less of the file


@pytest.mark.parametrize(
    ("method", "budget"),
    [("channels", "75%"), ("cw-hawq", "4.8KB"), ("cw-hawq", "3700B"), ("uniform", "4.8KB")],
)
def test_bytes_are_bytes_of_the_file(budget: str, method: str, start: Any):
    run = start(method=method, budget=budget, evaluations=6)
    target = {"75%": 0.75 * run.preflight.float_bytes, "4.8KB": 4800, "3700B": 3700}[budget]
    assert run.onnx.stat().st_size <= target


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_a_budget_in_bytes_is_used_up(seed: int, tmp_path: Path):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = torch.nn.Sequential(
            torch.nn.Conv2d(1, 32, 3), torch.nn.ReLU(), torch.nn.Conv2d(32, 64, 3),
            torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(64, 4),
        ).eval()  # fmt: skip
    made = Run(
        assemble(model, Data(tiny.rows(40))), Settings(budget=parse_budget("12KB")), tmp_path
    )
    size = made.onnx.stat().st_size
    assert 0.97 * 12_000 < size <= 12_000


def test_divergence_goal_is_met_and_tight(start: Any):
    run = start(budget=None, max_kl=0.02)
    bench = run.bench
    assert bench.divergence(run.plan) <= 0.02
    for steps in (1, 2, 4):
        smaller = searching.solve(bench, "channels", run.plan.budget - steps * tiny.WEIGHTS // 32)
        assert bench.divergence(smaller) > 0.02
    with pytest.raises(BitwrightError, match="cannot be met"):
        _ = start(budget=None, max_kl=1e-12).plan


def test_metric_goal_is_met(start: Any):
    run = start(budget=None, max_drop=10.0)
    held_out = run.bench.held_out()
    right = tiny.labels_of(held_out) == run.bench.samples(run.plan)[1].argmax(1)
    assert right.double().mean() >= 0.9
    assert run.plan.cost < 8 * tiny.WEIGHTS


# ---------------------------------------------------------------------------------- overrides


def test_overrides(start: Any):
    run = start(budget="4bit", overrides={"7": 8, "re:[03]": {"min": 2, "max": 4}})
    found = bits(run)
    assert set(found["7"]) == {8}
    assert set(found["0"] + found["3"]) <= {2, 3, 4}


def test_overrides_leave_a_layer_in_float(tmp_path: Path):
    run = Run(tiny.task(), Settings(overrides={"0": "float"}), tmp_path / "run")
    assert run.network.skipped == ("0",)
    assert [layer.name for layer in run.network.layers] == ["3", "7"]
    assert run.base_key != Run(tiny.task(), Settings(), tmp_path / "run").base_key


def test_ties_hold_for_every_method(start: Any):
    # in an order that only a union of the groups gets right
    ties = {"ties": [["3", "7"], ["0", "3"]]}
    for method in ("channels", "layers", "uniform"):
        run = start(budget="3.5bit", method=method, overrides=ties)
        assert {b for widths in bits(run).values() for b in widths} == {3}
        assert set(run.rivals()) == {"uniform", "layers", "channels"}
    run = start(budget="4bit", method="uniform", overrides={"7": 8, "ties": [["0", "7"]]})
    assert set(bits(run)["0"] + bits(run)["7"]) == {8}


# ------------------------------------------------------------------------- done once, done again


def test_nothing_is_measured_twice(start: Any, monkeypatch: pytest.MonkeyPatch):
    def never(*_: object, **__: object) -> None:
        raise AssertionError("done again")

    first = start().onnx.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(built, "finetune", never)
        patch.setattr(planned, "search_plans", never)
        patch.setattr(planned, "solve", never)
        patch.setattr(curvature, "gauss_newton", never)
        patch.setattr(built.onnx_file, "save", never)
        patch.setattr(built.artefact, "save", never)
        run = start()
        assert run.onnx.read_bytes() == first
    with monkeypatch.context() as patch:
        patch.setattr(curvature, "gauss_newton", never)
        assert start(budget="4bit").plan.cost > run.plan.cost
        assert start(method="layers").plan.method == "layers"
        assert start(budget=None, max_kl=1.0).plan.cost < run.plan.cost
        x = tiny.task().calibration
        keys = {start(**s).base_key for s in ({}, {"skip": ("0",)}, {"calibration_rows": 40})}
        assert len(keys) == 3
        for other in (
            start(tiny.task(model=tiny.network(1))),
            start(tiny.task(calibration=torch.cat([x[:-1], x[-1:] + 1]))),
            start(seed=1),
        ):
            with pytest.raises(AssertionError, match="done again"):
                _ = other.sensitivity


@pytest.mark.slow
def test_a_refitted_head_is_in_the_files_and_can_be_taken_back(
    start: Any, monkeypatch: pytest.MonkeyPatch
):
    """Both ways, and again, nothing that was there is made anew; the bytes are as they were."""
    names = ("model.safetensors", "model.onnx")

    def files(run: Run) -> list[bytes]:
        _ = run.onnx
        return [run.store.path(name).read_bytes() for name in names]

    plain = start(budget="2bit", epochs=1)
    before = files(plain)
    refitted = start(budget="2bit", epochs=1, refit_head=True)
    after = files(refitted)
    assert refitted.refit is not None and refitted.refit.choice != "kept" and plain.refit is None
    assert refitted.verification.ok
    ours, known = (r.quantized.layers for r in (refitted, plain))
    for name in ("0", "3"):
        assert torch.equal(ours[name].codes, known[name].codes)
        assert torch.equal(ours[name].bias, known[name].bias)
    assert torch.equal(ours["7"].grid.bits, known["7"].grid.bits)
    assert not torch.equal(ours["7"].bias, known["7"].bias)
    said = bitwright.load(refitted.folder).quantized.layers["7"]
    assert torch.equal(said.bias, ours["7"].bias) and torch.equal(said.codes, ours["7"].codes)
    assert any("head '7' refitted" in note for note in summarize(refitted, "tiny").notes)

    def never(*_: object, **__: object) -> None:
        raise AssertionError("done again")

    monkeypatch.setattr(built, "finetune", never)
    assert files(start(budget="2bit", epochs=1)) == before
    assert files(start(budget="2bit", epochs=1, refit_head=True)) == after
    monkeypatch.setattr(built, "refit_head", never)
    assert files(start(budget="2bit", epochs=1, refit_head=True)) == after


def test_a_kill_while_the_head_is_refitted(start: Any, monkeypatch: pytest.MonkeyPatch):
    before = start(budget="2bit", epochs=1).quantized.layers
    with monkeypatch.context() as patch:

        def killed(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        patch.setattr(built, "refit_head", killed)
        with pytest.raises(KeyboardInterrupt):
            _ = start(budget="2bit", epochs=1, refit_head=True).quantized
    monkeypatch.setattr(built, "finetune", None)  # is done
    assert start(budget="2bit", epochs=1, refit_head=True).refit is not None
    again = start(budget="2bit", epochs=1).quantized.layers
    assert all(torch.equal(again[n].bias, before[n].bias) for n in before)


def test_no_head_to_refit_is_told_before_anything_slow(tmp_path: Path):
    run = Run(tiny.task(), Settings(refit_head=True, skip=("7",)), tmp_path / "run")
    with pytest.raises(BitwrightError, match="left in float: 7"):
        run.check_goal()
    assert not run.folder.exists()


def test_labels_matter_where_the_goal_is_a_metric(start: Any):
    x = tiny.task().calibration
    other = tiny.task(calibration_labels=(tiny.labels_of(x) + 1) % 4)
    goal = {"budget": None, "max_drop": 5.0}
    assert start(**goal)._search_key != start(other, **goal)._search_key
    assert start()._search_key == start(other)._search_key


def test_a_kill_between_file_and_record(tmp_path: Path):
    store = Store(tmp_path)
    with store.stage("search", "3bit", "plan.json"):
        store.path("plan.json").write_text("3")
    assert store.done("search", "3bit", "plan.json")
    with pytest.raises(KeyboardInterrupt), store.stage("search", "4bit", "plan.json"):
        store.path("plan.json").write_text("4")
        raise KeyboardInterrupt
    for edited in (False, True):
        assert not store.done("search", "3bit", "plan.json", edited=edited)
        assert not store.done("search", "4bit", "plan.json", edited=edited)


def test_the_store_knows_a_changed_file(tmp_path: Path):
    (tmp_path / "old.part").write_text("")
    store = Store(tmp_path)
    assert not store.path("old.part").exists()
    with store.stage("search", "key", "plan.json"):
        store.path("plan.json").write_text("3")
    assert set(store.timings()) == {"search"}
    store.path("plan.json").write_text("4")
    assert not store.done("search", "key", "plan.json")
    assert store.done("search", "key", "plan.json", edited=True)
    store.path("plan.json").unlink()
    assert not store.done("search", "key", "plan.json", edited=True)


def test_too_few_rows(tmp_path: Path):
    with pytest.raises(BitwrightError, match="too few"):
        Run(tiny.task(calibration=tiny.rows(1)), Settings(), tmp_path)
    with pytest.raises(BitwrightError, match="too few"):
        Run(Task(tiny.network(), tiny.rows(2)), Settings(), tmp_path)
    run = Run(Task(tiny.network(), tiny.rows(10)), Settings(), tmp_path)
    assert len(run.task.calibration) == 8 and len(run.task.test) == 2  # type: ignore[arg-type]
    assert "held out" in run.task.notes[-1]


@pytest.mark.parametrize(
    "options",
    [
        {"epochs": 1.5},
        {"seed": "0"},
        {"evaluations": True},
        {"max_kl": "1", "budget": None},
        {"overrides": ["0"]},
        {"skip": "0"},
        {"activations": 9},
        {"rounding": "up"},
        {"refit_head": 1},
        {"granularity": "pixel"},
        {"granularity": "channel", "activations": None},
        {"granularity": "channel", "method": "uniform"},
        {"granularity": "channel", "accumulator": 16},
        {"granularity": "channel", "ranges": "squared"},
    ],
)
def test_settings_are_checked(options: dict[str, Any], tmp_path: Path):
    with pytest.raises(BitwrightError):
        Run(tiny.task(), Settings(**options), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_missing_device_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BitwrightError, match="no CUDA device; use --device cpu"):
        Run(tiny.task(), Settings(device="cuda"), tmp_path / "run")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_another_device_measures_and_trains_the_same(tmp_path: Path):
    here, there = (
        Run(tiny.task(), Settings(device=device, epochs=1), tmp_path / device)
        for device in ("cpu", "cuda")
    )
    for name, found in here.sensitivity.layers.items():
        assert there.sensitivity.layers[name].value == pytest.approx(found.value, rel=1e-3)
    assert there.verification.ok
    ours, theirs = (run.judgements["channels"].judgement.kl for run in (here, there))
    assert theirs == pytest.approx(ours, rel=0.3, abs=1e-3)


@pytest.mark.parametrize(
    ("text", "bits", "fraction", "size"),
    [
        ("3bit", 3.0, None, None),
        (" 2.5 Bits", 2.5, None, None),
        ("12.5%", None, 0.125, None),
        ("180KB", None, None, 180_000),
        ("1.5MiB", None, None, 3 << 19),
        ("99b", None, None, 99),
    ],
)
def test_budgets(text: str, bits: float | None, fraction: float | None, size: int | None):
    found = parse_budget(text)
    assert (found.mean_bits, found.fraction, found.size_bytes) == (bits, fraction, size)


@pytest.mark.parametrize(
    "text", ["", "3", "bit", "-3bit", "0%", "nanbit", "1e3bit", "3 4bit", "3TB"]
)
def test_no_budgets(text: str):
    with pytest.raises(BitwrightError, match="180KB"):
        parse_budget(text)


def test_how_much_of_the_plan_is_inside_the_error(start: Any):
    run = start(score="trace")
    share = run.within_error
    assert 0 < share < 1
    bench = run.bench
    sure = {
        name: replace(e, stderr_data=0 * e.value, stderr_probe=0 * e.value)
        for name, e in run.sensitivity.layers.items()
    }
    unsure = {name: replace(e, stderr_data=3 * e.stderr_data) for name, e in
              run.sensitivity.layers.items()}  # fmt: skip
    told = {}
    for name, layers in (("sure", sure), ("unsure", unsure)):
        other = replace(bench, sensitivity=replace(run.sensitivity, layers=layers))
        plan = searching.solve(other, "channels", run.plan.budget)
        told[name] = searching.within_error(other, plan)
    assert told["sure"] == 0 and told["unsure"] > 0
    assert searching.within_error(bench, searching.solve(bench, "uniform", run.plan.budget)) is None


def test_activations_of_their_own_widths(start: Any):
    """A mean of 4 bits over stored numbers; the file computes what the reference does."""
    run = start(activations=4)
    sizes = {e.group: 0 for e in run.network.edges}
    for e in run.network.edges:
        sizes[e.group] = max(sizes[e.group], int(np.prod(e.shape)))
    bits = {g: grid.bits for g, grid in run.edges.items()}
    assert len(set(bits.values())) > 1
    total = sum(sizes[g] * b for g, b in bits.items())
    assert total <= 4 * sum(sizes.values())
    assert run.verification.ok and run.verification.tensors == len(run.network.edges)
    assert [r.bits for r in summarize(run, "tiny").edges] == [
        bits[e.group] for e in run.network.edges
    ]
    again = artefact.load(run.folder / "model.safetensors").quantized
    assert {g: grid.bits for g, grid in again.edges.items()} == bits
    one = start(activations=4, method="uniform")
    assert {grid.bits for grid in one.edges.values()} == {4}


def test_channels_of_activations_of_their_own_widths(start: Any):
    """A mean of 4 bits over stored numbers, in the files and in what the file computes."""
    run = start(activations=4, granularity="channel", epochs=1)
    numbers = {e.group: int(np.prod(e.shape)) for e in run.network.edges}
    numbers |= {e.group: int(np.prod(e.shape)) for e in run.network.edges if len(e.shape) == 3}
    divided = [g for g in run.edges.values() if g.widths]
    assert divided and len({w for g in divided for w in g.widths}) > 1
    used = sum(numbers[g] * grid.mean_bits for g, grid in run.edges.items())
    assert 3.5 * sum(numbers.values()) < used <= 4 * sum(numbers.values())
    assert run.verification.ok and run.verification.tensors == len(run.network.edges)
    again = artefact.load(run.folder / "model.safetensors").quantized
    assert {g: e.widths for g, e in again.edges.items()} == {
        g: e.widths for g, e in run.edges.items()
    }
    rows = summarize(run, "tiny").edges
    assert [r.bits for r in rows] == [run.edges[e.group].bits for e in run.network.edges]
    assert any(r.mean_bits is not None and r.mean_bits < r.bits for r in rows)
    answers = quantize.simulate(run.quantized, run.task.test)
    same = (bitwright.load(run.folder)(run.task.test).argmax(1) == answers.argmax(1)).float()
    assert same.mean() >= 0.95
    assert run.edges != start(activations=4).edges


def test_bit_operations_count_the_channels_own_widths(start: Any):
    """By enumeration of multiply-accumulates of each row with each channel that it reads."""
    run = start(activations=4, granularity="channel", max_bops="1T")
    (limit,) = run.limits
    grids = {e.name: (run.edges[e.group], e.shape[0]) for e in run.network.edges}
    nodes = {n.name: n for n in run.network.module.graph.nodes}
    wanted = []
    for la in run.network.layers:
        grid, channels = grids[nodes[la.calls[0]].args[0].name]
        widths = grid.widths or (grid.bits,) * channels
        each = la.macs // la.rows // len(widths)
        wanted += [sum(each * w for w in widths)] * la.rows
    np.testing.assert_allclose(limit.cost[:, 0] * 1e12, wanted)


def test_bit_operations_count_the_activations_own_widths(start: Any):
    run = start(activations=4, max_bops="1T")
    (limit,) = run.limits
    each = {e.name: run.edges[e.group].bits for e in run.network.edges}
    nodes = {n.name: n for n in run.network.module.graph.nodes}
    wanted = [
        (la.macs // la.rows) * each.get(nodes[la.calls[0]].args[0].name, 32)
        for la in run.network.layers
        for _ in range(la.rows)
    ]
    np.testing.assert_allclose(limit.cost[:, 0] * 1e12, wanted)
