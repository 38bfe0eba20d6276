"""FastestDet with 16-bit accumulators that do not overflow on data: what it detects."""

from __future__ import annotations

import detection
import fastestdet
import harness
import numpy as np
import torch

from bitwright import overflow, quantize
from bitwright.network import build, outputs
from bitwright.overflow import Accumulator
from bitwright.quantize import Quantized

DRAWS = 2000
#: largest loss of mAP50, points
BAR = 0.3


def detector(rows: harness.Rows, quick: bool) -> None:
    """mAP50 on 64 images of plain 8 bits, of the same with 16-bit accumulators, of uniform 6."""
    data = {k: torch.from_numpy(v) for k, v in fastestdet.coco().items()}
    few = 2 if quick else 64
    x, test, labels = data["train_x"][:few], data["test_x"][:few], data["test_y"][:few]
    network = build(fastestdet.fastestdet(), x)
    tables = quantize.weight_tables(network)
    seen = x[: min(8, quantize.rows_that_fit(network))]
    reference = quantize.float_outputs(network, seen)

    def uniform(bits: int) -> Quantized:
        widths = {la.name: np.full(la.rows, bits) for la in network.layers}
        edges = quantize.calibrate(network, x, bits=bits, chunk=8)
        layers = quantize.round_weights(network, tables, widths)
        return quantize.correct(network, layers, edges, seen, reference)

    eight = uniform(8)
    a = Accumulator(16)
    found = overflow.fit_to_data(
        eight,
        x,
        a,
        correct=lambda layers: quantize.correct(network, layers, eight.edges, seen, reference),
        chunk=4,
    )
    counts = overflow.overflows(found.quantized, test, a, chunk=4)
    n = len(labels)
    times = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), 50 if quick else DRAWS)
    draws = np.concatenate([np.ones((1, n), dtype=np.int64), times])
    networks = {"8": eight, "16-bit accumulators": found.quantized, "6": uniform(6)}
    value = {}
    for key, q in networks.items():  # as a machine computes it, overflows left on these images too
        machine = overflow.emulated(q, a if q is found.quantized else Accumulator(32))
        answers = torch.cat([machine(part) for part in test.split(8)])
        value[key] = detection.resampled_map50(answers, labels, draws)
    moved = 100 * (value["16-bit accumulators"] - value["8"])
    margin = 100 * (value["16-bit accumulators"] - value["6"])
    interval = np.quantile(moved[1:], (0.025, 0.975))
    rows.add(
        f"mAP50 change in points, FastestDet, 16-bit accumulators (wrap) free of overflow on "
        f"{len(x)} images, against plain 8-bit, {n} test images",
        float(moved[0]),
        f">= -{BAR}, zero within its interval",
        None if quick else bool(moved[0] >= -BAR and interval[0] <= 0 <= interval[1]),
        "uniform 6-bit, change",
        float(moved[0] - margin[0]),
        interval=[round(float(v), 3) for v in interval],
        over_uniform_6=[round(float(v), 3) for v in np.quantile(margin[1:], (0.025, 0.975))],
        map50={k: round(100 * float(v[0]), 3) for k, v in value.items()},
        float_network=round(
            100 * detection.map50(outputs(network.module, test, chunk=8), labels), 3
        ),
        overflows=list(found.history),
        left_on_test=[
            sum(c.total for c in counts.values()),
            sum(c.sums * len(c.over) for c in counts.values()),
        ],
    )
