"""Accuracy of Degree-Quant: nodes of Cora and Citeseer, graphs of PROTEINS and REDDIT-BINARY."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Callable
from pathlib import Path

import networks
from harness import HERE, Rows

from bitwright.graph import DegreeQuant, Form, Recipe, Scheme, build, load_nodes, train
from bitwright.graph.run import labelled
from bitwright.graph.training import Labelled, accuracy, of_nodes

#: method -> widths and scheme; None is float
SCHEMES = {
    "float": None,
    **{
        f"{name} {bits}": Scheme(bits, bits, protect, percentile)
        for bits, share in ((8, 0.001), (4, 0.01))
        for name, protect, percentile in (
            ("plain", (0.0, 0.0), 0.0),
            ("masks off", (0.0, 0.0), share),
            ("degree-quant", (0.0, 0.1), share),
        )
    },
}
#: epochs of REDDIT-BINARY, where one takes ten seconds or more
REDDIT_EPOCHS = int(os.environ.get("BITWRIGHT_REDDIT_EPOCHS", "30"))
HIDDEN = {"gcn": 16, "gat": 64, "gin": 64}
#: chosen on validation nodes by the float network alone
INPUT_DROPOUT = {"gin": 0.9}


def trained(data: Labelled, form: Form, recipe: Recipe, method: str, path: Path) -> float:
    """Test accuracy in per cent; kept in the file `path`."""
    if path.is_file():
        return float(json.loads(path.read_text())["test"])
    net = build(form, recipe.seed)
    scheme = SCHEMES[method]
    if scheme is not None:
        example = data.example
        more = {} if data.nodes else {"batch": example.batch}
        net = DegreeQuant(net, scheme, example.x, example.edge_index, **more)
    path.parent.mkdir(parents=True, exist_ok=True)
    train(net, data, recipe, state=path.with_suffix(".state"))
    found = 100 * accuracy(net, data, "test")
    path.write_text(json.dumps({"test": found}))
    path.with_suffix(".state").unlink()
    return found


def bar_of(dataset: str, method: str, net: str) -> float | None:
    """Points below float that are allowed."""
    if method == "degree-quant 8":
        return {"cora": 0.5, "proteins": 1.0, "reddit": 1.5}.get(dataset)
    if method == "degree-quant 4":
        if dataset == "reddit":
            return 7.0
        return 2.0 if net in ("gcn", "gat") and dataset != "proteins" else None
    return None


def compare(
    rows: Rows,
    dataset: str,
    net: str,
    epochs: int,
    runs: range,
    run: Callable[[str, int], float],
) -> None:
    """A row for each method over the runs, float beside it; no `masks off` where runs are long."""
    floats = [run("float", i) for i in runs]
    for method in SCHEMES:
        if dataset == "reddit" and method.startswith("masks off"):
            continue
        found = [run(method, i) for i in runs]
        spread = statistics.stdev(found) if len(found) > 1 else 0.0
        less = statistics.mean(floats) - statistics.mean(found)
        bar = bar_of(dataset, method, net)
        rows.add(
            f"{dataset} {net} {method}", statistics.mean(found),
            "" if bar is None else f"within {bar} points of float",
            None if bar is None else less <= bar,
            "float", statistics.mean(floats), std=round(spread, 2), runs=len(found),
            epochs=epochs, each=[round(v, 2) for v in found],
        )  # fmt: skip


def node_form(net: str, inputs: int, classes: int) -> Form:
    """The network for labelled nodes, the same for every row."""
    dropout = INPUT_DROPOUT.get(net, 0.0)
    return Form(net, inputs, HIDDEN[net], classes, input_dropout=dropout)


def nodes(dataset: str) -> Callable[[Rows, bool], None]:
    """The part of a graph with labelled nodes."""

    def part(rows: Rows, quick: bool) -> None:
        data = of_nodes(load_nodes(networks.root() / "graphs" / f"{dataset}.npz"))
        x, classes = data.train[0].x, 1 + int(data.train[0].y.max())
        epochs = 10 if quick else 100
        for net in ("gcn",) if quick else HIDDEN:
            form = node_form(net, x.shape[1], classes)

            def run(method: str, seed: int, form: Form = form, net: str = net) -> float:
                recipe = Recipe(epochs, seed=seed, judge_every=5)
                folder = _folder(quick) / dataset
                return trained(data, form, recipe, method, folder / f"{net} {method} {seed}.json")

            compare(rows, dataset, net, epochs, range(1 if quick else 10), run)

    return part


def graphs(dataset: str, file: str) -> Callable[[Rows, bool], None]:
    """The part of labelled graphs: GIN, each run tests on another fold of ten."""

    def part(rows: Rows, quick: bool) -> None:
        path = networks.root() / "graphs" / file
        layers = 5 if dataset == "reddit" else 3
        epochs = 1 if quick else REDDIT_EPOCHS if dataset == "reddit" else 60

        def run(method: str, fold: int) -> float:
            data = labelled(path, fold, 0)
            hidden = 64 if dataset == "reddit" else 32
            # few epochs of REDDIT-BINARY: many steps in each, nothing dropped, and the rate falls,
            # as the last weights of a constant rate are as far from each other as the methods are
            few = dataset == "reddit"
            dropout, batch = (0.0, 32) if few else (0.5, 128)
            form = Form("gin", data.train[0].x.shape[1], hidden, 2, layers, dropout, graphs=True)
            recipe = Recipe(epochs, decay=0.0, batch=batch, judge_every=1, save_every=1, cosine=few)
            folder = _folder(quick) / f"{dataset}-{epochs}"
            return trained(data, form, recipe, method, folder / f"{method} {fold}.json")

        folds = range(1 if quick else 3 if dataset == "reddit" else 10)
        compare(rows, dataset, "gin", epochs, folds, run)

    return part


def _folder(quick: bool) -> Path:
    return HERE.parent / "build" / ("degree_quant_quick" if quick else "degree_quant")
