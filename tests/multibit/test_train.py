"""The loop: bits fall as asked, it goes on where it stopped, and says what it cannot do."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bitwright.arith.multibit import nearest
from bitwright.errors import BitwrightError
from bitwright.multibit import (
    LossAware,
    Multibit,
    Recipe,
    StraightThrough,
    float_weights,
    prepare,
    train,
)
from multibit.nets import rows, small

RECIPE = Recipe(bits=1.5, loops=2, straight=1, final=1, batch=16)


def net_of() -> Multibit:
    return prepare(small(), rows()[0], size=16, most=4)


def state(net: Multibit) -> list[torch.Tensor]:
    return list(net.state_dict().values())


@pytest.mark.parametrize("curvature", ["amsgrad", "gauss-newton"])
def test_bits_fall_loop_by_loop_to_the_target(curvature: str):
    net = net_of()
    history = train(net, *rows(256), replace(RECIPE, curvature=curvature))
    bits = [line["bits"] for line in history]
    assert bits[-1] <= 1.5 and bits[-1] > 1.2, "no more is removed than was asked for"
    assert all(b <= a + 0.05 for a, b in itertools.pairwise(bits))
    after_first = next(line["bits"] for line in history if line["what"] == "prune")
    assert after_first == pytest.approx((bits[0] * 1.5) ** 0.5, rel=0.05), "half of the way, in log"
    assert [line["what"] for line in history[1:4]] == ["prune", "bases", "coordinates"]
    assert history[-1]["bits"] == pytest.approx(net.average_bits())


def test_a_stopped_training_goes_on_to_the_same_bytes(tmp_path: Path):
    x, y = rows(96)
    recipe = replace(RECIPE, coordinates=2, straight=2)
    whole = net_of()
    wanted = train(whole, x, y, recipe)
    for stop in (1, 3, 4, 9):
        path = tmp_path / f"{stop}.safetensors"

        def stopping(line: dict[str, object], stop: int = stop) -> None:
            if line["epoch"] == stop + 1:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            train(net_of(), x, y, recipe, checkpoint=path, progress=stopping)
        net = net_of()
        found = train(net, x, y, recipe, checkpoint=path)
        assert found == wanted
        assert all(torch.equal(a, b) for a, b in zip(state(net), state(whole), strict=True))
    with pytest.raises(BitwrightError, match="another recipe"):
        train(net_of(), x, y, RECIPE, checkpoint=path)
    with pytest.raises(BitwrightError, match="delete it"):
        path.write_bytes(b"nothing")
        train(net_of(), x, y, RECIPE, checkpoint=path)


def test_a_teacher_takes_the_place_of_labels():
    model = small()
    x = rows(128)[0]

    def distance(found: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        return (found - wanted).square().mean()

    net = prepare(model, x, size=16, most=2)
    history = train(net, x, None, replace(RECIPE, bits=2.0), loss=distance, teacher=model)
    assert history[-1]["loss"] < history[1]["loss"] * 2


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"curvature": "none"}, "gauss-newton"),
        ({"bits": 0.0}, "positive"),
        ({"batch": 1000}, "batch of 1000"),
    ],
)
def test_what_cannot_be_is_said(change: dict[str, object], says: str):
    with pytest.raises(BitwrightError, match=says):
        train(net_of(), *rows(64), replace(RECIPE, **change))  # type: ignore[arg-type]
    with pytest.raises(BitwrightError, match="labels, or a teacher"):
        train(net_of(), rows(64)[0], None, RECIPE)


def test_preparing_refuses_unknown_layers_and_tables():
    with pytest.raises(BitwrightError, match="no layer 'fc9'"):
        prepare(small(), rows()[0], groups={"fc9": "channel"})
    table = torch.nn.Sequential(torch.nn.Embedding(9, 4), torch.nn.Linear(4, 2))
    with pytest.raises(BitwrightError, match="'0' is an embedding"):
        prepare(table, torch.randint(0, 9, (2, 3)))


def test_rates_fall_evenly_to_zero_over_all_steps(monkeypatch: pytest.MonkeyPatch):
    shares: list[float] = []
    anneal = LossAware.anneal

    def spy(self: LossAware, left: float) -> None:
        anneal(self, left)
        shares.append(left)
        assert self.rate == pytest.approx(left * (0.1 if self.domain == "bases" else 1e-2))
        assert self.others is not None
        assert {g["lr"] for g in self.others.param_groups} == {1e-3 * left}

    monkeypatch.setattr(LossAware, "anneal", spy)
    train(net_of(), *rows(64), RECIPE)
    count = len(RECIPE.epochs()) * 64 // RECIPE.batch
    assert shares == pytest.approx([1 - i / count for i in range(count)])


def test_straight_through_epochs_may_begin_at_the_float_weights():
    model, x, y = small(), *rows(64)
    net = prepare(model, x, size=16, most=2)
    floats = float_weights(model, net)
    for name, given in floats.items():
        assert torch.equal(given, model.get_submodule(name).weight)
        assert not torch.allclose(given, net[name].weight(), atol=1e-3)
    copy = StraightThrough(net, 1e-9, coordinates_rate=1e-9, floats=floats)
    torch.nn.functional.cross_entropy(net(x), y).backward()
    copy.step()
    for name, given in floats.items():
        layer = net[name]
        wanted = nearest(layer.grouping.cut(given), layer.alpha)
        assert torch.equal(layer.codes, wanted)
    recipe = replace(RECIPE, loops=1, bases=0, coordinates=0, straight=2)
    ends = []
    for begun in (None, floats):
        other = prepare(model, x, size=16, most=4)
        train(other, x, y, recipe, floats=begun)
        ends.append(state(other))
    assert not all(torch.equal(a, b) for a, b in zip(*ends, strict=True))
