"""The parts of `input_hessian.py` but the quantized one."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import input_hessian_attacks as attacks
import numpy as np
import torch
from harness import Rows
from input_hessian_nets import LOSS, Case, accuracy, held, network, penalized, trained
from scipy.stats import spearmanr
from torch import Tensor, nn

import bitwright
from bitwright.train import Directions, gradient_norm, input_hessian

HERE = Path(__file__).resolve().parent
METHODS = ("plain", "gradient", "hessian")
#: strengths tried, as many for each penalty; of the two forms of the gradient's the better one stays
STRENGTHS = {
    "mnist": {
        "gradient norm": (1, 2, 4),
        "gradient squared": (1, 2, 4),
        "hessian": (1, 2, 4),
    },
    "fashion": {
        "gradient norm": (0.0125, 0.025, 0.05),
        "gradient squared": (0.0125, 0.025, 0.05),
        "hessian": (0.0125, 0.025, 0.05),
    },
}
#: points of clean accuracy that count as equal
EQUAL = 0.3
SEEDS = (1, 2, 3)


def seeds(quick: bool) -> tuple[int, ...]:
    return SEEDS[:1] if quick else SEEDS


def case(data: str, method: str, strength: float, seed: int, quick: bool) -> Case:
    """Less of everything when quick."""
    return Case(data, method, strength, seed, **({"epochs": 1, "rows": 4096} if quick else {}))


# ------------------------------------------------------------------ right and affordable


def exact(out: Rows, quick: bool) -> None:
    """Largest relative error of the norm against dense eigenvalues, float64, by product."""
    loss = nn.CrossEntropyLoss()
    for name, product, activation in (
        ("gauss-newton, ReLU", "gauss-newton", nn.ReLU),
        ("hessian, ReLU", "hessian", nn.ReLU),
        ("hessian, tanh", "hessian", nn.Tanh),
    ):
        errors = []
        for seed in SEEDS:
            torch.manual_seed(seed)
            net = nn.Sequential(nn.Linear(20, 16), activation(), nn.Linear(16, 5)).double()
            x, y = torch.randn(8, 20, dtype=torch.double), torch.randint(5, (8,))
            wanted = torch.stack([_top(net, loss, x[i], y[i]) for i in range(len(x))])
            with torch.no_grad():
                found = bitwright.hessian_norm(net, loss, x, y, iterations=200, product=product)
            errors.append(float(((found - wanted) / wanted).abs().max()))
        worst = max(errors)
        out.add(f"relative error of the norm, {name}", worst, "<= 1e-4", worst <= 1e-4,
                "dense eigenvalues", rows=8 * len(SEEDS))  # fmt: skip


def _top(net: nn.Module, loss: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    def f(row: Tensor) -> Tensor:
        found: Tensor = loss(net(row[None]), y[None])
        return found

    dense = torch.autograd.functional.hessian(f, x)
    assert isinstance(dense, Tensor)
    return torch.linalg.eigvalsh(dense).abs().max()


def cost(out: Rows, quick: bool) -> None:
    """Processor time of a training step by a plain one's: medians of steps that take turns."""
    x, y = held("mnist", "validation", 256)
    piecewise: dict[str, Callable[[nn.Module], Tensor]] = {
        "plain": lambda net: LOSS(net(x), y),
        "hessian": _step("hessian", x, y),
        "gradient squared": _step("gradient squared", x, y),
    }
    smooth = {"plain": piecewise["plain"]} | {
        product: _product_step(product, x, y) for product in ("hessian", "difference")
    }
    for name, net, steps, bar in (
        ("784-128-64-10, ReLU, gauss-newton", network(), piecewise, 3),
        ("convolutions, ReLU, gauss-newton", _convolutions(), piecewise, 3),
        ("784-128-64-10, softplus, all", network(nn.Softplus), smooth, 6),
    ):
        times = _times(net, steps, 6 if quick else 20)
        for step, value in times.items():
            if step == "plain":
                continue
            ours = step != "gradient squared"
            ratio = value / times["plain"]
            out.add(f"step with {step} by a plain one: {name}", ratio, f"<= {bar}" if ours else "",
                    ratio <= bar if ours else None, plain_ms=1e3 * times["plain"])  # fmt: skip


def _convolutions() -> nn.Module:
    return nn.Sequential(
        nn.AvgPool2d(2), nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(),
        nn.Conv2d(8, 16, 3, 2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(784, 64), nn.ReLU(),
        nn.Linear(64, 10),
    )  # fmt: skip


def _step(method: str, x: Tensor, y: Tensor) -> Callable[[nn.Module], Tensor]:
    kept, index = Directions(len(x)), torch.arange(len(x))
    return lambda net: penalized(net, method, 0.1, x, y, kept, index)


def _product_step(product: str, x: Tensor, y: Tensor) -> Callable[[nn.Module], Tensor]:
    kept, index = Directions(len(x)), torch.arange(len(x))

    def act(net: nn.Module) -> Tensor:
        loss, norms = input_hessian.loss_and_hessian_norm(
            net, LOSS, x, y, iterations=0, product=product, start=kept[index]
        )
        return loss + 0.1 * norms.mean()

    return act


def _times(
    net: nn.Module, steps: dict[str, Callable[[nn.Module], Tensor]], turns: int
) -> dict[str, float]:
    optimizer = torch.optim.Adam(net.parameters(), 1e-4)
    seen: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(turns):
        for name, step in steps.items():
            begun = time.process_time()
            for _ in range(2):
                optimizer.zero_grad()
                step(net).backward()
                optimizer.step()
            seen[name].append((time.process_time() - begun) / 2)
    return {name: float(np.median(values[2:])) for name, values in seen.items()}


# ------------------------------------------------------------------ robustness


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
                    robust=found[best][1], at_equal_accuracy=bool(level), method=method)  # fmt: skip

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


def chosen(data: str, quick: bool) -> dict[str, tuple[str, float]]:
    """Form and strength by method, from the results of `tune`."""
    forms = {m: (s[1], 0.0) for m, s in STRENGTHS[data].items()}
    if not quick:
        content = json.loads((HERE / "results" / "input_hessian.json").read_text())
        rows = [r for r in content[f"tune-{data}"]["rows"] if r["name"].endswith("chosen")]
        forms = {r["method"]: (r["value"], r["robust"]) for r in rows}
    best = max(("gradient norm", "gradient squared"), key=lambda m: forms[m][1])
    return {
        "plain": ("plain", 0.0),
        "gradient": (best, forms[best][0]),
        "hessian": ("hessian", forms["hessian"][0]),
    }


def nets(data: str, seed: int, quick: bool) -> dict[str, nn.Sequential]:
    """By method, at the chosen strengths."""
    return {
        name: trained(case(data, form, strength, seed, quick))
        for name, (form, strength) in chosen(data, quick).items()
    }


def robust(data: str) -> Callable[[Rows, bool], None]:
    """Test images, three seeds: accuracy that both AutoPGD attacks leave."""

    def part(out: Rows, quick: bool) -> None:
        x, y = held(data, "test", 40 if quick else 250)
        clean: dict[str, list[float]] = {m: [] for m in METHODS}
        left: dict[tuple[str, float], dict[str, list[float]]] = {}
        for seed in seeds(quick):
            for method, net in nets(data, seed, quick).items():
                clean[method].append(accuracy(net, *held(data, "test", 10_000)))
                for norm, radii in attacks.RADII.items():
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


# ------------------------------------------------------------------ prediction


def radius(out: Rows, quick: bool) -> None:
    """Predicted radii against the smallest L2 attack found, rows that are right."""
    rows, steps = (20, 5) if quick else (150, 20)
    drawn = []
    grid = {"mnist": np.geomspace(0.2, 4, 8), "fashion": np.geomspace(0.05, 3, 8)}
    for data in ("mnist",) if quick else ("mnist", "fashion"):
        for method in ("plain", "hessian"):
            found = []
            for seed in seeds(quick):
                net = nets(data, seed, quick)[method]
                x, y = held(data, "test", rows)
                x, y = x[attacks.right(net, x, y)], y[attacks.right(net, x, y)]
                length = attacks.smallest(net, x, y, tuple(grid[data].tolist()), steps)
                found.append((length, predictions(net, x, y)))
            for name in found[0][1]:
                _judge(out, f"{data}, {method}, {name}", [(a, p[name]) for a, p in found])
            if data == "mnist":
                drawn.append((method, found[0][0], found[0][1]["logistic"]))
    if not quick:
        plot(drawn)


def predictions(net: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """Radii by the quadratic and by the logistic model, float64."""
    wide = network().double()
    wide.load_state_dict(net.state_dict())
    a = x.double()
    with torch.no_grad():
        curvature = bitwright.hessian_norm(wide, LOSS, a, y, iterations=40, product="gauss-newton")
        z = wide(a)
        loss = nn.functional.cross_entropy(z, y, reduction="none")
        slope = gradient_norm(wide, LOSS, a, y)
    return {
        "quadratic": input_hessian.quadratic_radius(loss, slope, curvature),
        "logistic": input_hessian.logistic_radius(z, y, curvature),
    }


def _judge(out: Rows, name: str, found: list[tuple[Tensor, Tensor]]) -> None:
    ranks, violated, ratios = [], [], []
    for length, predicted in found:
        ok = length.isfinite() & predicted.isfinite()
        ranks.append(float(spearmanr(length[ok], predicted[ok]).statistic))
        violated.append(100 * float((length[ok] < predicted[ok]).double().mean()))
        ratios.append(float((length[ok] / predicted[ok]).median()))
    rank = float(np.mean(ranks))
    out.add(f"{name}: rank correlation with the smallest attack", rank, ">= 0.6", rank >= 0.6,
            by_seed=[round(r, 3) for r in ranks], violations_percent=float(np.mean(violated)),
            attack_by_predicted=float(np.mean(ratios)), rows=sum(len(a) for a, _ in found))  # fmt: skip


def plot(drawn: list[tuple[str, Tensor, Tensor]]) -> None:
    """`results/input_hessian_radius.svg`: attack found over predicted radius, first seed."""
    top, side = 4.0, 340
    parts = []
    for k, (method, length, predicted) in enumerate(drawn):
        left = 50 + k * (side + 60)

        def at(value: float, far: float = side) -> float:
            return far * min(value, top) / top

        parts += [
            f'<rect x="{left}" y="20" width="{side}" height="{side}" fill="none" stroke="#888"/>',
            f'<path d="M{left} {20 + side}L{left + side} 20" stroke="#888"/>',
            f'<text x="{left}" y="14">MNIST, {method}: smallest L2 attack over predicted radius '
            "(0 to 4)</text>",
        ]
        for a, p in zip(length.tolist(), predicted.tolist(), strict=True):
            parts.append(
                f'<circle cx="{left + at(p):.1f}" cy="{20 + side - at(a):.1f}" r="2.2" '
                'fill="#1668c1" fill-opacity="0.5"/>'
            )
    head = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 840 375" font-family="sans-serif"'
    text = f'{head} font-size="12">\n' + "\n".join(parts) + "\n</svg>\n"
    (HERE / "results" / "input_hessian_radius.svg").write_text(text, encoding="utf-8")


PARTS: dict[str, Callable[[Rows, bool], None]] = {
    "exact": exact,
    "cost": cost,
    "tune-mnist": tune("mnist"),
    "tune-fashion": tune("fashion"),
    "mnist": robust("mnist"),
    "fashion": robust("fashion"),
    "masking": masking,
    "radius": radius,
}
