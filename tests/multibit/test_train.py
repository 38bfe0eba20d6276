"""The loop: bits fall as asked, it goes on where it stopped, and says what it cannot do."""

from __future__ import annotations

import importlib
import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

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
    with pytest.raises(BitwrightError, match="delete it"):
        path.write_bytes(b"nothing")
        train(net_of(), x, y, RECIPE, checkpoint=path)


ONCE = replace(RECIPE, loops=1, bases=0, coordinates=0, straight=0, final=0)


@pytest.mark.parametrize("learn", ["labels", "teacher"])
def test_a_checkpoint_of_another_training_is_refused_by_what_differs(tmp_path: Path, learn: str):
    x, y = rows(32)
    path = tmp_path / "training.safetensors"
    floats = {name: torch.ones(net_of()[name].shape) for name in net_of().names}

    def distance(found: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        return (found - wanted).square().mean()

    given: dict[str, Any] = {"y": y, "recipe": ONCE, "identity": {"loss": "mine"}}
    if learn == "teacher":
        given |= {"y": None, "teacher": small(), "loss": distance}

    def run(net: Multibit, x: torch.Tensor = x, **other: Any) -> None:
        train(net, x, **{**given, **other}, checkpoint=path)

    run(net_of())
    before = path.read_bytes()
    done = net_of()
    run(done)
    assert path.read_bytes() == before, "the same one is gone on from"
    others: list[tuple[str, Multibit, dict[str, Any]]] = [
        ("bits, seed", net_of(), {"recipe": replace(ONCE, bits=1.0, seed=1)}),
        ("groups, starting weights", prepare(small(), x, size=36, most=4), {}),
        ("starting weights", prepare(small(1), x, size=16, most=4), {}),
        ("starting weights", done, {}),
        ("rows", net_of(), {"x": torch.cat([x[:-1], 0 * x[:1]])}),
        ("floats", net_of(), {"floats": floats}),
        ("loss", net_of(), {"identity": {"loss": "another"}}),
    ]
    if learn == "labels":
        others.append(("labels", net_of(), {"y": (y + 1) % 4}))
        others.append(("labels, teacher", net_of(), {"teacher": small(), "loss": distance}))
    else:
        others.append(("teacher", net_of(), {"teacher": small(1)}))
        close = small()
        with torch.no_grad():  # as other threads might compute it
            close.fc2.weight *= 1 + 1e-5
        run(net_of(), teacher=close)
    for says, net, change in others:
        with pytest.raises(BitwrightError, match=rf"another training \({says}\)"):
            change = {"x": x, **change}
            run(net, **change)
    assert path.read_bytes() == before


class Dropping(torch.nn.Sequential):
    """A network whose training draws random numbers."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(torch.nn.Flatten(), torch.nn.Linear(128, 16), torch.nn.Dropout(0.5),
                         torch.nn.ReLU(), torch.nn.Linear(16, 4))  # fmt: skip


def test_dropout_follows_from_the_seed_alone_also_where_it_goes_on(tmp_path: Path):
    x, y = rows(64)
    masks: list[torch.Tensor] = []

    def trained(at: int, path: Path | None = None, stop: int = 0) -> list[torch.Tensor]:
        net = prepare(Dropping(), x, size=16, most=4)
        net.body[2].register_forward_hook(lambda _, __, found: masks.append(found.detach() != 0))
        torch.manual_seed(at)
        state_before = torch.get_rng_state()

        def stopping(line: dict[str, object]) -> None:
            if line["epoch"] == stop:
                raise KeyboardInterrupt

        try:
            train(net, x, y, RECIPE, checkpoint=path, progress=stopping)
        finally:
            assert torch.equal(torch.get_rng_state(), state_before), "the caller's is left alone"
        return state(net)

    wanted = trained(1)
    steps = 64 // RECIPE.batch
    firsts = masks[::steps][: len(RECIPE.epochs())]
    assert all(not torch.equal(a, b) for a, b in itertools.combinations(firsts, 2)), "new each time"
    path = tmp_path / "training.safetensors"
    with pytest.raises(KeyboardInterrupt):
        trained(2, path, stop=4)
    for found in (trained(3), trained(4, path)):
        assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_a_target_below_what_counts_take_is_refused_and_one_just_above_ends():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4))
    x = torch.randn(64, 8)
    y = torch.randint(0, 4, (64,))
    net = prepare(model, x)
    floor = net.blank_bits()
    with pytest.raises(BitwrightError, match=f"more than the {floor:.3g} that counts"):
        train(net, x, y, replace(RECIPE, bits=0.2))
    assert net.average_bits() > 4, "nothing is removed before it is refused"
    history = train(net, x, y, replace(RECIPE, bits=floor * (1 + 1e-9)))
    assert history[-1]["bits"] == pytest.approx(floor)
    assert all(int((net[name].alpha > 0).sum()) == 0 for name in net.names)


def test_short_epochs_turn_signs_and_remove_little_at_once(monkeypatch: pytest.MonkeyPatch):
    net, shares = net_of(), []
    real = LossAware.prune

    def watched(self: LossAware, spare: float, share: float = 1.0, **options: Any) -> int:
        shares.append((self.steps, share))
        return real(self, spare, share, **options)

    monkeypatch.setattr(LossAware, "prune", watched)
    history = train(net, *rows(112), replace(RECIPE, loops=1, bases_rate=1.0))  # seven steps
    turned = next(line["turned"] for line in history if line["what"] == "bases")
    assert turned > 0
    assert {steps for steps, share in shares if share < 1} == {2, 3, 4, 5, 6}
    assert {steps for steps, share in shares if share == 1} <= {7}


def test_each_removal_measures_other_rows_in_other_directions(monkeypatch: pytest.MonkeyPatch):
    module = importlib.import_module("bitwright.multibit.train")
    seen: list[tuple[tuple[float, ...], int]] = []
    real = module.curvatures

    def watched(net: Multibit, batches: Any, **options: Any) -> Any:
        found = torch.cat(list(batches))
        seen.append((tuple(found.flatten(1).sum(1).tolist()), options["seed"]))
        return real(net, batches, **options)

    monkeypatch.setattr(module, "curvatures", watched)
    x, y = rows(400)
    recipe = replace(RECIPE, loops=2, batch=8, curvature="gauss-newton")
    history = train(net_of(), x, y, recipe)
    assert len({seed for _, seed in seen}) > 10 and len({r for r, _ in seen}) > 10
    assert all(len(sums) == 16 * 8 for sums, _ in seen)
    first, seen = seen[:], []
    assert train(net_of(), x, y, recipe) == history and seen == first


def test_loops_after_everything_is_gone_end():
    model = torch.nn.Sequential(torch.nn.Linear(64, 1))
    x = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    net = prepare(model, x, size=64, most=1)
    recipe = Recipe(1.2, loops=3, straight=0, final=0, batch=4)
    history = train(net, x, None, recipe, loss=torch.nn.functional.mse_loss, teacher=model)
    assert history[-1]["bits"] <= 1.2


def test_measuring_curvature_takes_any_number_of_rows_and_moves_no_statistics():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 24), torch.nn.BatchNorm1d(24), torch.nn.ReLU(),
                                torch.nn.Linear(24, 4)).eval()  # fmt: skip
    x = torch.randn(33, 8)  # two steps of 16 rows, and one row more
    net = prepare(model, x, size=8, most=4)
    train(net, x, torch.randint(0, 4, (33,)), replace(RECIPE, curvature="gauss-newton"))
    assert int(net.body[1].num_batches_tracked) == 2 * len(RECIPE.epochs())


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
        ({"bits": 0.0}, "0.0 bits a weight is no target"),
        ({"bits": -1.0}, "-1.0 bits a weight is no target"),
        ({"bits": float("nan")}, "nan bits a weight is no target"),
        ({"bits": 50.0}, "give less than the [0-9.]+ of the beginning"),
        ({"batch": 1000}, "batch of 1000"),
        ({"batch": 0}, "batch is 0; give 1 or more"),
        ({"rate": 0.0}, "^rate is 0.0; give a number above 0"),
        ({"share": float("inf")}, "share is inf"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"kind": "other"}, "kind 'other' is unknown; use kl or squared"),
        ({"prune": 0}, "prune is 0; give 1 or more"),
        ({"loops": 0}, "loops is 0; give 1 or more"),
        ({"straight": -1}, "straight is -1; give 0 or more"),
    ],
)
def test_what_cannot_be_is_said(change: dict[str, object], says: str):
    with pytest.raises(BitwrightError, match=says):
        train(net_of(), *rows(64), replace(RECIPE, **change))  # type: ignore[arg-type]
    with pytest.raises(BitwrightError, match="labels, or a teacher"):
        train(net_of(), rows(64)[0], None, RECIPE)


def test_preparing_refuses_sizes_and_weights_that_cannot_be():
    for size in (0, -3):
        with pytest.raises(BitwrightError, match=f"groups have {size} weights"):
            prepare(small(), rows()[0], size=size)
    for most in (0, 9):
        with pytest.raises(BitwrightError, match=f"1 to 8 bases, not {most}"):
            prepare(small(), rows()[0], most=most)
    for value in (float("nan"), float("inf")):
        model = small()
        with torch.no_grad():
            model.fc1.weight[3, 5] = value
        with pytest.raises(BitwrightError, match="layer 'fc1' has NaN or infinite weights"):
            prepare(model, rows()[0])


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
