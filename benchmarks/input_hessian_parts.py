"""Robust accuracy: `tune-…`, `mnist`, `fashion` and `masking` of `input_hessian.py`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import input_hessian_attacks as attacks
import numpy as np
import torch
from harness import Rows
from input_hessian_nets import Case, accuracy, held, seeds, trained
from torch import nn

HERE = Path(__file__).resolve().parent
METHODS = ("plain", "gradient", "hessian")
#: strengths tried, as many for each penalty
STRENGTHS = {
    "mnist": {"gradient": (0.5, 1, 2), "hessian": (0.5, 1, 2)},
    "fashion": {"gradient": (0.0125, 0.025, 0.05), "hessian": (0.0125, 0.025, 0.05)},
}
#: points of clean accuracy that count as equal
EQUAL = 0.3


def case(data: str, method: str, strength: float, seed: int, quick: bool) -> Case:
    """Less of everything when quick."""
    return Case(data, method, strength, seed, **({"epochs": 1, "rows": 4096} if quick else {}))


def tune(data: str) -> Callable[[Rows, bool], None]:
    """Every strength, one seed: clean and robust accuracy on validation images."""

    def part(out: Rows, quick: bool) -> None:
        net = trained(case(data, "plain", 0, 0, quick))
        plain = _validated(out, data, "plain", 0, net, quick)[0]
        for method, strengths in STRENGTHS[data].items():
            found = {}
            for strength in strengths[1:2] if quick else strengths:
                net = trained(case(data, method, strength, 0, quick))
                found[strength] = _validated(out, data, method, strength, net, quick)
            level = {s: robust for s, (clean, robust) in found.items() if clean >= plain - EQUAL}
            # no strength keeps the accuracy: the weakest comes closest
            best = max(level, key=lambda s: level[s]) if level else min(found)
            out.add(f"{data}, {method}: strength chosen", best, clean=found[best][0],
                    equally_accurate=bool(level), method=method)  # fmt: skip

    return part


def _validated(
    out: Rows, data: str, method: str, strength: float, net: nn.Module, quick: bool
) -> tuple[float, float]:
    """Clean accuracy on all validation images, robust accuracy over three attacks on some."""
    clean = accuracy(net, *held(data, "validation", 5000))
    x, y = held(data, "validation", 50 if quick else 200)
    each = {}
    for norm, radius in (("L2", 1.0), ("L2", 2.0), ("Linf", 0.1)):
        alive, _ = attacks.survivors(
            net, x, y, norm, radius, 5 if quick else 15, attacks.LOSSES[:1]
        )
        each[f"{norm} {radius}"] = 100 * float(alive.double().mean())
    robust = float(np.mean(list(each.values())))
    out.add(f"{data}, {method} {strength}: robust accuracy on validation images", robust,
            clean=clean, **each)  # fmt: skip
    return clean, robust


def chosen(data: str, quick: bool) -> dict[str, float]:
    """Strengths by method, from the results of `tune`."""
    if quick:
        return {"plain": 0.0, **{m: s[1] for m, s in STRENGTHS[data].items()}}
    content = json.loads((HERE / "results" / "input_hessian.json").read_text())
    rows = [r for r in content[f"tune-{data}"]["rows"] if r["name"].endswith("chosen")]
    return {"plain": 0.0, **{r["method"]: r["value"] for r in rows}}


def nets(data: str, seed: int, quick: bool) -> dict[str, nn.Sequential]:
    """By method, at the chosen strengths."""
    return {m: trained(case(data, m, s, seed, quick)) for m, s in chosen(data, quick).items()}


def robust(data: str) -> Callable[[Rows, bool], None]:
    """Test images, three seeds: accuracy that both AutoPGD attacks leave."""

    def part(out: Rows, quick: bool) -> None:
        x, y = held(data, "test", 40 if quick else 200)
        clean: dict[str, list[float]] = {m: [] for m in METHODS}
        left: dict[tuple[str, float], dict[str, list[float]]] = {}
        for seed in seeds(quick):
            for method, net in nets(data, seed, quick).items():
                clean[method].append(accuracy(net, *held(data, "test", 10_000)))
                for norm, radii in attacks.RADII[data].items():
                    for radius in radii[1:3] if quick else radii:
                        alive, _ = attacks.survivors(net, x, y, norm, radius, 5 if quick else 20)
                        each = left.setdefault((norm, radius), {m: [] for m in METHODS})
                        each[method].append(100 * float(alive.double().mean()))
        ours = np.mean(clean["hessian"])
        away = max(abs(np.mean(clean[m]) - ours) for m in METHODS)
        out.add(f"{data}: clean accuracy, furthest from hessian's", float(away), f"<= {EQUAL}",
                bool(away <= EQUAL), **{m: [round(v, 2) for v in clean[m]] for m in METHODS},
                strengths=chosen(data, quick))  # fmt: skip
        for (norm, radius), each in left.items():
            _compare(out, f"{data}, {norm} {radius}", each)

    return part


def _compare(out: Rows, name: str, each: dict[str, list[float]]) -> None:
    """Robust accuracy of hessian against the best other; with the mean difference by seed."""
    mean = {m: float(np.mean(v)) for m, v in each.items()}
    other = max((m for m in METHODS if m != "hessian"), key=lambda m: mean[m])
    gain = np.subtract(each["hessian"], each[other])
    counts = max(mean.values()) >= 10
    out.add(f"{name}: robust accuracy", mean["hessian"], "above all others" if counts else "",
            bool(mean["hessian"] > mean[other]) if counts else None, other, mean[other],
            gain=float(gain.mean()), gain_by_seed=[round(float(g), 1) for g in gain],
            means={m: round(v, 1) for m, v in mean.items()})  # fmt: skip


def masking(out: Rows, quick: bool) -> None:
    """No attack that sees no gradients, or another network's, may do better than AutoPGD."""
    rows, steps = (20, 20) if quick else (100, 300)
    for data, radii in (
        ("mnist", {"L2": 1.5, "Linf": 0.1}),
        ("fashion", {"L2": 0.5, "Linf": 0.03}),
    ):
        x, y = held(data, "test", rows)
        for norm, radius in radii.items():
            ours = nets(data, 1, quick)
            net = ours["hessian"]
            white, _ = attacks.survivors(net, x, y, norm, radius, 5 if quick else 20)
            torch.manual_seed(0)
            np.random.seed(0)
            found = attacks.run(attacks.square(net, norm, radius, steps), x, y)
            black = attacks.right(net, x, y) & attacks.right(net, found, y)
            left = {"Square": black}
            for method in ("plain", "gradient"):
                _, moved = attacks.survivors(ours[method], x, y, norm, radius, 5 if quick else 20)
                left[f"transferred from {method}"] = attacks.right(net, moved, y)
            value = 100 * float(white.double().mean())
            weakest = min(100 * float(v.double().mean()) for v in left.values())
            only = torch.stack([white & ~v for v in left.values()]).any(0)
            out.add(f"{data}, hessian, {norm} {radius}: white-box accuracy", value,
                    "<= every other attack's", value <= weakest, "weakest other", weakest,
                    **{k: 100 * float(v.double().mean()) for k, v in left.items()},
                    broken_only_otherwise=100 * float(only.double().mean()))  # fmt: skip
