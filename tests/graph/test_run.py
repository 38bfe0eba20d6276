"""`bitwright train-graph`: the folder it leaves, going on, and what it refuses."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from bitwright import BitwrightError
from bitwright.deploy import artefact as deploy_artefact
from bitwright.graph import DegreeQuant, Form, Scheme, artefact, build, load_nodes
from bitwright.graph.run import Settings, form_of
from bitwright.graph.training import accuracy, of_nodes
from graph.graphs import graph, net
from pipeline import test_store as store
from pipeline.tiny import call, refused


def dataset(folder: Path) -> Path:
    """Eighty nodes of two classes, neighbours of their like, in the form of an npz."""
    x, edges = graph(80)
    y = torch.arange(80) % 2
    edges = edges[:, y[edges[0]] == y[edges[1]]]
    places = (x + 2 * y[:, None] > 0.7).numpy()
    part = np.arange(80) // 2 % 3
    index = {f"{n}_idx": np.flatnonzero(part == i) for i, n in enumerate(("train", "val", "test"))}
    path = folder / "nodes.npz"
    np.savez(
        path,
        x_data=np.ones(int(places.sum()), np.float32),
        x_indices=np.nonzero(places)[1].astype(np.int32),
        x_indptr=np.concatenate([[0], places.sum(1).cumsum()]).astype(np.int32),
        x_shape=np.int64(places.shape),
        edges=edges.T.numpy().astype(np.int32),
        label=y.numpy().astype(np.int16),
        **index,
    )
    return path


def options(folder: Path, **changed: object) -> list[str]:
    given = {"dataset": folder / "nodes.npz", "out": folder / "run", "epochs": 20, "bits": 4,
             "hidden": 8, "protect": "0:0.2", **changed}  # fmt: skip
    return [word for name, value in given.items() for word in (f"--{name}", str(value))]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("graph")
    dataset(folder)
    assert call("train-graph", *options(folder)) == 0
    return folder


def test_the_folder(place: Path):
    run = place / "run"
    said = json.loads((run / "graph.json").read_text())
    assert set(said["rows"]) == {"float", "quantized", "artefact"}
    assert said["rows"]["artefact"] == said["rows"]["quantized"]
    assert said["rows"]["quantized"]["val"] > 0.6
    size = (run / "model.safetensors").stat().st_size
    assert said["bytes"]["artefact"] == size
    page = (run / "graph.html").read_text()
    assert "gcn at 4 bits" in page and "<script" not in page
    assert "torch_geometric" not in page


def test_the_artefact_answers_as_what_was_trained(place: Path):
    found, header = artefact.load(place / "run" / "model.safetensors")
    labelled = of_nodes(load_nodes(place / "nodes.npz"))
    assert header["accuracy"]["test"] == accuracy(found, labelled, "test")
    assert not found.training and header["form"]["kind"] == "gcn"
    with pytest.raises(BitwrightError, match=r"graph network; bitwright\.graph\.artefact\.load"):
        deploy_artefact.load(place / "run" / "model.safetensors")


@pytest.mark.parametrize("kind", ["gcn", "gat", "gin", "sage"])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_what_is_read_is_what_was_written(kind: str, bits: int, tmp_path: Path):
    x, edges = graph()
    form = Form(kind, 6, 8, 3, graphs=kind == "sage")
    batch = {"batch": torch.zeros(len(x), dtype=torch.int64)} if form.graphs else {}
    wanted = DegreeQuant(build(form), Scheme(bits, bits), x, edges, **batch).eval()
    artefact.save(wanted, form, tmp_path / "a", {})
    found, _ = artefact.load(tmp_path / "a")
    torch.testing.assert_close(
        found(x, edges, **batch), wanted(x, edges, **batch), atol=1e-5, rtol=1e-5
    )
    artefact.save(found, form, tmp_path / "b", {})
    again, _ = artefact.load(tmp_path / "b")
    torch.testing.assert_close(found(x, edges, **batch), again(x, edges, **batch))
    one = Form(kind, 6, 8, 1)
    single = DegreeQuant(build(one), Scheme(bits, bits), x, edges).eval()
    artefact.save(single, one, tmp_path / "c", {})
    found, _ = artefact.load(tmp_path / "c")
    torch.testing.assert_close(found(x, edges), single(x, edges), atol=1e-5, rtol=1e-5)
    if bits == 2:
        codes = sum(wanted.net.get_parameter(name).numel() for name in wanted.low_bit)
        floats = sum(v.numel() for v in wanted.net.state_dict().values())
        assert (tmp_path / "a").stat().st_size < codes / 4 + 4 * (floats - codes) + 4000


def test_the_same_command_goes_on_and_another_is_refused(
    place: Path, capfd: pytest.CaptureFixture[str]
):
    before = {p.name: p.read_bytes() for p in (place / "run").iterdir()}
    assert call("train-graph", *options(place)) == 0
    assert {p.name: p.read_bytes() for p in (place / "run").iterdir()} == before
    for changed, says in (
        ({"bits": 8}, "holds a training with other settings; give another --out"),
        ({"protect": "0.1"}, "--protect is '0.1'; use LOW:HIGH"),
        ({"protect": "0.5:0.1"}, "protect is 0.5:0.1"),
        ({"net": "gnn"}, "net is 'gnn'"),
        ({"bits": "nan"}, "bits is nan; use a number from 2 to 8"),
        ({"bits": "inf", "widths": "2,4"}, "bits is inf; use a number from 2 to 8"),
        ({"widths": "2,4", "bits": 3, "classes": 0}, "classes is 0; use 1 or more"),
        ({"dropout": 2, "out": place / "other"}, "dropout is 2.0; use a share from 0 to less"),
        ({"input-dropout": 1, "out": place / "other"}, "input_dropout is 1.0; use a share"),
        ({"dataset": place / "no.npz"}, "no.npz is not a graph of nodes"),
        ({"dataset": place / "no.txt"}, "no.txt is not in the form of powerful-gnns"),
    ):
        assert says in refused(capfd, "train-graph", *options(place, **changed))


def test_gin_for_nodes_loses_most_of_its_features(place: Path):
    data = of_nodes(load_nodes(place / "nodes.npz"))
    found = {
        (kind, given): form_of(Settings("", kind, input_dropout=given), data).input_dropout
        for kind in ("gin", "gcn")
        for given in (None, 0.5)
    }
    assert found == {("gin", None): 0.9, ("gcn", None): 0, ("gin", 0.5): 0.5, ("gcn", 0.5): 0.5}


def test_damaged_artefacts_are_refused(place: Path, tmp_path: Path):
    content = (place / "run" / "model.safetensors").read_bytes()
    path = tmp_path / "a"
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(BitwrightError, match="its checksum does not match"):
        artefact.load(path)
    x, edges = graph()
    form = Form("gcn", 6, 8, 3)
    for other in (Form("gcn", 6, 16, 3), Form("gcn", 5, 8, 3), Form("sage", 6, 8, 3)):
        artefact.save(DegreeQuant(build(form), Scheme(), x, edges), other, path, {})
        with pytest.raises(BitwrightError, match="is damaged"):
            artefact.load(path)
    with pytest.raises(BitwrightError, match="in float"):
        artefact.save(DegreeQuant(net("gcn"), Scheme(None), x, edges), form, path, {})


@pytest.mark.parametrize("kind", ["gcn", "gat", "gin", "sage"])
def test_forms_larger_than_their_files_are_refused(kind: str, tmp_path: Path):
    """Before memory is taken for them; heads that are averaged make four gigabytes of one layer."""
    x, edges = graph()
    net = DegreeQuant(build(Form(kind, 6, 8, 3)), Scheme(), x, edges)
    path = tmp_path / "a"
    for sizes in ((1000, 2**18, 3, 2, 1), (6, 2**10, 2**10, 2, 2**10), (6, 2**13, 3, 16, 1)):
        inputs, hidden, outputs, layers, heads = sizes
        form = Form(kind, inputs, hidden, outputs, layers, heads=heads)
        with torch.device("meta"):
            claimed = sum(value.numel() for value in build(form).parameters())
        artefact.save(net, form, path, {})
        with pytest.raises(BitwrightError, match=f"has {claimed} weights; in so small a file"):
            artefact.load(path)


def test_graphs_with_labels(tmp_path: Path):
    blocks = []
    for i in range(60):  # paths and stars
        size = 5 + i % 3
        path = [[n for n in (j - 1, j + 1) if 0 <= n < size] for j in range(size)]
        near = path if i % 2 else [list(range(1, size)), *[[0]] * (size - 1)]
        lines = [f"0 {len(mine)} {' '.join(map(str, mine))}" for mine in near]
        blocks += [f"{size} {i % 2}", *lines]
    (tmp_path / "graphs.txt").write_text("\n".join(["60", *blocks]))
    given = options(tmp_path, dataset=tmp_path / "graphs.txt", epochs=6, net="gin", fold=3, bits=8)
    assert call("train-graph", *given) == 0
    said = json.loads((tmp_path / "run" / "graph.json").read_text())
    assert said["rows"]["quantized"]["test"] >= 0.8


@pytest.mark.skipif(sys.platform == "win32", reason="no locks of folders there")
def test_two_trainings_do_not_share_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    dataset(tmp_path)
    (tmp_path / "run").mkdir()
    process, said = store.other(tmp_path / "run")
    line = refused(capsys, "train-graph", *options(tmp_path))
    process.kill()
    process.wait()
    assert said == "held" and "another process works in" in line
    assert not list((tmp_path / "run").iterdir())
