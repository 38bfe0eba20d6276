"""Training: it learns, it repeats itself, and it goes on where it was killed."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch_geometric.data import Data

from bitwright import BitwrightError
from bitwright.graph import DegreeQuant, Form, Recipe, Scheme, build, train, training
from bitwright.graph.training import Labelled, accuracy, of_nodes
from bitwright.train import resume
from graph.graphs import graph
from small import refused


def labelled_nodes() -> Labelled:
    """Sixty nodes of two classes, neighbours of their like, which differ in their features."""
    x, edges = graph(60)
    y = torch.arange(60) % 2
    edges = edges[:, y[edges[0]] == y[edges[1]]]
    part = torch.arange(60) // 2 % 3
    masks = {f"{name}_mask": part == i for i, name in enumerate(("train", "val", "test"))}
    return of_nodes(Data(x=x + 2 * y[:, None], edge_index=edges, y=y, **masks))


def labelled_graphs() -> Labelled:
    """Graphs of two sizes."""
    found = []
    for i in range(40):
        x, edges = graph(10 + 10 * (i % 2), seed=i)
        found.append(Data(x=x + i % 2, edge_index=edges, y=torch.tensor([i % 2])))
    return Labelled(found[:24], found[24:32], found[32:], nodes=False)


def quantized(labelled: Labelled, kind: str = "gcn", bits: int = 4) -> DegreeQuant:
    form = Form(kind, 6, 8, 2, graphs=not labelled.nodes)
    example = labelled.example
    more = {} if labelled.nodes else {"batch": example.batch}
    return DegreeQuant(build(form), Scheme(bits, bits), example.x, example.edge_index, **more)


@pytest.mark.parametrize("kind", ["gcn", "gin"])
@pytest.mark.parametrize("labelled", [labelled_nodes(), labelled_graphs()], ids=["nodes", "graphs"])
def test_it_learns(kind: str, labelled: Labelled):
    net = quantized(labelled, kind)
    epochs = 80 if labelled.nodes else 12  # the one graph is a single step
    history = train(net, labelled, Recipe(epochs, rate=0.02, batch=8))
    assert len(history) == epochs and not net.training
    assert accuracy(net, labelled, "val") == max(history)
    assert accuracy(net, labelled, "test") >= 0.75


def same(a: nn.Module, b: nn.Module) -> bool:
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


def test_a_killed_training_goes_on(tmp_path: Path):
    labelled = labelled_graphs()
    recipe = Recipe(8, batch=8, judge_every=2, save_every=1)
    whole = quantized(labelled)
    wanted = train(whole, labelled, recipe)
    assert len(wanted) == 4

    class Killed(Exception):
        pass

    def kill(share: float) -> None:
        if share >= 0.5:
            raise Killed

    state = tmp_path / "state.safetensors"
    with pytest.raises(Killed):
        train(quantized(labelled), labelled, recipe, state=state, progress=kill)
    torch.manual_seed(99)  # of nobody's concern
    seen: list[float] = []
    again = quantized(labelled)
    assert train(again, labelled, recipe, state=state, progress=seen.append) == wanted
    assert seen == [0.75, 1.0] and same(again, whole)
    other = quantized(labelled)
    train(other, labelled, Recipe(8, batch=8, judge_every=2, seed=1))
    assert not same(other, whole)
    state.write_bytes(state.read_bytes()[:-7])
    with pytest.raises(BitwrightError, match="cannot be gone on from"):
        train(quantized(labelled), labelled, recipe, state=state)


def test_epochs_are_what_is_trained():
    """Looks behind the last epoch are taken there; those before where they were."""
    labelled = labelled_graphs()
    wanted, found, some = (quantized(labelled) for _ in range(3))
    one = train(wanted, labelled, Recipe(3, batch=8, judge_every=3))
    assert train(found, labelled, Recipe(3, batch=8, judge_every=25)) == one
    assert same(found, wanted)
    each = train(quantized(labelled), labelled, Recipe(3, batch=8))
    told: list[float] = []
    looks = train(some, labelled, Recipe(3, batch=8, judge_every=2), progress=told.append)
    assert looks == each[1:] and told == [2 / 3, 1.0]


def test_an_ended_training_goes_on_to_more_epochs(tmp_path: Path):
    labelled = labelled_graphs()
    state = tmp_path / "state.safetensors"
    whole, found = quantized(labelled), quantized(labelled)
    each = train(whole, labelled, Recipe(5, batch=8))
    train(quantized(labelled), labelled, Recipe(3, batch=8), state=state)
    longer = Recipe(5, batch=8, save_every=1)
    assert train(found, labelled, longer, state=state) == each and same(found, whole)
    with refused(f"{state} has 5 epochs, more than 4; delete it"):
        train(quantized(labelled), labelled, Recipe(4, batch=8), state=state)
    state.unlink()
    train(quantized(labelled), labelled, Recipe(3, batch=8, judge_every=2), state=state)
    looks = train(quantized(labelled), labelled, Recipe(5, batch=8, judge_every=2), state=state)
    assert looks == each[1:]  # at 2 and 3, then at 4 and 5


@pytest.mark.parametrize("judge_every", [1, 2])
def test_an_older_state_is_gone_on_from(judge_every: int, tmp_path: Path):
    """It has no options, and counts looks, not epochs."""
    labelled = labelled_graphs()
    state = tmp_path / "state.safetensors"
    whole, found = quantized(labelled), quantized(labelled)
    wanted = train(whole, labelled, Recipe(4, batch=8, judge_every=judge_every))
    short = Recipe(2, batch=8, judge_every=judge_every)
    train(quantized(labelled), labelled, short, state=state)
    tensors, text = resume.read(state)
    told = json.loads(text)
    assert told.pop("options") and told["steps"] == 2
    resume.write(state, tensors, json.dumps({**told, "steps": 0}))
    longer = Recipe(4, batch=8, judge_every=judge_every)
    assert train(found, labelled, longer, state=state) == wanted and same(found, whole)


@pytest.mark.parametrize(
    "changed",
    [
        {"rate": 0.02},
        {"decay": 0.0},
        {"batch": 4},
        {"seed": 1},
        {"judge_every": 2},
        {"cosine": True},
    ],
)
def test_a_state_of_another_training_is_refused(changed: dict[str, Any], tmp_path: Path):
    labelled = labelled_graphs()
    state = tmp_path / "state.safetensors"
    recipe = Recipe(1, batch=8)
    train(quantized(labelled), labelled, recipe, state=state)
    ((name, value),) = changed.items()
    before = getattr(recipe, name)
    with refused(f"{state} cannot be gone on from: it is of {name} {before}, not {value}"):
        other = dataclasses.replace(recipe, **changed, epochs=2)
        train(quantized(labelled), labelled, other, state=state)
    with refused("cannot be gone on from: it is of scheme Scheme(bits=4"):
        train(quantized(labelled, bits=8), labelled, recipe, state=state)
    net = quantized(labelled)
    with torch.no_grad():
        next(net.parameters()).add_(0.001)
    with refused("cannot be gone on from: it is of starting weights"):
        train(net, labelled, recipe, state=state)
    other = labelled_graphs()
    other.train[3].edge_index[0, 0] += 1
    with refused("cannot be gone on from: it is of data"):
        train(quantized(labelled), other, recipe, state=state)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"epochs": -1}, "epochs is -1; use 0 or more"),
        ({"batch": 0}, "batch is 0; use 1 or more"),
        ({"judge_every": 0}, "judge_every is 0; use 1 or more"),
        ({"save_every": 0}, "save_every is 0; use 1 or more"),
        ({"rate": float("nan")}, "rate is nan; use a finite number from 0"),
        ({"decay": -0.1}, "decay is -0.1; use a finite number from 0"),
    ],
)
def test_a_recipe_that_is_none_is_refused(changed: dict[str, Any], says: str):
    with refused(says):
        Recipe(**changed)


@pytest.mark.parametrize(
    ("form", "says"),
    [
        (Form("gnn", 6, 8, 2), "net is 'gnn'; use one of gcn, gat, gin, sage"),
        (Form("gat", 6, 12, 2), "hidden is 12; 8 heads need a multiple"),
    ],
)
def test_a_form_that_is_none_is_refused(form: Form, says: str):
    with pytest.raises(BitwrightError, match=says):
        build(form)


def test_weights_are_of_the_seed():
    a, b, c = (build(Form("gat", 6, 16, 2), seed) for seed in (0, 0, 1))
    assert same(a, b) and not same(a, c)


def test_the_rate_falls_along_a_cosine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    labelled, rates = labelled_graphs(), list[float]()
    epoch = training._epoch

    def spy(net: Any, data: Any, recipe: Recipe, adam: Any, generator: Any) -> None:
        rates.append(adam.param_groups[0]["lr"])
        if len(rates) == 7:
            raise KeyboardInterrupt
        epoch(net, data, recipe, adam, generator)

    monkeypatch.setattr(training, "_epoch", spy)
    recipe, state = Recipe(4, batch=8, save_every=1, cosine=True), tmp_path / "state.safetensors"
    whole, found = quantized(labelled), quantized(labelled)
    each = train(whole, labelled, recipe)
    wanted = [0.01 * 0.5 * (1 + math.cos(math.pi * e / 4)) for e in range(4)]
    assert rates == pytest.approx(wanted) and wanted[0] == 0.01
    with pytest.raises(KeyboardInterrupt):
        train(quantized(labelled), labelled, recipe, state=state)
    assert train(found, labelled, recipe, state=state) == each and same(found, whole)
    assert rates[6:] == pytest.approx(wanted[2:3] + wanted[2:])
    with refused("epochs 4, not 5"):  # whose rate falls more slowly
        train(quantized(labelled), labelled, dataclasses.replace(recipe, epochs=5), state=state)
