"""Widths by layer and by in-degree beside one width for all, at the same mean of three bits."""

from __future__ import annotations

import math
import statistics
from dataclasses import replace

import networks
import torch
from degree_quant_accuracy import HIDDEN, node_form
from harness import Rows

from bitwright.curvature.divergence import per_sample
from bitwright.graph import (
    DegreeQuant,
    Recipe,
    Scheme,
    build,
    load_nodes,
    mixed_widths,
    train,
)
from bitwright.graph.training import accuracy, answers, of_nodes

MEAN = 3
#: as `train-graph --bits 3` has it
SCHEME = Scheme(MEAN, MEAN, percentile=0.01)
#: classes of in-degree
WAYS = {"uniform": 0, "by layer": 1, "by layer and in-degree": 4}


def mixed(rows: Rows, quick: bool) -> None:
    """KL to float without training under the widths, and accuracy with it; means over seeds."""
    for dataset in ("cora",) if quick else ("cora", "citeseer"):
        for net in ("gcn",) if quick else HIDDEN:
            _compare(rows, dataset, net, range(1 if quick else 5), 10 if quick else 100)


def _compare(rows: Rows, dataset: str, net: str, seeds: range, epochs: int) -> None:
    graph = load_nodes(networks.root() / "graphs" / f"{dataset}.npz")
    data = of_nodes(graph)
    form = node_form(net, graph.x.shape[1], 1 + int(graph.y.max()))
    lost: dict[str, list[float]] = {way: [] for way in WAYS}
    right: dict[str, list[float]] = {way: [] for way in ("float", *WAYS)}
    for seed in seeds:
        whole = build(form, seed)
        recipe = Recipe(epochs, seed=seed, judge_every=5)
        train(whole, data, recipe)
        right["float"].append(100 * accuracy(whole, data, "test"))
        with torch.no_grad():
            wanted = answers(whole, graph)
        for way, classes in WAYS.items():
            scheme = replace(SCHEME, seed=seed)
            if classes:
                plain = DegreeQuant(whole, scheme, graph.x, graph.edge_index)
                found = mixed_widths(plain, [graph], MEAN, classes=classes, seed=seed)
                scheme = replace(scheme, widths=found)
            after = DegreeQuant(whole, scheme, graph.x, graph.edge_index).eval()
            with torch.no_grad():
                lost[way].append(float(per_sample(wanted, answers(after, graph), "kl").mean()))
            if way != "by layer":
                trained = DegreeQuant(build(form, seed), scheme, graph.x, graph.edge_index)
                train(trained, data, recipe)
                right[way].append(100 * accuracy(trained, data, "test"))
    uniform = statistics.mean(lost["uniform"])
    for way, found in lost.items():
        mean = statistics.mean(found)
        bar = way == "by layer and in-degree"
        rows.add(
            f"{dataset} {net}, KL at {MEAN} bits on average, {way}", mean,
            "< one width's" if bar else "", mean < uniform if bar else None,
            "uniform", uniform, seeds=len(found),
            log_stderr=_stderr([math.log(a / b) for a, b in
                                zip(found, lost["uniform"], strict=True)]),
        )  # fmt: skip
    floats = statistics.mean(right["float"])
    for way in ("uniform", "by layer and in-degree"):
        rows.add(
            f"{dataset} {net}, trained at {MEAN} bits on average, {way}",
            statistics.mean(right[way]), "", None, "float", floats,
            std=round(statistics.stdev(right[way]), 2) if len(seeds) > 1 else None,
        )  # fmt: skip


def _stderr(values: list[float]) -> float | None:
    if len(values) < 2:
        return None
    return round(statistics.stdev(values) / math.sqrt(len(values)), 4)
