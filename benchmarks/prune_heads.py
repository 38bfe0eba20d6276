"""Heads of MiniLM on SST-2: removal score against gradients (Michel et al., arXiv 1905.10650)."""

from __future__ import annotations

import language
import numpy as np
import torch
import torch.nn.functional as F
from harness import Rows
from torch import Tensor, nn

from bitwright.curvature.divergence import per_sample
from bitwright.prune import Coupling, Sizes, compensated, coupled, pruned, scores, select
from bitwright.prune.gates import gated

#: share of the attention's parameters that go, calibration draws, sentences in each
GONE, DRAWS, ROWS = 0.6, 5, 256


def heads(rows: Rows, quick: bool) -> None:
    """KL to float at 60 % of attention parameters removed, each draw its own sentences."""
    if missing := language.lacking():
        name = "KL of MiniLM without 60 % of its heads"
        rows.add(name, None, "below gradients'", None, missing)
        return
    model = language.minilm()
    train, train_labels = language.sentences("train")
    test, labels = language.sentences("dev")
    test, labels = (test[:256], labels[:256]) if quick else (test, labels)
    coupling = coupled(model, train[:2])
    attention = Coupling(tuple(g for g in coupling.groups if g.kind == "heads"), {})
    before = _outputs(model, test)
    right = float((before.argmax(1) == labels).double().mean())
    rows.add("dev accuracy of MiniLM, SST-2", right, ">= 0.9", right >= 0.9)
    sizes = Sizes(model, attention.groups, train[:1])
    whole = (
        sizes.whole["parameters"]
        - sizes.of({g.name: g.units for g in attention.groups})["parameters"]
    )
    bound = sizes.whole["parameters"] - GONE * whole
    found: dict[str, list[float]] = {}
    accuracy: dict[str, list[float]] = {}
    for draw in range(2 if quick else DRAWS):
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(draw))
        x = train[order[: 64 if quick else ROWS]]
        y = train_labels[order[: len(x)]]
        removal = scores(model, attention.groups, x)
        for name, score in (
            ("removal, refitted", removal),
            ("removal", removal),
            ("gradient", _gradients(model, attention, x, y)),
        ):
            chosen = select(sizes, score, bound)
            edit = attention.edit(chosen.removed)
            small = pruned(model, edit)
            if "refitted" in name:
                compensated(model, small, edit, x)
            after = _outputs(small, test)
            found.setdefault(name, []).append(float(per_sample(before, after, "kl").mean()))
            hits = (after.argmax(1) == labels).double().mean()
            accuracy.setdefault(name, []).append(float(hits))
    for name, values in found.items():
        bar = name == "removal, refitted"
        rows.add(
            f"KL of MiniLM without 60 % of its heads, {name}", float(np.mean(values)),
            "below gradients'" if bar else "",
            bool(np.mean(values) < np.mean(found["gradient"])) if bar else None,
            "gradient", float(np.mean(found["gradient"])),
            stderr=round(float(np.std(values, ddof=1) / np.sqrt(len(values))), 4),
            accuracy=round(float(np.mean(accuracy[name])), 4),
            accuracy_stderr=round(float(np.std(accuracy[name], ddof=1) / np.sqrt(len(values))), 4),
        )  # fmt: skip


def _gradients(model: nn.Module, coupling: Coupling, x: Tensor, y: Tensor) -> dict[str, np.ndarray]:
    """`E|∂L/∂gate|` of every head, each layer's to unit length."""
    total = {g.name: torch.zeros(g.units) for g in coupling.groups}
    for rows, labels in zip(x.split(32), y.split(32), strict=True):
        gates = {g.name: torch.ones(len(rows), g.units, requires_grad=True)
                 for g in coupling.groups}  # fmt: skip
        with torch.enable_grad(), gated(model, coupling.groups, gates):
            F.cross_entropy(model(rows), labels, reduction="sum").backward()
        for name, gate in gates.items():
            total[name] += gate.grad.abs().sum(0)
    return {name: (v / v.norm().clamp(min=1e-12)).double().numpy() for name, v in total.items()}


def _outputs(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([model(rows) for rows in x.split(128)])
