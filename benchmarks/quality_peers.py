"""What the peers reach on the cases of `quality.py`; kept in its results.

    python benchmarks/quality_peers.py [--data-root DIR] [--quick] [--only PART]

Parts: `peers ResNet-20`, `peers MobileNetV2` (each peer at the settings with which it did best)
and, only where asked for, `tried` (the other settings). Each peer runs in an environment of its own
under `build/peers`, which the first run makes; answers are kept there too, and a second run
computes nothing.

Bits are counted over all weights of convolutions and linear layers, each at its own width, without
scales and biases; a peer with its ends at 8 bits is a little over the case's budget, and says so.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import harness
import numpy as np
import torch
from peers import cases, child, compare
from torch import Tensor

from bitwright.curvature.divergence import per_sample

#: a peer may be this much over a case's budget and still be counted in it
SPARE = 1.02


@dataclass(frozen=True)
class Stage:
    """A network's rows, and the float answers on the judged ones."""

    rows: dict[str, np.ndarray]
    logits: Tensor


@functools.cache
def stage(network: str) -> Stage:
    """Of a network; read once."""
    rows = cases.rows(network)
    model = child.network(network)
    with torch.no_grad():
        judged = torch.from_numpy(rows["judged"]).split(child.BATCH)
        return Stage(rows, torch.cat([model(batch) for batch in judged]))


def add(rows: harness.Rows, contender: cases.Contender) -> float:
    """A row for what a contender reaches; its KL, infinite where it is over the case's budget."""
    network, case, setting = contender.network, contender.case, contender.setting
    work = stage(network)
    calibration, judged, labels = (work.rows[k] for k in ("calibration", "judged", "labels"))
    found = compare.run(contender.peer, network, case, setting, calibration, judged)
    logits = torch.from_numpy(found.logits)
    kl = per_sample(work.logits, logits, "kl")
    classes = logits.argmax(1)
    rows.add(
        f"KL, {cases.TITLES[network]}, {case.name}, {contender.peer}",
        float(kl.mean()),
        stderr=round(float(kl.std()) / math.sqrt(len(kl)), 5),
        agreement=round(float((classes == work.logits.argmax(1)).double().mean()), 4),
        top1=round(float((classes.numpy() == labels).mean()), 4),
        mean_bits=round(found.mean_bits, 4),
        bytes=round(found.size_bytes),
        seconds=round(found.seconds, 1),
        processor_seconds=round(found.processor_seconds, 1),
        version=found.version,
        setting=dict(setting),
    )
    within = found.mean_bits <= SPARE * case.weight_bits
    return float(kl.mean()) if within else math.inf


def report(rows: harness.Rows, contenders: Iterable[cases.Contender]) -> None:
    """A row for each contender, then the best of each case."""
    best: dict[tuple[str, compare.Case], tuple[float, str]] = {}
    for contender in contenders:
        place = contender.network, contender.case
        best[place] = min(best.get(place, (math.inf, "")), (add(rows, contender), contender.peer))
    for (network, case), (kl, peer) in best.items():
        rows.add(f"lowest KL of the peers, {cases.TITLES[network]}, {case.name}", kl, peer=peer)


def peers(network: str, rows: harness.Rows, quick: bool) -> None:
    """Each peer at its best settings; quick: 8 bits of ResNet-20 alone."""
    chosen = [c for c in cases.CONTENDERS if c.network == network]
    if quick:
        chosen = cases.of(cases.R20, cases.W8A8, chosen)
    report(rows, chosen)


def tried(rows: harness.Rows, quick: bool) -> None:
    """The settings that were tried and were not the best."""
    report(rows, cases.TRIED[: 1 if quick else None])


PARTS: dict[str, Callable[[harness.Rows, bool], None]] = {
    **{f"peers {title}": partial(peers, name) for name, title in cases.TITLES.items()},
    "tried": tried,
}


def main() -> None:
    """Run the parts asked for, all but `tried` if none is."""
    chosen = harness.options(__doc__ or "")
    rows = harness.Rows("quality", chosen.quick)
    for part in chosen.only.split(",") if chosen.only else [p for p in PARTS if p != "tried"]:
        PARTS[part](rows, chosen.quick)
        rows.save(part)


if __name__ == "__main__":
    main()
