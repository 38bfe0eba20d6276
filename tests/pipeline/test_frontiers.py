"""A run's frontiers: against enumeration, in the file, and in the report."""

from __future__ import annotations

import itertools
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bitwright import Settings
from bitwright.pipeline import Run
from bitwright.pipeline import run as stages
from bitwright.pipeline.budget import parse_budget
from bitwright.pipeline.compress import finish
from bitwright.pipeline.frontiers import Curve, shown
from bitwright.pipeline.summarize import _notes
from mutants import mutated
from pipeline import tiny


@pytest.fixture
def start(measured: Path, tmp_path: Path) -> Any:
    folder = tmp_path / "run"
    shutil.copytree(measured, folder)

    def make(budget: str = "3bit", **settings: Any) -> Run:
        return Run(tiny.task(), Settings(budget=parse_budget(budget), **settings), folder)

    return make


def by_name(run: Run) -> dict[str, Curve]:
    return {c.name: c for c in stages.frontiers(run.bench, run.plan)}


def enumerated(run: Run, monotone: bool) -> list[tuple[int, float]]:
    """(cost, loss) of all 8³ assignments that none betters."""
    problem = run.bench.problem(8 * tiny.WEIGHTS)
    layer = run.bench.layer_ties()
    loss = np.stack([problem.loss[layer == i].sum(0) for i in range(3)])
    cost = np.stack([problem.cost[layer == i].sum(0) for i in range(3)])
    found = run.sensitivity.layers.values()
    fan_in = [la.fan_in for la in run.network.layers]
    mean = [e.value.mean() / n for e, n in zip(found, fan_in, strict=True)]
    order = np.argsort(mean)[::-1]
    pairs = []
    for widths in itertools.product(range(8), repeat=3):
        down = [widths[i] for i in order]
        if not monotone or down == sorted(down, reverse=True):
            pairs.append((int(cost[range(3), widths].sum()), float(loss[range(3), widths].sum())))
    kept: list[tuple[int, float]] = []
    for pair in sorted(pairs):
        if not kept or pair[1] < kept[-1][1] * (1 - 1e-12):
            kept.append(pair)
    return kept


def step(curve: Curve, cost: float) -> float:
    """The least loss within a cost."""
    return float(curve.loss[np.searchsorted(curve.cost, cost, side="right") - 1])


def layers_equal_enumeration(run: Run) -> None:
    found = by_name(run)
    for name, monotone in (("layers", False), ("layers, monotone", True)):
        curve = found[name]
        assert curve.exact
        cost, loss = zip(*enumerated(run, monotone), strict=True)
        np.testing.assert_array_equal(curve.cost, cost)
        np.testing.assert_allclose(curve.loss, loss, rtol=1e-9)


def test_frontiers_by_layer_equal_enumeration(start: Any):
    run = start()
    layers_equal_enumeration(run)
    mean = ("sensitivity.layers[la.name].value.sum() / la.weights",
            "1 / sensitivity.layers[la.name].value.sum()")  # fmt: skip
    with pytest.raises(AssertionError), mutated("quantize.problem", *mean):
        layers_equal_enumeration(run)


@pytest.mark.parametrize("method", ["channels", "layers", "uniform", "cw-hawq"])
@pytest.mark.parametrize("budget", ["2.5bit", "4bit"])
def test_which_frontier_is_above_which(method: str, budget: str, start: Any):
    """Monotone ≥ all assignments ≥ channels at equal cost; every plan on or above the channels'."""
    run = start(budget, method=method, evaluations=6)
    found, plan = by_name(run), run.plan
    for cost, loss in zip(found["layers, monotone"].cost, found["layers, monotone"].loss,
                          strict=True):  # fmt: skip
        assert loss >= step(found["layers"], cost) * (1 - 1e-9)
    channels = found["channels"]
    for curve in found.values():
        assert (np.diff(curve.cost) > 0).all() and (np.diff(curve.loss) < 0).all()
    for cost, loss in zip(channels.cost, channels.loss, strict=True):
        assert loss <= step(found["layers"], cost) * (1 + 1e-9)
    best = step(channels, plan.budget)
    assert plan.loss >= best * (1 - 1e-9)
    if method != "cw-hawq":  # it starts from the channels' plan, and may keep it
        assert (plan.loss == pytest.approx(best, rel=1e-9)) == (method == "channels")
    if method in ("layers", "uniform"):
        assert plan.loss >= step(found["layers"], plan.cost) * (1 - 1e-9)


def test_overrides_bound_the_frontiers(start: Any):
    run = start("4bit", overrides={"7": 8, "3": {"min": 2, "max": 5}}, max_bops="1T")
    for curve in by_name(run).values():
        assert curve.cost[0] == 8 * 9 + 2 * 12 * 72 + 8 * 4 * 12
        for widths in curve.widths:
            last = widths.split()[2] if curve.name == "channels" else widths[2]
            assert set(last) == {"8"}
    assert "the frontiers at other sizes leave" in " ".join(_notes(run))


def test_the_file_has_every_point_with_its_widths(start: Any):
    run = start()
    _, summary = finish(run, "tiny", "x")
    found = json.loads((run.folder / "frontier.json").read_text())
    assert found["schema"] == 1 and found["layers"] == list(tiny.LAYERS)
    assert sum(found["weights"]) == tiny.WEIGHTS
    assert ("frontier.json", (run.folder / "frontier.json").stat().st_size) in summary.files
    problem, rows = run.bench.problem(8 * tiny.WEIGHTS), (8, 12, 4)
    counts = {}
    for one in found["frontiers"]:
        points = list(zip(one["cost_bits"], one["mean_bits"], one["loss"], one["widths"],
                          strict=True))  # fmt: skip
        counts[one["name"]] = len(points)
        for cost, mean, loss, text in points:
            words = text.split() if one["name"] == "channels" else \
                [digit * n for digit, n in zip(text, rows, strict=True)]  # fmt: skip
            assert tuple(map(len, words)) == rows
            choice = np.array([int(d) - 1 for d in "".join(words)])
            at = np.arange(len(choice))
            assert problem.cost[at, choice].sum() == cost
            assert problem.loss[at, choice].sum() == pytest.approx(loss, rel=1e-8)
            assert mean == pytest.approx(cost / tiny.WEIGHTS, abs=1e-6)
    assert [row.count for row in summary.frontiers] == list(counts.values())
    assert counts["channels"] > 25 and counts["layers"] > counts["layers, monotone"] > 20
    # all of these are few enough to be drawn whole
    page = (run.folder / "report.html").read_text()
    figure = page[page.index('id="frontiers-title"') :]
    for kind, name in (("monotone", "layers, monotone"), ("curve", "channels")):
        (data,) = re.findall(rf'class="{kind}" d="([^"]*)"', figure[: figure.index("</figure>")])
        assert len(re.findall("[ML]", data)) == counts[name]
    before = (run.folder / "frontier.json").read_bytes()
    _ = start().frontiers
    assert (run.folder / "frontier.json").read_bytes() == before


def test_a_long_frontier_is_drawn_in_part():
    cost = np.arange(1000, 9000)
    curve = Curve("layers", "frontier-dp", True, cost, 1.0 / cost, ("1",) * 8000)
    row = shown(curve, 1000, 3141)
    assert row.count == 8000 and 150 < len(row.points) <= 161
    assert row.points[0] == (1.0, 1 / 1000) and row.points[-1] == (8.999, 1 / 8999)
    assert (3.141, 1 / 3141) in row.points
