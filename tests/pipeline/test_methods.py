"""The roster of methods, scores, free activations, and plans evaluated by several processes."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bitwright import Settings, allocate, cost, quantize
from bitwright.deploy import artefact
from bitwright.errors import BitwrightError
from bitwright.pipeline import METHODS, Run
from bitwright.pipeline import processes as pool
from bitwright.pipeline import search as searching
from bitwright.pipeline.bench import Workbench
from bitwright.pipeline.budget import parse_budget
from bitwright.pipeline.methods import Method
from bitwright.pipeline.summarize import summarize
from bitwright.report import from_json, render, to_json
from pipeline import tiny

SEARCHES = [name for name, method in METHODS.items() if method.search]


@pytest.fixture
def start(measured: Path, tmp_path: Path) -> Any:
    """A run of other settings in a copy of a folder where seed 0 is measured."""

    def make(place: str = "run", **settings: Any) -> Run:
        folder = tmp_path / place
        if not folder.exists():
            shutil.copytree(measured, folder)
        settings["budget"] = parse_budget(settings.get("budget", "3bit"))
        return Run(tiny.task(), Settings(**settings), folder)

    return make


@pytest.mark.parametrize("method", METHODS)
def test_every_method_makes_a_file_within_the_budget(start: Any, method: str):
    run = start(method=method, evaluations=5)
    plan = run.plan
    assert plan.method == method and plan.cost <= plan.budget == 3 * tiny.WEIGHTS
    assert len(run.learning) == (5 if method in SEARCHES else 0)
    stored = artefact.load(run.store.path("model.safetensors") if run.quantized else Path())
    widths = {n: la.grid.bits.tolist() for n, la in stored.quantized.layers.items()}
    assert widths == {n: b.tolist() for n, b in quantize.plan_bits(run.network, plan).items()}
    if method in ("layers", "uniform", "hawq", "pareto", "ilp", "haq"):
        assert all(len(set(b)) == 1 for b in widths.values())
    assert run.rivals()[method].cost == plan.cost


@pytest.mark.slow
@pytest.mark.parametrize("method", ["ilp", "hawq", "local-moves", "haq"])
def test_a_goal_in_bytes_is_met_by_every_method(start: Any, method: str):
    run = start(method=method, evaluations=4)
    _, size = sorted(run.bench.onnx_bytes(searching.solve(run.bench, "uniform", b * tiny.WEIGHTS))
                     for b in (2, 3))  # fmt: skip
    run = start("bytes", method=method, evaluations=4, budget=f"{size}B")
    assert run.onnx.stat().st_size <= size


def test_layers_are_at_least_as_good_as_the_papers_walks(start: Any):
    loss = {m: start(m, method=m).plan.loss for m in ("layers", "ilp", "pareto", "hawq", "uniform")}
    assert loss["layers"] == pytest.approx(loss["ilp"], rel=1e-9)
    assert all(loss["layers"] <= v * (1 + 1e-9) for v in loss.values())


def test_scores_are_kept_and_change_the_plan(start: Any):
    run = start(score="actual-error")
    plan, found = run.plan, run.store.path("scores.safetensors")
    rows = quantize.Rows(run.calibration)
    own = quantize.predict("actual-error", run.network, run.sensitivity, run.tables, rows=rows)
    unsure = quantize.Predicted(own.losses, {n: 5 * e for n, e in own.errors.items()})
    told = [
        searching.within_error(replace(run.bench, predicted=p), plan)
        for p in (quantize.Predicted(own.losses), own, unsure)
    ]
    assert told[0] is None and told[1] == run.within_error < told[2] < 1
    content = found.read_bytes()
    assert all((run.predicted.losses[n] == v).all() for n, v in own.losses.items())
    assert all((run.predicted.errors[n] == v).all() for n, v in own.errors.items())
    assert start(score="trace").plan.key != plan.key
    assert start(score="actual-error", budget="2bit").plan.cost < plan.cost
    assert found.read_bytes() == content
    run = start(score="fisher")  # has the labels it needs
    other = Run(tiny.task(calibration_labels=run.task.calibration_labels.flip(0)), run.settings,
                run.folder)  # fmt: skip
    assert other._search_key != run._search_key, "with other labels another plan"
    assert run.plan.cost <= plan.budget and run.within_error is None
    with pytest.raises(BitwrightError, match="score 'Trace' is unknown; use trace, eigenvalue"):
        start(score="Trace")


def test_the_report_tells_of_the_score_that_priced_the_plan(start: Any):
    told = {
        name: start(name, score=score, **options).score
        for name, score, options in (
            ("default", "actual-error", {}),
            ("fed back", "actual-error", {"rounding": "feedback"}),
            ("fisher", "fisher", {"rounding": "feedback"}),
            ("guaranteed", "measured", {"accumulator": 16}),
        )
    }
    assert told == {
        "default": "actual-error", "fed back": "feedback", "fisher": "fisher",
        "guaranteed": "trace",
    }  # fmt: skip
    said = summarize(start(score="trace"), "net").score
    assert "Hessian trace" in said and said == quantize.SCORES["trace"].words
    assert len({score.words for score in quantize.SCORES.values()}) == len(quantize.SCORES)


def test_the_report_names_what_a_search_minimized(start: Any):
    run = start(method="random-ratios", evaluations=4)
    found = summarize(run, "net")
    assert found.reward == "softened divergence on calibration rows, T² KL at T = 8"
    assert min(value for _, value, _ in found.learning) == run.bench.reward(run.plan)
    assert summarize(start("none"), "net").reward == ""


def bops(run: Run) -> float:
    """From the stored network: MACs · bits of each weight · bits of what it reads."""
    stored = artefact.load(run.store.path("model.safetensors")).quantized
    macs, loose = cost.mac_pairs(run.network)
    assert not loose.any()
    weights = np.concatenate(
        [stored.layers[la.name].grid.bits.numpy() for la in run.network.layers]
    )
    edges = np.array([stored.edges[g].bits for g in sorted(stored.edges)])
    return float(weights @ macs @ edges)


@pytest.mark.parametrize("method", ["channels", "layers", "uniform", "cw-hawq", "local-moves"])
def test_free_activations_keep_the_bound(start: Any, method: str):
    whole = Run(tiny.task(), Settings(), Path())  # never written
    most = 64 * sum(layer.macs for layer in whole.network.layers)
    bound = f"{0.2 * most / 1e6}M"
    options = {"method": method, "evaluations": 5, "budget": "8bit", "max_bops": bound}
    run = start(activations="auto", **options)
    assert run.verification.ok
    assert bops(run) <= 0.2 * most
    (total,) = run.plan.limits
    assert total.total * 1e6 == pytest.approx(bops(run), rel=1e-9)
    if method == "channels":
        fixed = start(activations=8, **options).plan  # what 8-bit activations leave for weights
        free = run.bench.problem(run.plan.budget)
        widest = run.plan.loss - free.loss[len(fixed.names) :, -1].sum()
        assert widest < fixed.loss


def test_free_activations_are_refused_with_the_reason(start: Any):
    with pytest.raises(BitwrightError, match="give --max-bops"):
        start(activations="auto")
    with pytest.raises(BitwrightError, match="method ilp takes activations as given"):
        start(activations="auto", max_bops="1M", method="ilp")
    run = start("none", activations="auto", max_bops="0.001M")
    with pytest.raises(BitwrightError, match=r"BOPs is below the feasible range of 0\.\d+ to"):
        run.check_goal()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["cw-hawq", "cross-entropy", "local-moves"])
def test_processes_change_the_time_only(start: Any, method: str):
    found = []
    for count in (1, 2):
        run = start(f"of {count}", method=method, evaluations=7, batch=3, processes=count)
        found.append((run.plan.key, run.learning))
    assert found[0] == found[1]
    assert start("single", method=method, evaluations=7).learning != found[0][1]


def test_processes_that_die_say_so(start: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pool.pickle, "dumps", lambda bench: b"nothing to unpickle")
    run = start(method="random-ratios", evaluations=6, batch=2, processes=2)
    with pytest.raises(BitwrightError, match=r"ended early .* try --processes 1"):
        _ = run.plan


def test_what_cannot_be_meant(start: Any):
    for name, value, message in (
        ("batch", 0, "--batch must be 1 or more, not 0"),
        ("processes", -1, "--processes must be 0 or more, not -1"),
        ("batch", True, "batch must be a whole number"),
        ("method", "HAWQ", "method 'HAWQ' is unknown; use channels, cw-hawq"),
        ("activations", "some", "activations must be 2 to 8, auto or float, not 'some'"),
    ):
        with pytest.raises(BitwrightError, match=message):
            start(**{name: value})


def test_the_report_has_words_for_every_method():
    for method in METHODS.values():
        assert 0 < len(method.title) < 34 and method.rule.endswith(".")
    assert len({method.title for method in METHODS.values()}) == len(METHODS)


def test_a_method_is_a_line_in_the_roster_and_the_report_knows_it(
    start: Any, monkeypatch: pytest.MonkeyPatch
):
    def solve(bench: Workbench, problem: allocate.Problem) -> allocate.Plan:
        return replace(allocate.knapsack(problem), method="own")

    monkeypatch.setitem(METHODS, "own", Method("A method of my own", "Bits go by my rule.", solve))
    found = from_json(to_json(summarize(start(method="own"), "net")))
    assert [m.title for m in found.methods if m.chosen] == ["A method of my own"]
    text = render(found)
    assert "A method of my own <strong" in text and "Bits go by my rule." in text
