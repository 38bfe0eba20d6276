"""FastestDet at a mean of 4 bits, mixed beside uniform widths. A part of `search.py`.

Weights by channels and activations by edges, both by traces of the detector's own distance
(`detection.distance`), then the affine correction; uniform: 4 bits for every weight and every
activation, the image among them. Weights alone and activations alone, the other at 8 bits, say
where a difference comes from.

AP50 of 64 images is noisy. Its interval is that of the difference, over images drawn with
replacement; and the halves of the 128 images are exchanged as well, so that each image is judged
with what the other half calibrated.
"""

from __future__ import annotations

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

BITS, DRAWS = 4, 2000
#: what is narrow -> (bits of weights, bits of activations)
CASES = {"weights and activations": (BITS, BITS), "weights": (BITS, 8), "activations": (8, BITS)}


@dataclass(frozen=True)
class Half:
    """Answers on the judged half of what the other half calibrated.

    Attributes:
        labels: of the judged images.
        answers: "float", or (bits of weights, bits of activations, method) -> [n, 85, 22, 22].
        used: mean bits of the same.
    """

    labels: Tensor
    answers: Mapping[str | tuple[int, int, str], Tensor]
    used: Mapping[tuple[int, int, str], tuple[float, float]]


def calibrated(
    seen: Tensor, judged: Tensor, labels: Tensor, cases: Mapping[str, tuple[int, int]] = CASES
) -> Half:
    """Measure, choose widths, round and correct on the images seen; answer on the judged ones."""
    network = build(fastestdet.fastestdet(), seen)
    sensitivity = detection.sensitivity(network, seen)
    tables = quantize.weight_tables(network)
    edges = quantize.edge_tables(network, seen)
    x = seen[: quantize.rows_that_fit(network)]
    reference = quantize.float_outputs(network, x)
    answers: dict[str | tuple[int, int, str], Tensor] = {"float": outputs(network.module, judged)}
    used = {}
    for bits in cases.values():
        for method in ("mixed", "uniform"):
            budget = bits[0] * network.weights
            weights = _solved(
                quantize.channel_problem(network, sensitivity, tables, budget), bits[0], method
            )
            numbers = _solved(
                quantize.edge_problem(network, sensitivity, edges, bits[1]), bits[1], method
            )
            layers = quantize.round_weights(network, tables, quantize.plan_bits(network, weights))
            grids = {g: edges[g].grids[b] for g, b in zip(sorted(edges), numbers.bits, strict=True)}
            built = quantize.correct(network, layers, grids, x, reference)
            answers[*bits, method] = quantize.simulate(built, judged)
            used[*bits, method] = _mean(weights, bits[0]), _mean(numbers, bits[1])
    return Half(labels, answers, used)


def _solved(problem: Problem, bits: int, method: str) -> Plan:
    """Mixed widths are for what is narrow: at 8 bits all have them."""
    mixed = method == "mixed" and bits < 8
    return allocate.knapsack(problem) if mixed else allocate.uniform(problem)


def _mean(plan: Plan, bits: int) -> float:
    """Mean bits of a plan whose budget was `bits` for each number."""
    return round(bits * plan.cost / plan.budget, 4)


def detector(rows: harness.Rows, quick: bool) -> None:
    """Each case on the 64 judged images, then on all 128 with the halves exchanged."""
    data = {k: torch.from_numpy(v) for k, v in fastestdet.coco().items()}
    seen, judged = (data["train_x"], data["train_y"]), (data["test_x"], data["test_y"])
    if quick:
        few = {"weights and activations": (BITS, BITS)}
        found = [calibrated(seen[0][:4], *(t[:4] for t in judged), few)]
    else:
        found = [calibrated(seen[0], *judged), calibrated(judged[0], *seen)]
    for count in range(1, len(found) + 1):
        _rows(rows, found[:count], quick)


def _rows(rows: harness.Rows, halves: list[Half], quick: bool) -> None:
    most = max(half.labels.shape[1] for half in halves)
    labels = torch.cat(
        [pad(h.labels, (0, 0, 0, most - h.labels.shape[1]), value=-1) for h in halves]
    )
    n = len(labels)
    times = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), 50 if quick else DRAWS)
    draws = np.concatenate([np.ones((1, n), dtype=np.int64), times])  # the images as they are first
    words = f"{n} images" + (", halves exchanged" if len(halves) > 1 else "")

    def answers(which: str | tuple[int, int, str]) -> Tensor:
        return torch.cat([half.answers[which] for half in halves])

    whole = answers("float")
    best = detection.map50(whole, labels)
    for name, bits in CASES.items():
        if (*bits, "mixed") not in halves[0].answers:
            continue
        found, apart = {}, {}
        for method in ("mixed", "uniform"):
            value = answers((*bits, method))
            found[method] = detection.resampled_map50(value, labels, draws)
            apart[method] = detection.distance(whole, value)
        moved = found["mixed"] - found["uniform"]
        low, high = np.quantile(moved[1:], (0.025, 0.975))
        both = name == "weights and activations"
        far = apart["mixed"] - apart["uniform"]
        rows.add(
            f"mAP50, mixed - uniform, FastestDet, {name} at {BITS} bits, {words}",
            float(moved[0]),
            "> 0 with 95 % confidence" if both else "",
            None if quick or not both else bool(low > 0),
            "uniform",
            float(found["uniform"][0]),
            mixed=round(float(found["mixed"][0]), 5),
            float_network=round(best, 5),
            interval=[round(float(low), 5), round(float(high), 5)],
            draws=len(times),
            distance={m: round(float(d.mean()), 4) for m, d in apart.items()},
            distance_difference=[round(float(far.mean()), 4), round(main_job.stderr(far), 4)],
            mean_bits={m: halves[0].used[*bits, m] for m in apart},
        )
