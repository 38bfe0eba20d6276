"""`exact` and `cost` of `input_hessian.py`: is the norm right, and what does a step cost?"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
from harness import Rows
from input_hessian_nets import LOSS, SEEDS, held, network, penalized
from torch import Tensor, nn

import bitwright
from bitwright.train import Directions, loss_and_hessian_norm


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
                found = bitwright.hessian_norm(net, loss, x, y, iterations=3000, product=product)
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
        ("784-512-256-10, ReLU, gauss-newton", network(nn.ReLU, 4), piecewise, 3),
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
        loss, norms = loss_and_hessian_norm(
            net, LOSS, x, y, iterations=0, product=product, start=kept[index]
        )
        return loss + 0.1 * norms.mean()

    return act


def _times(
    net: nn.Module, steps: dict[str, Callable[[nn.Module], Tensor]], turns: int
) -> dict[str, float]:
    optimizer = torch.optim.Adam(net.parameters(), 1e-4, fused=True)
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
