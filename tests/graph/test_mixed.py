"""Widths by layer and class of in-degree: what they would lose, how they are chosen and kept."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch_geometric.data import Batch, Data

from bitwright import BitwrightError
from bitwright.graph import DegreeQuant, Form, Scheme, Widths, artefact, build, mixed
from bitwright.graph.degrees import degree_bounds, degree_classes, in_degrees
from bitwright.graph.ranges import Range
from bitwright.graph.weights import round_weights
from graph.graphs import LAYERS, graph, net
from graph.test_run import dataset, options
from mutants import mutated
from pipeline.tiny import call, refused

CHOICES = (2, 4, 8)


def wrapped(kind: str = "gcn", nodes: int = 40) -> tuple[DegreeQuant, Data]:
    x, edges = graph(nodes)
    return DegreeQuant(net(kind), Scheme(4, 4, percentile=0.0), x, edges), Data(x, edges)


def jacobian(logits: Tensor, of: Tensor) -> Tensor:
    """float64 [numbers of logits, numbers of `of`]."""
    rows = [torch.autograd.grad(v, of, retain_graph=True)[0].flatten() for v in logits.flatten()]
    return torch.stack(rows).double()


def kinds_of(data: Data, bounds: Sequence[int]) -> list[Tensor]:
    return [degree_classes(in_degrees(data.edge_index[1], len(data.x)), bounds)]


def check_losses() -> None:
    found, data = wrapped(nodes=12)
    weights, rows = mixed.losses(found, [data], kinds_of(data, (2,)), CHOICES, probes=4000)
    with torch.enable_grad(), found.in_float() as seen:
        logits = found(data.x, data.edge_index)
    p = logits.detach().double().softmax(1)
    blocks = torch.block_diag(*(torch.diag(v) - torch.outer(v, v) for v in p))

    def diagonal(of: Tensor) -> Tensor:
        j = jacobian(logits, of)
        return torch.einsum("ak,ab,bk->k", j, blocks, j).reshape(of.shape)

    for name, loss in weights.items():
        w = found.net.get_parameter(name)
        for bits, value in zip(CHOICES, loss.at, strict=True):
            error = (round_weights(w.detach(), bits) - w.detach()).double()
            wanted = float((0.5 * diagonal(w) * error.square()).sum())
            assert value == pytest.approx(wanted, rel=0.1)
        assert loss.numbers == w.numel()
    kinds = degree_classes(in_degrees(data.edge_index[1], 12), (2,))
    assert {k for _, k in rows} == {0, 1}
    for (site, kind), loss in rows.items():
        (x,) = seen[site]
        mine = kinds == kind
        for bits, value in zip(CHOICES, loss.at, strict=True):
            error = (found.range_of(site).round(x.detach(), bits) - x.detach()).double()
            wanted = float((0.5 * diagonal(x) * error.square())[mine].sum())
            assert value == pytest.approx(wanted, rel=0.1, abs=1e-12)
        assert loss.numbers == int(mine.sum()) * x.shape[1]


def test_losses_are_the_diagonal_of_the_dense_gauss_newton_matrix():
    check_losses()
    for old, new in (
        ("u.square() / probes", "u.abs() / probes"),
        ("at[mine].sum(0)", "at.sum(0)"),
        ("0.5 * square * error.square()", "square * error.square()"),
    ):
        with mutated("graph.mixed", old, new), pytest.raises(AssertionError):
            check_losses()


def test_the_choice_is_that_of_brute_force():
    found, data = wrapped()
    for mean in (2.0, 3.3, 5.0, 8.0):
        weights, rows = mixed.losses(
            found, [data], kinds_of(data, degree_bounds(in_degrees(data.edge_index[1], 40), 2)),
            CHOICES,
        )  # fmt: skip
        chosen = mixed.mixed_widths(found, [data], mean, choices=CHOICES, classes=2)
        for items, widths in (
            (weights, list(chosen.weights.values())),
            (rows, [chosen.sites[site][k] for site, k in rows]),
        ):
            numbers = [i.numbers for i in items.values()]
            losses = [i.at for i in items.values()]
            room = mean * sum(numbers)

            def total(picked: tuple[int, ...], losses: list = losses) -> float:
                return sum(
                    float(at[CHOICES.index(b)]) for at, b in zip(losses, picked, strict=True)
                )

            fits = [
                picked
                for picked in itertools.product(CHOICES, repeat=len(numbers))
                if sum(n * b for n, b in zip(numbers, picked, strict=True)) <= room
            ]
            assert tuple(widths) in fits
            assert total(tuple(widths)) == pytest.approx(min(map(total, fits)), rel=1e-9)


def test_more_classes_lose_no_more_and_uniform_is_the_worst():
    found, data = wrapped()

    def lost(widths: Widths) -> float:
        _, rows = mixed.losses(found, [data], kinds_of(data, widths.degrees), (2, 3, 4))
        return sum(float(loss.at[widths.sites[s][k] - 2]) for (s, k), loss in rows.items())

    one, four = (mixed.mixed_widths(found, [data], 3, choices=(2, 3, 4), classes=k) for k in (1, 4))
    uniform = Widths({}, four.degrees, {s: (3,) * len(v) for s, v in four.sites.items()})
    spread = replace(four, sites={s: one.sites[s] * (len(four.degrees) + 1) for s in four.sites})
    assert lost(four) < lost(spread) <= lost(uniform)


@pytest.mark.parametrize("kind", list(LAYERS))
def test_every_row_has_the_levels_of_its_class(kind: str):
    found, data = wrapped(kind)
    sites = dict.fromkeys(found.ranges, (2, 8))
    mixed_net = DegreeQuant(
        net(kind), replace(found.scheme, widths=Widths({}, (3,), sites)), data.x, data.edge_index
    ).eval()
    seen: list[Tensor] = []
    mixed_net.net.first.register_forward_pre_hook(lambda part, args: seen.append(args[0]))
    mixed_net(data.x, data.edge_index)
    few = in_degrees(data.edge_index[1], 40) <= 3
    assert 0 < int(few.sum()) < 40
    assert len(seen[0][few].unique()) <= 4 < len(seen[0][~few].unique())


def test_rows_of_equal_width_are_rounded_as_all_are():
    x = torch.randn(30, 7, generator=torch.Generator().manual_seed(0)) * 3
    found = Range(0.01, 0.1)
    found.update(x, None, torch.Generator())
    bits = torch.arange(30) % 7 + 2
    grown = x.clone().requires_grad_()
    rounded = found.round_rows(grown, bits)
    rounded.sum().backward()
    for b in range(2, 9):
        mine = x[bits == b].requires_grad_()
        wanted = found.round(mine, b)
        wanted.sum().backward()
        assert torch.equal(rounded[bits == b], wanted)
        assert grown.grad is not None and mine.grad is not None
        assert torch.equal(grown.grad[bits == b], mine.grad)


def test_classes_take_about_as_many_edges_each():
    degrees = torch.tensor([1] * 50 + [5] * 10 + [10] * 5 + [50])
    assert degree_bounds(degrees, 4) == (1, 5, 10)
    assert degree_classes(degrees, (1, 5, 10)).bincount().tolist() == [50, 10, 5, 1]
    assert degree_bounds(torch.full((9,), 3), 4) == ()  # all alike: one class
    assert degree_bounds(degrees, 1) == ()


def test_graphs_with_labels_have_one_width_behind_the_readout():
    x, edges = graph()
    batch = Batch.from_data_list([Data(x, edges), Data(x[:20], edges[:, (edges < 20).all(0)])])
    form = Form("gin", 6, 8, 3, graphs=True)
    found = DegreeQuant(build(form), Scheme(4, 4), batch.x, batch.edge_index, batch=batch.batch)
    widths = mixed.mixed_widths(found, [batch], 4, classes=3)
    assert {s for s, b in widths.sites.items() if len(b) == 1} == {"first", "dropout"}
    scheme = replace(found.scheme, widths=widths)
    again = DegreeQuant(build(form), scheme, batch.x, batch.edge_index, batch=batch.batch)
    again.train()(batch.x, batch.edge_index, batch=batch.batch).sum().backward()
    wrong = Widths({}, (3,), {"first": (2, 4)})
    with pytest.raises(BitwrightError, match="first has widths by in-degree, but its rows"):
        DegreeQuant(build(form), replace(scheme, widths=wrong), batch.x, batch.edge_index,
                    batch=batch.batch)  # fmt: skip


@pytest.mark.parametrize("kind", ["gcn", "gat", "gin"])
def test_what_is_read_is_what_was_written(kind: str, tmp_path: Path):
    x, edges = graph()
    form = Form(kind, 6, 8, 3)
    found = DegreeQuant(build(form), Scheme(4, 4), x, edges)
    widths = mixed.mixed_widths(found, [Data(x, edges)], 3.5)
    assert len(set(widths.weights.values())) > 1 or len({*widths.sites.values()}) > 1
    found = DegreeQuant(build(form), Scheme(4, 4, widths=widths), x, edges).eval()
    artefact.save(found, form, tmp_path / "a", {})
    again, _ = artefact.load(tmp_path / "a")
    assert again.scheme.widths == widths
    torch.testing.assert_close(again(x, edges), found(x, edges), atol=1e-5, rtol=1e-5)


def test_weights_have_their_widths():
    found, data = wrapped()
    widths = Widths({"first.lin.weight": 2, "last.lin.weight": 8}, (), {})
    found = DegreeQuant(net("gcn"), replace(found.scheme, widths=widths), data.x, data.edge_index)
    own = found.weights()
    assert max(len(row.unique()) for row in own["first.lin.weight"]) <= 3
    assert max(len(row.unique()) for row in own["last.lin.weight"]) > 3


def test_what_no_plan_has_is_refused():
    found, data = wrapped()
    for choices, mean, says in (
        ((4, 8), 3, "a mean of 3 bits is below"), ((), 3, "a mean of 3 bits is below"),
    ):  # fmt: skip
        with pytest.raises(BitwrightError, match=says):
            mixed.mixed_widths(found, [data], mean, choices=choices)
    with pytest.raises(BitwrightError, match="no graphs"):
        mixed.mixed_widths(found, [], 4)
    for widths, says in (
        (({"w": 9}, (), {}), "w has 9 bits"),
        (({}, (3, 3), {}), "ascending"),
        (({}, (3,), {"x": (2, 4, 8)}), "x has 3 widths for 2 classes"),
    ):
        with pytest.raises(BitwrightError, match=says):
            Widths(*widths)
    with pytest.raises(BitwrightError, match="give bits and weight_bits"):
        Scheme(None, 4, widths=Widths({}, (), {}))


def test_the_command(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    dataset(tmp_path)
    given = options(tmp_path, bits=3.5, widths="2,4,8", classes=3)
    assert call("train-graph", *given) == 0
    said = json.loads((tmp_path / "run" / "graph.json").read_text())
    found, header = artefact.load(tmp_path / "run" / "model.safetensors")
    assert json.loads(json.dumps(said["widths"])) == header["widths"]
    assert set(found.scheme.widths.weights.values()) <= {2, 4, 8}
    page = (tmp_path / "run" / "graph.html").read_text()
    assert "gcn at 3.5 bits" in page and ">Widths</h2>" in page and "and more</th>" in page
    before = (tmp_path / "run" / "model.safetensors").read_bytes()
    assert call("train-graph", *given) == 0
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == before
    for changed, says in (
        ({"bits": 3.5}, "--bits is 3.5; a mean between whole numbers needs --widths"),
        ({"widths": "1,4"}, "--widths is '1,4'; use numbers from 2 to 8"),
        (
            {"widths": "4,8", "bits": 3, "out": tmp_path / "other"},
            "a mean of 3 bits is below all of --widths",
        ),
    ):
        assert says in refused(capfd, "train-graph", *options(tmp_path, **changed))
