"""Robust accuracy: `tune-…`, `mnist`, `fashion` and `masking` of `input_hessian.py`."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import input_hessian_attacks as attacks
import numpy as np
import torch
from harness import Rows
from input_hessian_nets import Case, accuracy, held, seeds, trained
from torch import nn

HERE = Path(__file__).resolve().parent
METHODS = ("plain", "gradient", "hessian")
FORMS = {
    "gradient": ("gradient norm", "gradient squared"),
    "hessian": ("hessian root", "hessian"),
}
#: strengths tried for both methods, by form: as many for each
DEGREE_1 = {"mnist": (0.3, 0.6, 1.2), "fashion": (0.025, 0.05, 0.1)}
DEGREE_2 = {"mnist": (0.25, 0.5, 1.0), "fashion": (0.0125, 0.025, 0.05)}
#: points of clean accuracy that count as equal
EQUAL = 0.3
#: attacks that strengths are chosen by
VALIDATED = (("L2", 1.0), ("L2", 2.0), ("Linf", 0.1))


def case(data: str, method: str, strength: float, seed: int, quick: bool) -> Case:
    """Less of everything when quick."""
    return Case(data, method, strength, seed, **({"epochs": 2, "rows": 8192} if quick else {}))


def tune(data: str) -> Callable[[Rows, bool], None]:
    """Form and strength of each penalty, on validation images.

    The form by one seed; its strength by the means over the seeds that are judged on test images:
    the most robust that is as accurate as the plain networks, within `EQUAL`.
    """

    def part(out: Rows, quick: bool) -> None:
        plain = _validated(out, data, "plain", 0, (0,), quick)[0]
        level = _validated(out, data, "plain", 0, seeds(quick), quick)[0]
        for method, forms in FORMS.items():
            found = {
                (form, strength): _validated(out, data, form, strength, (0,), quick)
                for form in forms
                for strength in _strengths(data, form, quick)
            }
            (form, _), _ = _best(found, plain)
            found = {
                (form, strength): _validated(out, data, form, strength, seeds(quick), quick)
                for strength in _strengths(data, form, quick)
            }
            best, equal = _best(found, level)
            out.add(f"{data}, {method}: strength chosen", best[1], form=best[0], method=method,
                    clean=found[best][0], equally_accurate=equal)  # fmt: skip

    return part


def _strengths(data: str, form: str, quick: bool = False) -> tuple[float, ...]:
    found = (DEGREE_1 if form in ("gradient norm", "hessian root") else DEGREE_2)[data]
    return found[1:2] if quick else found


def _best(
    found: dict[tuple[str, float], tuple[float, float]], plain: float
) -> tuple[tuple[str, float], bool]:
    """Of (clean, robust) accuracies; and whether anything is as accurate as plain training."""
    level = {k: robust for k, (clean, robust) in found.items() if clean >= plain - EQUAL}
    # nothing keeps the accuracy: what keeps most of it comes closest
    best = max(level, key=lambda k: level[k]) if level else max(found, key=found.__getitem__)
    return best, bool(level)


def _validated(
    out: Rows, data: str, method: str, strength: float, among: Sequence[int], quick: bool
) -> tuple[float, float]:
    """Clean accuracy on all validation images, robust accuracy over three attacks on some.

    Means over the seeds `among`.
    """
    x, y = held(data, "validation", 50 if quick else 200)
    clean, each = [], []
    for seed in among:
        net = trained(case(data, method, strength, seed, quick))
        clean.append(accuracy(net, *held(data, "validation", 5000)))
        each.append([
            100 * float(attacks.survivors(net, x, y, norm, radius, 5 if quick else 15,
                                          attacks.LOSSES[:1])[0].double().mean())
            for norm, radius in VALIDATED
        ])  # fmt: skip
    mean = [round(float(v), 3) for v in np.mean(each, 0)]
    robust = float(np.mean(mean))
    out.add(f"{data}, {method} {strength}, seeds {', '.join(map(str, among))}: robust accuracy on "
            "validation images", robust, clean=float(np.mean(clean)),
            **{f"{n} {r}": v for (n, r), v in zip(VALIDATED, mean, strict=True)})  # fmt: skip
    return float(np.mean(clean)), robust


def chosen(data: str, quick: bool) -> dict[str, tuple[str, float]]:
    """Form and strength by method, from the results of `tune`."""
    if quick:
        found = {m: (forms[1], DEGREE_2[data][1]) for m, forms in FORMS.items()}
    else:
        content = json.loads((HERE / "results" / "input_hessian.json").read_text())
        rows = [r for r in content[f"tune-{data}"]["rows"] if r["name"].endswith("chosen")]
        found = {r["method"]: (r["form"], r["value"]) for r in rows}
    return {"plain": ("plain", 0.0), **found}


def nets(data: str, seed: int, quick: bool) -> dict[str, nn.Sequential]:
    """By method, at the chosen strengths."""
    return {
        name: trained(case(data, form, strength, seed, quick))
        for name, (form, strength) in chosen(data, quick).items()
    }


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
                penalties=chosen(data, quick))  # fmt: skip
        for (norm, radius), each in left.items():
            _compare(out, f"{data}, {norm} {radius}", each)

    return part


def _compare(out: Rows, name: str, each: dict[str, list[float]]) -> None:
    """Robust accuracy of hessian against the best other; with the mean difference by seed."""
    mean = {m: float(np.mean(v)) for m, v in each.items()}
    other = max((m for m in METHODS if m != "hessian"), key=lambda m: mean[m])
    gain = np.subtract(each["hessian"], each[other])
    counts = max(mean.values()) >= 10 and not out.quick
    out.add(f"{name}: robust accuracy", mean["hessian"], "above all others" if counts else "",
            bool(mean["hessian"] > mean[other]) if counts else None, other, mean[other],
            gain=float(gain.mean()), gain_by_seed=[round(float(g), 1) for g in gain],
            means={m: round(v, 1) for m, v in mean.items()})  # fmt: skip


def frontier(data: str) -> Callable[[Rows, bool], None]:
    """Does the comparison hang on the strengths chosen? All strengths of the chosen forms."""

    def part(out: Rows, quick: bool) -> None:
        x, y = held(data, "test", 40 if quick else 200)
        places = [(norm, r) for norm, radii in attacks.RADII[data].items()
                  for r in (radii[1:2] if quick else radii)]  # fmt: skip
        curves: dict[str, list[tuple[float, ...]]] = {}
        for method, (form, _) in chosen(data, quick).items():
            strengths = (0.0,) if method == "plain" else _strengths(data, form, quick)
            for strength in strengths:
                points = []
                for seed in seeds(quick):
                    net = trained(case(data, form, strength, seed, quick))
                    left = [
                        attacks.survivors(net, x, y, norm, radius, 5 if quick else 20)[0]
                        for norm, radius in places
                    ]
                    points.append([
                        accuracy(net, *held(data, "test", 10_000)),
                        *(100 * float(alive.double().mean()) for alive in left),
                    ])  # fmt: skip
                clean, *robust = np.mean(points, 0).tolist()
                curves.setdefault(method, []).append((clean, *robust))
                named = {f"{n} {r}": v for (n, r), v in zip(places, robust, strict=True)}
                out.add(f"{data}, {form} {strength}: clean accuracy", clean, **named)
        for k, place in enumerate(places, 1):
            _above(out, f"{data}, {place[0]} {place[1]}", curves, k)

    return part


def _above(out: Rows, name: str, curves: dict[str, list[tuple[float, ...]]], k: int) -> None:
    """Mean gain of hessian over gradient at the same clean accuracy, by interpolation."""
    other = sorted((p[0], p[k]) for m in ("plain", "gradient") for p in curves[m])
    clean, left = zip(*other, strict=True)
    gains = [p[k] - np.interp(p[0], clean, left) for p in curves["hessian"]]
    counts = max(left) >= 10 and not out.quick
    out.add(f"{name}: robust accuracy above gradient's at the same clean accuracy",
            float(np.mean(gains)), "> 0" if counts else "",
            bool(np.mean(gains) > 0) if counts else None,
            by_strength=[round(float(g), 1) for g in gains])  # fmt: skip


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
