"""`--levels multi-bit` from end to end: budget held, files exact, the same bytes again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from bitwright import Settings, Task
from bitwright.deploy import artefact
from bitwright.errors import BitwrightError
from bitwright.pipeline import Run
from bitwright.pipeline.budget import parse_budget
from bitwright.pipeline.settings import check_settings
from bitwright.pipeline.summarize import summarize
from bitwright.quantize import plan_bits, plan_rows
from bitwright.report.inspection import inspect

Start = Callable[..., Run]


def task() -> Task:
    """Rows of 200 and 160 weights from two clusters, which bases fit and uniform grids do not."""
    generator = torch.Generator().manual_seed(1)
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Conv2d(8, 20, 5), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(80, 6)
    )
    with torch.no_grad():
        for weight in (model[0].weight, model[4].weight):
            near = torch.randn(weight.shape, generator=generator)
            side = torch.randint(0, 2, weight.shape, generator=generator) * 2 - 1
            weight.copy_(0.1 * (2 * side + 0.3 * near))
    x = torch.randn(96, 8, 7, 7, generator=generator)
    return Task(model.eval(), x[:64], test=x[64:])


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Start:
    folder = tmp_path_factory.mktemp("bases") / "run"

    def run(budget: str = "2.5bit", to: Path = folder, **settings: Any) -> Run:
        settings = {"score": "trace", "levels": "multi-bit", "activations": None, **settings}
        return Run(task(), Settings(budget=parse_budget(budget), **settings), to)

    return run


def test_a_run_with_bases(start: Start, tmp_path: Path):
    run = start(activations=8.0)
    plan = run.plan
    assert plan.bases.any() and plan.cost <= plan.budget
    bits, own = plan_bits(run.network, plan), plan_rows(run.network, plan.bases)
    coordinates = sum(int((bits[n][own[n]] + 1).sum()) for n in bits)
    codes = sum(int(bits[la.name].sum()) * la.fan_in for la in run.network.layers)
    assert plan.cost == codes + 8 * coordinates
    assert run.verification.ok
    loaded = artefact.load(run.store.path("model.safetensors")).quantized
    found = {la.name: loaded.layers[la.name].grid for la in run.network.layers}
    for name, grid in found.items():
        assert np.array_equal(grid.bits.numpy(), bits[name])
        assert np.array_equal(grid.multibit.numpy(), own[name])
    assert run.breakdown()["coordinates"] == coordinates
    again = start(activations=8.0, to=tmp_path / "again")
    _ = again.onnx
    for name in ("plan.json", "model.safetensors", "model.onnx"):
        assert again.store.path(name).read_bytes() == run.store.path(name).read_bytes()
    said = " ".join(summarize(run, "it", "it").notes)
    assert "bases" in said
    for name in ("model.safetensors", "plan.json"):
        facts = inspect(run.store.path(name)).facts
        assert "bases" in str(facts["channels of bases"])


def test_the_plan_is_read_again_and_may_be_edited(start: Start):
    run = start()
    plan, path = run.plan, run.store.path("plan.json")
    assert start().plan.key == plan.key
    said = json.loads(path.read_text())
    listed = {
        n: np.flatnonzero(own).tolist() for n, own in plan_rows(run.network, plan.bases).items()
    }
    assert said["bases"] == {n: rows for n, rows in listed.items() if rows}
    layer, (channel, *_) = next(iter(said["bases"].items()))
    said["bits"][layer][channel] = 1
    path.write_text(json.dumps(said))
    with pytest.raises(BitwrightError, match="take the entry `bases` out"):
        _ = start().plan
    del said["bases"]
    path.write_text(json.dumps(said))
    found = start().plan
    assert found.bases.sum() == plan.bases.sum() - 1 and found.cost < plan.cost


@pytest.mark.parametrize("method", ["layers", "cw-hawq", "local-moves"])
def test_every_allocator_holds_the_budget(start: Start, method: str):
    run = start(method=method, evaluations=4)
    assert run.plan.cost <= run.plan.budget and run.plan.bases.any()


def test_error_feedback_rounds_to_bases(start: Start):
    run = start(rounding="feedback", budget="2.2bit")
    found = run.quantized
    own = {n: s.grid.multibit for n, s in found.layers.items()}
    assert sum(int(o.sum()) for o in own.values()) == run.plan.bases.sum() > 0


def test_training_keeps_bases(start: Start, tmp_path: Path):
    run = start(epochs=1, to=tmp_path / "tuned")
    before, after = run.corrected.layers, run.quantized.layers
    for name, stored in after.items():
        coordinates = before[name].grid.coordinates
        if coordinates is not None:
            assert stored.grid.coordinates is not None
            assert torch.equal(stored.grid.coordinates, coordinates)
    assert any(not torch.equal(before[n].codes, after[n].codes) for n in after)


def test_uniform_levels_are_the_default_and_change_nothing(start: Start, tmp_path: Path):
    run = start(levels="uniform", to=tmp_path / "uniform")
    assert not run.plan.bases.any() and "bases" not in json.loads(
        (_ := run.plan) and run.store.path("plan.json").read_text()
    )
    _ = run.onnx
    assert "coordinates" not in run.breakdown()


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"levels": "ternary"}, "levels 'ternary' are unknown"),
        ({"method": "uniform"}, "--method uniform makes none"),
        ({"rounding": "learned"}, "goes with --rounding nearest or feedback, not with learned"),
        ({"accumulator": 16}, "does not go with --accumulator"),
    ],
)
def test_what_does_not_go_with_bases(settings: dict[str, Any], match: str):
    with pytest.raises(BitwrightError, match=match):
        check_settings(Settings(**{"levels": "multi-bit", **settings}))
