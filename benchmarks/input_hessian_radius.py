"""`radius` of `input_hessian.py`: what gradient and curvature say of the smallest attack."""

from __future__ import annotations

from pathlib import Path

import input_hessian_attacks as attacks
import numpy as np
import torch
from harness import Rows
from input_hessian_nets import LOSS, held, network, seeds
from input_hessian_parts import nets
from scipy.stats import spearmanr
from torch import Tensor, nn

import bitwright
from bitwright.train import gradient_norm, input_hessian

HERE = Path(__file__).resolve().parent


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
            attack_by_predicted=float(np.mean(ratios)),
            rows=sum(len(a) for a, _ in found))  # fmt: skip


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
