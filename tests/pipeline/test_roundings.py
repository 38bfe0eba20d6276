"""Every rounding of the roster keeps its word; one of one's own is one line in it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bitwright import Settings, overflow, quantize
from bitwright.curvature.divergence import per_sample
from bitwright.deploy import artefact
from bitwright.errors import BitwrightError
from bitwright.network import outputs
from bitwright.overflow.operands import input_ranges
from bitwright.pipeline import ROUNDINGS, Run
from bitwright.pipeline.budget import parse_budget
from bitwright.pipeline.roundings import Rounding
from bitwright.pipeline.settings import check_settings
from pipeline import tiny

Start = Callable[..., Run]


@pytest.fixture
def start(measured: Path, tmp_path: Path) -> Start:
    """A run in a copy of a folder where seed 0 is measured."""

    def make(place: str = "run", budget: str = "3bit", **settings: Any) -> Run:
        folder = tmp_path / place
        if not folder.exists():
            shutil.copytree(measured, folder)
        return Run(tiny.task(), Settings(budget=parse_budget(budget), **settings), folder)

    return make


def lost(run: Run) -> float:
    """The divergence on calibration rows, whether the rounding has seen them or not."""
    x = run.calibration
    exact = outputs(run.network.module, x)
    found = quantize.simulate(run.bench.build(run.plan), x)
    return float(per_sample(exact, found, run.bench.kind, run.bench.class_axis).mean())


@pytest.mark.parametrize("name", ROUNDINGS)
def test_every_rounding_gives_codes_of_the_widths_asked_for(start: Start, name: str):
    run = start(rounding=name)
    found, again = run.bench.build(run.plan), run.bench.build(run.plan)
    bits = quantize.plan_bits(run.network, run.plan)
    for layer in run.network.layers:
        stored, other = found.layers[layer.name], again.layers[layer.name]
        assert stored.grid.bits.tolist() == bits[layer.name].tolist()
        assert stored.codes.dtype == torch.uint8
        assert stored.codes.shape == (layer.rows, layer.fan_in)
        assert bool((stored.codes < 2 ** stored.grid.bits[:, None]).all())
        assert stored.bias.shape == (layer.rows,) and bool(stored.bias.isfinite().all())
        assert torch.equal(stored.codes, other.codes) and torch.equal(stored.bias, other.bias)
    assert lost(run) <= 2 * lost(start("plain", rounding="nearest"))
    assert run.verification.ok
    read = artefact.load(run.store.path("model.safetensors")).quantized.layers
    assert all(torch.equal(read[n].codes, s.codes) for n, s in run.quantized.layers.items())


@pytest.mark.parametrize("name", ROUNDINGS)
def test_plans_are_judged_on_rows_that_the_rounding_has_not_seen(measured: Path, name: str):
    settings = Settings(budget=None, max_kl=0.5, rounding=name)
    bench = Run(tiny.task(), settings, measured).bench
    seen, held = ({r.numpy().tobytes() for r in x} for x in (bench.seen, bench.held_out()))
    assert held and not seen & held
    assert bool(seen) == (ROUNDINGS[name].rows > 0) and len(seen) <= len(bench.calibration) // 2


@pytest.mark.parametrize("name", ROUNDINGS)
def test_searches_round_plans_by_every_rounding(start: Start, name: str):
    bench, plan = (run := start(rounding=name)).bench, run.plan
    value = bench.reward(plan)
    assert value > 0 and value == bench.reward(plan)
    plain = start("plain").bench.reward(plan)
    assert (value == plain) is (ROUNDINGS[name].in_search is None)


@pytest.mark.parametrize("name", ROUNDINGS)
def test_narrow_accumulators_hold_what_goes_with_them(start: Start, name: str):
    settings = Settings(budget=parse_budget("3bit"), rounding=name, accumulator=16)
    if not ROUNDINGS[name].accumulators:
        with pytest.raises(BitwrightError, match="from overflowing; use nearest or feedback"):
            check_settings(settings)
        return
    found = start(rounding=name, accumulator=16).quantized
    ranges, sums = input_ranges(found.network, found.edges), settings.sums
    assert sums is not None
    for layer in found.network.layers:
        worst = overflow.guarantee.excess(
            layer, found.layers[layer.name], ranges[layer.name], sums.accumulator
        )
        assert float(worst.max()) <= 1


def upward(bench: Any, tables: Any, bits: Any, grids: Any) -> dict[str, quantize.QuantizedLayer]:
    """Every second weight a code higher than to nearest."""
    found = quantize.round_weights(bench.network, tables, bits)
    for stored in found.values():
        top = (2 ** stored.grid.bits[:, None] - 1).expand_as(stored.codes)
        stored.codes[:, ::2] = torch.minimum(stored.codes + 1, top.to(torch.uint8))[:, ::2]
    return found


def test_a_rounding_of_ones_own_is_one_line(start: Start, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(BitwrightError, match="rounding 'up' is unknown; use nearest, feedback"):
        check_settings(Settings(budget=parse_budget("3bit"), rounding="up"))
    monkeypatch.setitem(ROUNDINGS, "up", Rounding(upward))
    run, plain = start(rounding="up"), start("plain")
    changed = [
        float((run.corrected.layers[n].codes != s.codes).double().mean())
        for n, s in plain.corrected.layers.items()
    ]
    assert all(0.2 < share <= 0.6 for share in changed)
    assert lost(run) > lost(plain) and run.verification.ok
    # searches round to nearest, in other processes as well
    searched = start(
        "s", rounding="up", method="random-ratios", evaluations=4, batch=2, processes=2
    )
    assert searched.plan.cost <= searched.plan.budget
    assert searched.learning[0].value == plain.bench.reward(plain.plan)


def test_a_rounding_that_other_processes_do_not_have(start: Start, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(ROUNDINGS, "up", Rounding(upward, in_search=upward))
    run = start(rounding="up", method="random-ratios", evaluations=4, batch=2, processes=2)
    with pytest.raises(BitwrightError, match="do not have the rounding up; use --processes 1"):
        _ = run.plan
    alone = start("alone", rounding="up", method="random-ratios", evaluations=4, processes=1)
    assert alone.plan.cost <= alone.plan.budget
