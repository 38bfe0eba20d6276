"""A user's file: what README shows, with types; `test_typed.py` has mypy read it strictly."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

import bitwright
from bitwright import IntegerNetwork, Plan, Problem, Result, Sensitivity, Settings, Task
from bitwright.allocate import knapsack

#: what an allocator of one's own is
Allocator = Callable[[Problem], Plan]


def mine(problem: Problem) -> Plan:
    """An allocator: the knapsack's plan."""
    plan: Plan = knapsack(problem)
    return plan


ALLOCATORS: dict[str, Allocator] = {"mine": mine, "knapsack": knapsack}


def squeeze(model: nn.Module, rows: Tensor, out: Path) -> float:
    """Compress, load what was written, say the divergence."""
    settings = Settings(budget=None, max_kl=0.05, method="channels", activations=8)
    task = Task(model, rows, divergence="kl", metric_name="top-1")
    result: Result = bitwright.compress(task.model, task.calibration, budget="3bit", out=out)
    size: int = result.sizes["model.onnx"]
    widths: Plan = result.plan
    answers: Tensor = bitwright.load(out)(rows)
    kl: float = result.judgement.kl
    assert result.verification.ok and size and widths.cost and settings.seed == 0
    return kl + float(answers.sum())


def curvature(model: nn.Module, rows: Tensor) -> dict[str, float]:
    """The trace of every layer."""
    found: Sensitivity = bitwright.traces(model, rows, tolerance=0.05)
    return {name: float(estimate.value.sum()) for name, estimate in found.layers.items()}


def training(out: Path, model: nn.Module, rows: Tensor) -> IntegerNetwork:
    """A loop of one's own."""
    net = bitwright.prepare(out, model)
    optimizer = torch.optim.Adam(net.groups(1e-4))
    loss = nn.functional.mse_loss(net(rows), model(rows).detach())
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return bitwright.convert(net, out)


def guarded(path: Path) -> str:
    """An error of ours is one line."""
    try:
        bitwright.load(path)
    except bitwright.BitwrightError as error:
        return str(error)
    return bitwright.__version__


# these are wrong, and mypy must see it: an unused "ignore" is an error of its own
bitwright.load(3)  # type: ignore[arg-type]
Settings(budgt="3bit")  # type: ignore[call-arg]
kl: str = squeeze(nn.Identity(), torch.zeros(1), Path())  # type: ignore[assignment]
ALLOCATORS["worst"] = lambda problem: 3  # type: ignore[assignment, return-value]
