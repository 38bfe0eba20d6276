"""Accuracy of small files: ours by the bars, and beside every peer at equal bytes.

    python benchmarks/quality.py [--data-root DIR] [--quick] [--only weights,activations,…]

Parts: `weights` (ResNet-20 at 4, 3 and 2 mean bits, float activations), `activations` (the same
with 8 bits of activations, and 4 with 4), `mobilenet` (MobileNetV2, 4 bits, 8 of activations),
`minilm` (MiniLM fine-tuned on SST-2 at 4, 3 and 2 bits, its embeddings among them), `finetune`
(ResNet-20 at 2 bits with 4 of activations, trained on the 8,068 images with distillation and
augmentation) and `ablation` (what each step buys). `quality_peers.py` measures the peers; a case
that a peer took part in is held against the best of them in `results/quality.json`.

Points of accuracy come with the standard error of the paired difference, image by image, and fail
only where they are beyond the bar by more than that.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Any

import harness
import language
import main_job
import networks
import quality_ablation
import torch
from peers import cases, child
from torch import Tensor

from bitwright import quantize
from bitwright.curvature.divergence import per_sample
from bitwright.network import outputs
from bitwright.pipeline import Run, Settings
from bitwright.pipeline.budget import parse_budget
from bitwright.quantize import Quantized
from bitwright.task import Task

#: epochs of `finetune`: what fits 45 minutes of two cores
EPOCHS = 36
#: its rate: 2 bits oscillate at larger ones
RATE = 3e-4
#: where a fine-tuning that was stopped goes on; delete it to measure its seconds
FOLDER = harness.HERE.parent / "build" / "quality"


def task(network: str) -> Task:
    """A network and the rows that every party gets."""
    rows = cases.rows(network)
    return main_job.task(
        child.network(network),
        {
            "train_x": rows["calibration"],
            "train_y": rows["calibration_labels"],
            "test_x": rows["judged"],
            "test_y": rows["labels"],
        },
    )


def best_peer(title: str, case: str) -> tuple[str, float | None]:
    """The lowest KL of any peer in a case of the kept results, and whose."""
    path = harness.HERE / "results" / "quality.json"
    content = json.loads(path.read_text()) if path.is_file() else {}
    for row in content.get(f"peers {title}", {}).get("rows", []):
        if row["name"] == f"lowest KL of the peers, {title}, {case}":
            return row["peer"], row["value"]
    return "", None


def judged(work: Task, run: Run, built: Quantized) -> dict[str, Any]:
    """KL and points, with their errors, on the test rows."""
    assert work.test is not None and work.test_labels is not None
    reference = outputs(run.network.module, work.test)
    answers = quantize.simulate(built, work.test)
    kl = per_sample(reference, answers, "kl")
    before, after = ((a.argmax(1) == work.test_labels).double() for a in (reference, answers))
    same = (reference.argmax(1) == answers.argmax(1)).double()

    def points(values: Tensor) -> tuple[float, float]:
        return 100 * float(values.mean()), 100 * main_job.stderr(values)

    lost, lost_error = points(before - after)
    agree, agree_error = points(same)
    return {
        "kl": float(kl.mean()),
        "kl_stderr": round(main_job.stderr(kl), 5),
        "points_lost": round(lost, 3),
        "points_stderr": round(lost_error, 3),
        "agreement": round(agree, 3),
        "agreement_stderr": round(agree_error, 3),
    }


def measured(network: str, case: str, folder: str, **settings: Any) -> dict[str, Any]:
    """One case, from the float network to answers on the test rows.

    Args:
        network: name.
        case: its name.
        folder: of the run; what an earlier case has measured there is not measured again, nor in
            the seconds.
        settings: of the run.
    """
    work = task(network)
    wall, processor = time.perf_counter(), time.process_time()
    run = Run(work, Settings(rounding="feedback", **settings), Path(folder))
    built = run.quantized
    spent = time.perf_counter() - wall, time.process_time() - processor
    bits = quantize.mean_bits(run.network, built.layers)
    found = judged(work, run, built)
    peer, peer_kl = best_peer(cases.TITLES[network], case)
    return {
        **found,
        "mean_bits": round(bits, 4),
        "seconds": round(spent[0], 1),
        "processor_seconds": round(spent[1], 1),
        "peer": peer,
        "peer_kl": peer_kl,
    }


def add(
    rows: harness.Rows,
    name: str,
    found: dict[str, Any],
    most_kl: float | None = None,
    most_points: float | None = None,
) -> None:
    """The rows of a case: KL beside the peers', then points."""
    found = dict(found)
    kl, peer, peer_kl = (found.pop(k) for k in ("kl", "peer", "peer_kl"))
    bars = [] if most_kl is None else [f"<= {most_kl}"]
    holds = [] if most_kl is None else [kl <= most_kl]
    if peer_kl is not None:
        bars.append("< the best peer")
        holds.append(kl < peer_kl)
    rows.add(
        f"KL, {name}", kl, " and ".join(bars), all(holds) if holds else None, peer, peer_kl, **found
    )
    if most_points is not None:
        lost, error = found["points_lost"], found["points_stderr"]
        bar = f"<= {most_points}, less a standard error of {error:.2f}"
        rows.add(f"points lost, {name}", lost, bar, lost - error <= most_points)


def weights(rows: harness.Rows, quick: bool) -> None:
    """Weights alone."""
    with tempfile.TemporaryDirectory() as folder:
        for bits, most in ((4, 0.005), (3, 0.02), (2, 0.10))[: 1 if quick else None]:
            case, budget = f"W {bits} / float", parse_budget(f"{bits}bit")
            found = measured(cases.R20, case, folder, budget=budget, activations=None)
            add(rows, f"ResNet-20, {case}", found, most)


def activations(rows: harness.Rows, quick: bool) -> None:
    """With 8 bits of activations, and with 4, by edge and by channel."""
    wanted = ((4, 8, 0.2), (3, 8, 0.5), (2, 8, 2.5), (4, 4, 1.5))
    with tempfile.TemporaryDirectory() as folder:
        for bits, acts, most in wanted[: 1 if quick else None]:
            case, budget = f"W {bits} / A{acts}", parse_budget(f"{bits}bit")
            found = measured(cases.R20, case, folder, budget=budget, activations=acts)
            add(rows, f"ResNet-20, {case}", found, most_points=most)
        if not quick:  # the last case again
            settings = {"budget": budget, "activations": acts, "granularity": "channel"}
            found = measured(cases.R20, case, folder, **settings)
            add(rows, f"ResNet-20, {case}, widths by channel", found, most_points=most)


def mobilenet(rows: harness.Rows, quick: bool) -> None:
    """The hard case: narrow depthwise layers."""
    if quick:
        return
    case = "W 4 / A8"
    with tempfile.TemporaryDirectory() as folder:
        budget = parse_budget("4bit")
        found = measured(cases.MOBILE, case, folder, budget=budget, activations=8)
    add(rows, f"MobileNetV2, {case}", found)
    agree, error = found["agreement"], found["agreement_stderr"]
    bar = f">= 95, and a standard error of {error:.2f}"
    rows.add(f"agreement with float, percent, MobileNetV2, {case}", agree, bar, agree + error >= 95)


def minilm(rows: harness.Rows, quick: bool) -> None:
    """A transformer fine-tuned on SST-2, its linear layers and embeddings, on the dev sentences."""
    if quick:
        return
    case = "W 3 / float"
    if missing := language.lacking():
        rows.add(f"KL, MiniLM, {case}", None, "< the best peer", None, missing)
        return
    with tempfile.TemporaryDirectory() as folder:
        for bits, most in ((4, None), (3, 0.5), (2, None)):
            case, budget = f"W {bits} / float", parse_budget(f"{bits}bit")
            found = measured(cases.MINILM, case, folder, budget=budget, activations=None)
            add(rows, f"MiniLM, {case}", found, most_points=most)


def finetune(rows: harness.Rows, quick: bool) -> None:
    """Trained on all training images, the float network as teacher."""
    if quick:
        return
    work = main_job.task(networks.resnet20(), networks.cifar10())
    wall, processor = time.perf_counter(), time.process_time()
    settings = Settings(
        budget=parse_budget("2bit"),
        activations=4,
        granularity="channel",
        rounding="feedback",
        epochs=EPOCHS,
        augment="flip,crop4,mixup",
        temperature=1.0,
        rate=RATE,
    )
    run = Run(work, settings, FOLDER / "finetune")
    before, built = judged(work, run, run.corrected), run.quantized
    spent = time.perf_counter() - wall, time.process_time() - processor
    found = judged(work, run, built)
    bits = quantize.mean_bits(run.network, built.layers)
    found |= {"peer": "before training", "peer_kl": before["kl"], "mean_bits": round(bits, 4)}
    found |= {"seconds": round(spent[0], 1), "processor_seconds": round(spent[1], 1)}
    add(rows, "ResNet-20, W 2 / A4, widths by channel, fine-tuned", found, 0.08, 1.5)


def ablation(rows: harness.Rows, quick: bool) -> None:
    """What each step buys."""
    quality_ablation.measure(rows, task(cases.R20), judged, quick)


PARTS = {
    "weights": weights,
    "activations": activations,
    "mobilenet": mobilenet,
    "minilm": minilm,
    "finetune": finetune,
    "ablation": ablation,
}

if __name__ == "__main__":
    torch.manual_seed(0)
    harness.run("quality", __doc__ or "", PARTS)
