"""A user's file: what README shows, with types; `test_typed.py` has mypy read it strictly."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import bitwright
from bitwright import IntegerNetwork, Plan, Problem, Result, Sensitivity, Settings, Task, multibit
from bitwright import graph as graphs
from bitwright.allocate import knapsack
from bitwright.quantize import SCORES, Given, Predicted, Score
from bitwright.train.saga import Penalty, Solution, importance
from bitwright.train.saga import Problem as Convex

#: what an allocator of one's own is
Allocator = Callable[[Problem], Plan]


def mine(problem: Problem) -> Plan:
    """An allocator: the knapsack's plan."""
    plan: Plan = knapsack(problem)
    return plan


def flat(given: Given) -> Predicted:
    """A score of one's own: squared errors, whatever the curvature."""
    each = {layer.name: given.tables[layer.name].error.numpy().T for layer in given.network.layers}
    seen: Tensor = given.rows.x
    return Predicted({name: error / len(seen) for name, error in each.items()})


SCORES["flat"] = Score("squared errors, whatever the curvature", flat)
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


def options(model: nn.Module, rows: Tensor, out: Path) -> float:
    """Options by name, as they are typed; and runs beside each other."""
    run = bitwright.compress(
        model, rows, max_kl=0.05, method="mine", activations="auto", max_bops="1.2G",
        rounding="feedback", skip=["stem"], overrides={"head": 8}, epochs=2, refit_head=True,
        accumulator=None, out=out,
    )  # fmt: skip
    beside = bitwright.compare(run.folder, out, out=out / "page.html")
    names: list[str] = [found.name for found in beside.runs]
    return float(len(names))


def smaller(model: nn.Module, rows: Tensor, out: Path) -> nn.Module:
    """Prune, and load what was pruned."""
    found = bitwright.prune(
        model, rows, keep="40%", of="macs", implant=0.1, rank=1, skip=("head",), out=out
    )
    left: float = found.after.macs / found.before.macs
    module: nn.Module = bitwright.load_pruned(model, found.folder)
    assert left < 1 and found.edit is not None
    return module


def robust(model: nn.Module, rows: Tensor, labels: Tensor) -> Tensor:
    """A penalty of one's own training."""
    norm: Tensor = bitwright.hessian_norm(
        model, nn.CrossEntropyLoss(), rows, labels, iterations=5, product="gauss-newton"
    )
    return norm.mean()


def convex(features: np.ndarray, targets: np.ndarray) -> float:
    """A head of one's own."""
    problem = Convex(features, targets, loss="logistic", penalty=Penalty(l2=1e-3), intercept=True)
    found: Solution = bitwright.saga(problem, importance(problem), tolerance=1e-6, seed=3)
    weights: np.ndarray = found.x
    return float(weights[-1])


def bases(model: nn.Module, rows: Tensor, labels: Tensor, out: Path) -> float:
    """Weights as few signed bases."""
    net: multibit.Multibit = multibit.prepare(model, rows[:8], size=32, skip=("head",))
    history = multibit.train(net, rows, labels, multibit.Recipe(bits=0.9, batch=32))
    stored: multibit.Stored = multibit.convert(net, out)
    bits: float = stored.average_bits
    assert len(history) and bits < 1
    return multibit.load(out / "model.safetensors").average_bits


def nodes(path: Path) -> list[float]:
    """A quantized graph network."""
    data = graphs.load_nodes(path)
    net: nn.Module = graphs.build(graphs.Form("gcn", inputs=16, hidden=8, outputs=3), seed=1)
    quantized = graphs.DegreeQuant(net, graphs.Scheme(bits=8), data.x, data.edge_index)
    losses: list[float] = graphs.train(quantized, data, graphs.Recipe(epochs=2))
    return losses


def guarded(path: Path) -> str:
    """An error of ours is one line."""
    try:
        bitwright.load(path)
    except bitwright.BitwrightError as error:
        return str(error)
    return bitwright.__version__


# these are wrong, and mypy must see it: an unused "ignore" is an error of its own
bitwright.load(3)  # type: ignore[arg-type]
rows, out = torch.zeros(8, 3), Path("out")
bitwright.compress(nn.Identity(), rows, out=out, methd="layers")  # type: ignore[call-arg]
bitwright.compress(nn.Identity(), rows, out=out, epochs="many")  # type: ignore[arg-type]
bitwright.compress(nn.Identity(), rows, out=out, budget=3)  # type: ignore[arg-type]
bitwright.compress(nn.Identity(), rows, out=out, skip="stem")  # type: ignore[arg-type]
bitwright.compress(nn.Identity(), rows)  # type: ignore[call-arg]
bitwright.prune(nn.Identity(), rows, out=out, off="macs")  # type: ignore[call-arg]
bitwright.prune(nn.Identity(), rows, out=out, floor="5%")  # type: ignore[arg-type]
bitwright.compare(3)  # type: ignore[arg-type]
bitwright.load_pruned(out, nn.Identity())  # type: ignore[arg-type]
bitwright.hessian_norm(nn.Identity(), 3, rows)  # type: ignore[arg-type]
bitwright.saga(rows, "uniform")  # type: ignore[arg-type]
multibit.train(nn.Identity(), rows, None, multibit.Recipe())  # type: ignore[arg-type]
graphs.Scheme(bits="8")  # type: ignore[arg-type]
Settings(budgt="3bit")  # type: ignore[call-arg]
kl: str = squeeze(nn.Identity(), torch.zeros(1), Path())  # type: ignore[assignment]
SCORES["worst"] = mine  # type: ignore[assignment]
ALLOCATORS["worst"] = lambda problem: 3  # type: ignore[assignment, return-value]
