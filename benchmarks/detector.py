"""FastestDet at a mean of 4 bits, mixed beside uniform widths. A part of `search.py`.

Weights by channels, by either score, and activations by edges, all by the detector's own distance
(`detection.distance`), then the affine correction; uniform: one width for every weight and one for
every activation, the image among them. Weights alone and activations alone, the other at 8 bits,
say where a difference comes from; two wider cases what it is where the detector still detects.

AP50 of 64 images is noisy. Its interval is that of the difference, over images drawn with
replacement; and the halves of the 128 images are exchanged as well, so that each image is judged
with what the other half calibrated.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import detection
import fastestdet
import harness
import main_job
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from bitwright import allocate, quantize
from bitwright.allocate import Plan, Problem
from bitwright.network import build, outputs

DRAWS = 2000
#: bits of weights and of activations; the first is the one with a bar
CASES = ((4, 4), (4, 8), (8, 4), (4, 6), (3, 8))

#: bits of weights and activations, and method
Built = tuple[int, int, str]


@dataclass(frozen=True)
class Half:
    """Answers on the judged half of what the other half calibrated.

    Attributes:
        labels: of the judged images; reference: the float network's answers, [n, 85, 22, 22].
        answers: the quantized networks'.
        used: mean bits of their weights and activations.
    """

    labels: Tensor
    reference: Tensor
    answers: Mapping[Built, Tensor]
    used: Mapping[Built, tuple[float, float]]


def calibrated(seen: Tensor, judged: Tensor, labels: Tensor, *, quick: bool = False) -> Half:
    """Measure, choose widths, round and correct on the images seen; answer on the judged ones."""
    network = build(fastestdet.fastestdet(), seen)
    sensitivity = detection.sensitivity(network, seen)
    tables = quantize.weight_tables(network)
    edges = quantize.edge_tables(network, seen)
    losses = {"trace": quantize.channel_losses("trace", network, sensitivity, tables)}
    if not quick:
        losses["actual-error"] = detection.actual_error(network, tables, seen, losses["trace"])
    x = seen[: quantize.rows_that_fit(network)]
    reference = quantize.float_outputs(network, x)
    answers, used = {}, {}
    cases = CASES[:1] if quick else CASES
    for case, method in itertools.product(cases, ("uniform", *losses)):
        score = losses.get(method, losses["trace"])
        budget = case[0] * network.weights
        by_channel = quantize.channel_problem(network, sensitivity, tables, budget, score=score)
        by_edge = quantize.edge_problem(network, sensitivity, edges, case[1])
        plans = [
            _solved(problem, bits, method)
            for problem, bits in zip((by_channel, by_edge), case, strict=True)
        ]
        widths = quantize.plan_bits(network, plans[0])
        grids = {g: edges[g].grids[b] for g, b in zip(sorted(edges), plans[1].bits, strict=True)}
        layers = quantize.round_weights(network, tables, widths)
        built = quantize.correct(network, layers, grids, x, reference)
        answers[*case, method] = quantize.simulate(built, judged)
        used[*case, method] = tuple(
            _mean(plan, bits) for plan, bits in zip(plans, case, strict=True)
        )
    return Half(labels, outputs(network.module, judged), answers, used)


def _solved(problem: Problem, bits: int, method: str) -> Plan:
    """Mixed widths are for what is narrow: at 8 bits all have them."""
    mixed = method != "uniform" and bits < 8
    return allocate.knapsack(problem) if mixed else allocate.uniform(problem)


def _mean(plan: Plan, bits: int) -> float:
    """Mean bits of a plan whose budget was `bits` for each number."""
    return round(bits * plan.cost / plan.budget, 4)


def detector(rows: harness.Rows, quick: bool) -> None:
    """Each case on the 64 judged images, then on all 128 with the halves exchanged."""
    data = {k: torch.from_numpy(v) for k, v in fastestdet.coco().items()}
    seen, judged = (data["train_x"], data["train_y"]), (data["test_x"], data["test_y"])
    if quick:
        found = [calibrated(seen[0][:4], *(t[:4] for t in judged), quick=True)]
    else:
        found = [calibrated(seen[0], *judged), calibrated(judged[0], *seen)]
    for count in range(1, len(found) + 1):
        _rows(rows, found[:count], quick)


def _rows(rows: harness.Rows, halves: list[Half], quick: bool) -> None:
    most = max(half.labels.shape[1] for half in halves)
    labels = torch.cat(
        [pad(h.labels, (0, 0, 0, most - h.labels.shape[1]), value=-1) for h in halves]
    )
    reference = torch.cat([half.reference for half in halves])
    n = len(labels)
    times = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), 50 if quick else DRAWS)
    draws = np.concatenate([np.ones((1, n), dtype=np.int64), times])  # the images as they are first
    best = detection.map50(reference, labels)
    precision: dict[Built, np.ndarray] = {}
    apart: dict[Built, Tensor] = {}
    for which in halves[0].answers:
        value = torch.cat([half.answers[which] for half in halves])
        precision[which] = detection.resampled_map50(value, labels, draws)
        apart[which] = detection.distance(reference, value)
    for which in precision:
        uniform = (*which[:2], "uniform")
        if which == uniform or (which[0] == 8 and which[2] != "trace"):  # no score has a share
            continue
        moved = precision[which] - precision[uniform]
        low, high = np.quantile(moved[1:], (0.025, 0.975))
        far = apart[which] - apart[uniform]
        barred = which[:2] == CASES[0]
        rows.add(
            f"mAP50, mixed - uniform, FastestDet, weights {which[0]} bits, activations {which[1]} "
            f"bits, by {which[2]}, {n} images",
            float(moved[0]),
            "> 0 with 95 % confidence" if barred else "",
            bool(low > 0) if barred and not quick else None,
            "uniform",
            float(precision[uniform][0]),
            mixed=round(float(precision[which][0]), 5),
            float_network=round(best, 5),
            interval=[round(float(low), 5), round(float(high), 5)],
            draws=len(times),
            distance=round(float(apart[which].mean()), 4),
            distance_of_uniform=round(float(apart[uniform].mean()), 4),
            distance_difference=[round(float(far.mean()), 4), round(main_job.stderr(far), 4)],
            mean_bits=halves[0].used[which],
        )
