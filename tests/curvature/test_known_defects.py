"""Defects read or measured in peers' Hessian code: each is put into ours, and a check rejects it.

Every check has an oracle (a dense float64 Hessian, a closed form, a loss that is really measured, a
count) and returns what is wrong. It finds nothing in the package as it is, and something in every
mutant of it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

import bitwright
from bitwright import Settings, Task, allocate, curvature, quantize
from bitwright.allocate import Problem
from bitwright.curvature import hessian as products
from bitwright.curvature import spectrum, whole_trace
from bitwright.network import build
from bitwright.pipeline import measured as stages
from bitwright.pipeline import search as goals
from mutants import mutated
from small import Fn

Mutation = tuple[str, str, str]
Loss = Callable[[Tensor, Tensor], Tensor]
CE = nn.CrossEntropyLoss()


def sees(check: Callable[[], list[str]], *mutations: Mutation) -> None:
    """Nothing is wrong with ours, and something with every mutant."""
    assert check() == []
    for mutation in mutations:
        with mutated(*mutation):
            assert check(), mutation


# ---------------------------------------------------------------------------- networks and oracles


def made() -> tuple[nn.Module, Tensor, Tensor]:
    """A small convolutional network that curves, nine rows and their labels."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(12, 3)).double()
    return model.eval(), torch.randn(9, 1, 3, 3).double(), torch.arange(9) % 3


def dense(model: nn.Module, x: Tensor, y: Tensor, loss: Loss) -> dict[str, Tensor]:
    """The exact Hessian in each weight."""
    state = {n: p.detach() for n, p in model.named_parameters()}
    found = {}
    for name, weight in state.items():
        if weight.ndim > 1:

            def f(w: Tensor, name: str = name) -> Tensor:
                return loss(functional_call(model, {**state, name: w}, (x,)), y)

            found[name] = torch.func.hessian(f)(weight).reshape(weight.numel(), -1).detach()
    return found


def by_channel(matrices: dict[str, Tensor], model: nn.Module) -> dict[str, np.ndarray]:
    """Traces of the channels' blocks, by layer."""
    rows = {n: len(p) for n, p in model.named_parameters()}
    return {
        n.removesuffix(".weight"): h.diagonal().reshape(rows[n], -1).sum(1).numpy()
        for n, h in matrices.items()
    }


def kl(outputs: Tensor, reference: Tensor) -> Tensor:
    p = reference.log_softmax(1)
    return (p.exp() * (p - outputs.log_softmax(1))).sum(1).mean()


def differ(what: str, found: Any, wanted: Any, rtol: float = 1e-9) -> list[str]:
    """The complaint that two arrays are not the same, or none."""
    found, wanted = np.asarray(found, dtype=float), np.asarray(wanted, dtype=float)
    if found.shape == wanted.shape and np.abs(found - wanted).max() <= rtol * np.abs(wanted).max():
        return []
    return [f"{what}: {found}, not {wanted}"]


def far(what: str, found: bitwright.Sensitivity, wanted: dict[str, np.ndarray]) -> list[str]:
    """Channels more than four standard errors from the truth."""
    off = {k: np.abs(found.layers[k].value - v) for k, v in wanted.items()}
    return [
        f"{what}, {k}: {v} with errors {found.layers[k].stderr_probe}"
        for k, v in off.items()
        if not (v <= 4 * found.layers[k].stderr_probe + 1e-9 * np.abs(wanted[k]).max()).all()
    ]


@contextmanager
def counted(owner: Any, name: str) -> Iterator[list[int]]:
    """Calls of `owner.name`, as the length of the list."""
    calls: list[int] = []
    real = getattr(owner, name)

    def counting(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return real(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, counting)
        yield calls


# ----------------------------------------------------------------------------------- accumulation


def sums() -> list[str]:
    """Everything that is added up over passes, against dense Hessians of all rows together.

    Random signs have no variance where the Hessian is diagonal: each probe is the trace itself.
    """
    model, x, y = made()
    true = dense(model, x, y, CE)
    wrong = []
    hessian = products.Hessian(model, (x, y), CE, chunk=2)
    for name, matrix in true.items():
        shape = hessian.weights[name].shape
        unit = [{name: e.reshape(shape)} for e in torch.eye(len(matrix)).double()]
        columns = [p[name].flatten() for p in hessian.products(unit, [name])]
        wrong += differ(f"products, {name}", torch.stack(columns), matrix)

    torch.manual_seed(1)
    line, points = nn.Linear(1, 4).double(), torch.randn(7, 1).double()
    for chunk in (7, 2):
        found = curvature.hutchinson(line, points, "squared", probes=5, chunk=chunk)
        estimate = found.layers["weight"]
        wrong += differ("signs", estimate.value, [float(points.square().mean())] * 4)
        wrong += differ("signs' error", 1 + estimate.stderr_probe, np.ones(4))
        wrong += differ("samples", estimate.samples, 7)

    reference = model(x).detach()
    wanted = by_channel(dense(model, x, reference, kl), model)
    for chunk in (100, 2):
        for name, estimate in bitwright.traces(model, x, tolerance=0, chunk=chunk).layers.items():
            wrong += differ(f"exact, {name}", estimate.value, wanted[name])
            wrong += differ("samples", estimate.samples, 9)
    wrong += far("drawn", bitwright.traces(model, x, tolerance=1e-3, chunk=2), wanted)
    return wrong


def test_accumulators_start_at_zero():
    """NNCF hessian_trace.py:154,160 (v2.14.1), INC hawq_metric.py:270,277: Hv starts at N(0, 1)."""
    sees(
        sums,
        ("curvature.hessian", "zeros_like(self.weights[n]", "randn_like(self.weights[n]"),
        ("curvature.hessian", "torch.zeros(self.channels[name]", "torch.randn(self.channels[name]"),
        (
            "curvature.ledger",
            "self._closed = torch.zeros(3, channels",
            "self._closed = torch.rand(3, channels",
        ),
        ("curvature.ledger", "room = torch.zeros(3, len(new)", "room = torch.rand(3, len(new)"),
    )


def test_all_samples_are_kept():
    """Torch-Pruning importance.py:706-714 (1.6.1): nothing is added up, the last sample is left."""
    sees(
        sums,
        ("curvature.hessian", "found[k][n] += p.double()", "found[k][n] = p.double()"),
        (
            "curvature.hutchinson",
            "totals = table.sum(1)\n    groups",
            "totals = table[:, -1]\n    groups",
        ),
        ("curvature.ledger", "self._closed[0] += t.sum(0)", "self._closed[0] = t.sum(0)"),
        ("curvature.ledger", "self._closed[0] += t.sum(0)", "self._closed[0] += t[-1] * len(t)"),
        (
            "curvature.ledger",
            "self._table[0].index_add_(0, slots[own], squares[own])",
            "self._table[0][slots[own]] = squares[own]",
        ),
    )


def test_earlier_samples_are_not_discounted():
    """NNCF 3.1.0 collectors.py:933: `(container + trace) / n` divides what was there once more."""
    sees(
        sums,
        (
            "curvature.hessian",
            "found[k][n] += p.double()",
            "found[k][n] = (found[k][n] + p.double()) / 2",
        ),
        (
            "curvature.ledger",
            "self._closed[0] += t.sum(0)",
            "self._closed[0] = (self._closed[0] + t.sum(0)) / 2",
        ),
        (
            "curvature.hutchinson",
            "totals = table.sum(1)\n    groups",
            "totals = 0.5 * table[:, :-1].sum(1) + table[:, -1]\n    groups",
        ),
    )


# ------------------------------------------------------------------------------------ when to stop


def slope(sign: float) -> tuple[nn.Module, tuple[Tensor, Tensor], Loss, float]:
    """A layer of one channel, the loss ±½(y t)² and the trace of its Hessian."""
    torch.manual_seed(2)
    x, t = torch.randn(6, 3).double(), torch.randn(6, 1).double()
    true = sign * float((x * t).square().sum() / 6)
    loss = lambda y, t: sign * 0.5 * (y * t).square().sum() / len(y)  # noqa: E731
    return nn.Linear(3, 1, bias=False).double(), (x, t), loss, true


def signs() -> list[str]:
    """A loss and its negative take equally many probes, and stop within the tolerance."""
    wrong, spent = [], []
    for sign in (1.0, -1.0):
        model, data, loss, true = slope(sign)
        found = curvature.hutchinson(model, data, loss, tolerance=0.05, probes=2000)
        estimate = found.layers["weight"]
        spent.append(found.details["probes"])
        if not 8 < spent[-1] < 2000:
            wrong.append(f"{spent[-1]} probes were spent")
        if not estimate.stderr_probe[0] <= 0.05 * abs(estimate.value[0]):
            wrong.append(f"{estimate} is not within 5 %")
        wrong += far("trace", found, {"weight": np.array([true])})
    return wrong + differ("probes of a loss and its negative", *spent)


def test_a_negative_trace_stops_no_earlier():
    """NNCF before 36f45a256, INC hawq_metric.py:301,367, MQBench: the denominator has no abs()."""
    sees(signs, ("curvature.hutchinson", "abs(float(totals.mean()))", "float(totals.mean())"))


def errors_at_the_stop() -> list[str]:
    """Twenty seeds end as close to the exact trace as the tolerance says."""
    model, data, loss, true = slope(1.0)
    options: dict[str, Any] = {"tolerance": 0.05, "probes": 4000}
    runs = [curvature.hutchinson(model, data, loss, seed=s, **options) for s in range(20)]
    off = np.array([abs(r.layers["weight"].value[0] / true - 1) for r in runs])
    wrong = [f"{e:.3f} off" for e in off if not e <= 4 * 0.05]
    rms = float(np.sqrt(np.square(off).mean()))
    return wrong if rms <= 1.5 * 0.05 else [*wrong, f"{rms:.3f} off in the mean"]


_RULE = "error = float(totals.std(unbiased=True)) / math.sqrt(len(totals))"


def test_one_small_step_of_the_running_mean_does_not_stop_it():
    """PyHessian hessian.py:168: one small step of the mean ends it; 5 % of runs are 29 % off."""
    step = "error = abs(float(totals.mean() - totals[:-1].mean()))"
    sees(errors_at_the_stop, ("curvature.hutchinson", _RULE, step))


# ------------------------------------------------------------------------- what is asked for counts


def brier(outputs: Tensor, y: Tensor) -> Tensor:
    """A criterion of somebody's own."""
    return 10 * (outputs.softmax(1) - F.one_hot(y, 3)).square().sum(1).mean()


def criterion() -> list[str]:
    """The user's own loss by random signs, and a weighted cross-entropy exactly."""
    model, x, y = made()
    wanted = by_channel(dense(model, x, y, brier), model)
    wrong = far("own loss", curvature.hutchinson(model, (x, y), brier, probes=200), wanted)
    weighted = nn.CrossEntropyLoss(torch.tensor([1.0, 5.0, 0.2]).double(), label_smoothing=0.1)
    line = nn.Sequential(nn.Flatten(), nn.Linear(9, 3)).double()
    wanted = by_channel(dense(line, x, y, weighted), line)  # no layer behind: Gauss-Newton is H
    found = bitwright.traces(line, (x, y), weighted, tolerance=0)
    return wrong + differ("weighted", found.layers["1"].value, wanted["1"])


def test_the_criterion_is_the_users():
    """INC hawq_metric.py:594: the criterion is not passed on, cross-entropy is always taken."""
    sees(
        criterion,
        (
            "curvature.hutchinson",
            "Hessian(model, data, loss,",
            "Hessian(model, data, nn.CrossEntropyLoss(),",
        ),
        (
            "curvature.hessian",
            "self._loss(outputs, targets)",
            "nn.functional.cross_entropy(outputs, targets)",
        ),
        (
            "curvature.traces",
            "ModuleSubject(model, batches, loss,",
            "ModuleSubject(model, batches, nn.CrossEntropyLoss(),",
        ),
    )


def activations() -> list[str]:
    """Traces of the layers' inputs, against dense Hessians in them; and their grids."""
    model, x, _ = made()
    inner = model[:3](x).detach()
    reference = model(x).detach()
    wanted = {}
    for name, tail, at in (("0", model, x), ("3", model[3], inner)):
        matrix = torch.func.hessian(lambda a, tail=tail: kl(tail(a), reference))(at)
        diagonal = matrix.reshape(at.numel(), -1).diagonal().reshape(at.shape).detach()
        wanted[name] = diagonal.transpose(0, 1).flatten(1).sum(1).numpy()
    found = bitwright.traces(model, x, tolerance=0).edges
    wrong = [] if set(found) == {"0.input", "3.input"} else [f"edges {sorted(found)}"]
    for name, e in found.items():
        wrong += differ(name, e.value, wanted[name.removesuffix(".input")])
    network = build(model, x)
    edges = curvature.gauss_newton(network, x, tolerance=0).edges
    first, last = network.edges[0].name, network.edges[-1].name
    for name, true in ((first, wanted["0"]), (last, wanted["3"])):
        wrong += differ(name, edges[name].value if name in edges else [], true)
    grids = quantize.calibrate(network, x)
    if set(grids) != {e.group for e in network.edges}:
        wrong.append(f"grids {sorted(grids)}")
    return wrong


def test_activations_are_measured():
    """INC hawq_metric.py:446-456: the list of hooks is overwritten by `{}`, ΔA is always empty."""
    sees(
        activations,
        ("curvature.modules", "torch.cat(flat, 1), tape, edges,", "torch.cat(flat, 1), tape, {},"),
        ("curvature.subjects", "self.class_axis), tape, edges,", "self.class_axis), tape, {},"),
        ("curvature.traces", 'if k.startswith("edge:")}', "if False}"),
        ("quantize.activations", "for g in sorted(counts)", "for g in {}"),
    )


# ------------------------------------------------------------------------- from traces to a score


def scores() -> list[str]:
    """Predicted losses against losses measured with each channel rounded to each width.

    On inputs with XᵀX = n·I, ½‖y − y₀‖² rises by ½ (Tr H_c / n_c) ‖ΔW_c‖², exactly. The last
    channel lies on the grid of 2 bits, and on none of 8.
    """
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(6, 4, bias=False))
    with torch.no_grad():
        model[0].weight[3] = torch.tensor([-1.5, -0.5, 0.5, 1.5, 0.5, -1.5])
    x = torch.linalg.qr(torch.randn(24, 6).double()).Q.float() * 24**0.5
    network = build(model, x)
    tables = quantize.weight_tables(network)
    traces = curvature.gauss_newton(network, x, kind="squared", tolerance=0)
    found = quantize.channel_problem(network, traces, tables, 100, shrink=False)
    float_weight = network.tensor("0.weight").detach()
    measured = np.zeros((4, 8))
    for bits in range(1, 9):
        rounded = quantize.round_weights(network, tables, {"0": np.full(4, bits)})["0"].matrix()
        change = x.double() @ (rounded - float_weight).double().T
        measured[:, bits - 1] = 0.5 * change.square().mean(0)
    assert (np.diff(measured[3]) > 1e-7).any()  # more bits, a larger loss
    return differ("loss", found.loss, measured, 1e-5) + [
        line
        for c in range(4)
        for line in differ(f"channel {c}", found.loss[c, 3:], measured[c, 3:], 1e-4)
    ]


_SCORE = "0.5 * trace[:, None] * given.tables[layer.name].error.numpy().T"


def test_the_score_has_the_squared_error():
    """INC hawq_metric.py:617: its comment says trace × L2, its code keeps the trace."""
    sees(scores, ("quantize.scores", f"losses[layer.name] = {_SCORE}",
                  "losses[layer.name] = 0.5 * np.repeat(trace[:, None], 8, 1)"))  # fmt: skip


def test_the_score_is_not_forced_to_fall_with_the_width():
    """ModelOpt algorithms.py:1067: `min(score, previous)` hides a format that is worse."""
    sees(scores, ("quantize.scores", f"losses[layer.name] = {_SCORE}",
                  f"losses[layer.name] = np.minimum.accumulate({_SCORE}, axis=1)"))  # fmt: skip


def chosen() -> list[str]:
    """What a search returns is the best it met, and keeps the goal it was asked for."""
    rng = np.random.default_rng(0)
    cost = np.arange(1, 5) * rng.integers(1, 10, (12, 1))
    loss = -np.sort(-rng.exponential(size=(12, 4)), axis=1)
    free, names = np.ones((12, 4), dtype=bool), tuple(map(str, range(12)))
    problem = Problem(names, (1, 2, 3, 4), loss, cost, 150, free, np.arange(12))
    bench: Any = SimpleNamespace(problem=problem.with_budget)
    bench.network = SimpleNamespace(weights=problem.weights)

    def value(plan: allocate.Plan) -> float:
        return float(loss[np.arange(12), np.asarray(plan.bits) - 1].sum())

    found = allocate.random_ratios(problem, np.arange(12), value, evaluations=20)
    wrong = differ("the best of all", value(found.plan), min(e.value for e in found.history))
    least = float(loss[:, -1].sum())
    for limit in least * np.array([1.5, 2.0]):
        budget = goals.bits_for_quality(bench, "channels", lambda p, v=limit: value(p) <= v, "")
        if not value(goals.solve(bench, "channels", budget)) <= limit:
            wrong.append(f"the plan of {budget} bits loses more than {limit}")
    return wrong


def test_a_search_returns_the_plan_it_found_good():
    """ModelOpt algorithms.py:1067: the final check is of the last iteration's configuration."""
    sees(
        chosen,
        ("allocate.search", "or value < self.best[0]:", "or value != self.best[0]:"),
        (
            "pipeline.search",
            "solve(bench, method, b))), high)",
            "solve(bench, method, b))), middle)",
        ),
    )


# ------------------------------------------------------------------------------------ what it costs


def backward_passes() -> list[str]:
    """One backward pass gives all layers: as many for two layers as for twelve."""
    torch.manual_seed(4)
    x, y = torch.randn(6, 4).double(), torch.arange(6) % 3
    wrong = []
    for depth in (1, 11):
        body = [m for _ in range(depth) for m in (nn.Linear(4, 4), nn.Tanh())]
        model = nn.Sequential(*body, nn.Linear(4, 3)).double()
        with counted(torch.autograd, "grad") as calls:
            curvature.hutchinson(model, (x, y), CE, probes=16, chunk=3)
        # two rounds over two passes: a gradient and eight products
        wrong += differ(f"{depth + 1} layers, random signs", len(calls), 2 * 2 * (1 + 8))
        with counted(torch.autograd, "grad") as calls:
            bitwright.traces(model, x, tolerance=0, chunk=3)
        # where the samples lie; then two directions of three classes in two passes
        wrong += differ(f"{depth + 1} layers, exact", len(calls), 1 + 2 * 2)
    return wrong


def test_one_backward_pass_serves_all_layers():
    """MCT weights calculator :91-111: `autograd.grad` in a loop over nodes, four times the cost."""
    one_by_one = "(lambda o, i, *a, **k: [torch.autograd.grad(o, [n], *a, **k)[0] for n in i])"
    sees(
        backward_passes,
        (
            "curvature.hessian",
            "products = torch.autograd.grad(",
            f"products = {one_by_one}(",
        ),
        (
            "curvature.visits",
            "gradients(passed.outputs, watched, d, keep=keep or k + 1 < len(directions))",
            "[gradients(passed.outputs, [w], d, keep=True)[0] for w in watched]",
        ),
    )


def graphs() -> list[str]:
    """A forward pass serves eight probes; one of data in one pass serves all steps of Lanczos."""
    model, x, y = made()
    counts = []
    for probes in (8, 24):
        with counted(model, "forward") as calls:
            curvature.hutchinson(model, (x, y), CE, probes=probes, chunk=3)
        counts.append(len(calls))
    wrong = differ("forward passes of two rounds more over three passes", counts[1] - counts[0], 6)
    hessian = products.Hessian(model, (x, y), CE)
    with counted(model, "forward") as calls:
        spectrum.top_eigenvalues(hessian)
    return wrong + differ("forward passes for two layers' eigenvalues", len(calls), 2)


def test_a_graph_serves_many_products():
    """TI tinyml-tensorlab compute_hessian_vector_product: forward and backward at every step."""
    sees(
        graphs,
        ("curvature.hutchinson", "_ROUND = 8", "_ROUND = 1"),
        ("curvature.spectrum", "[{name: z}], [name], kept)", "[{name: z}], [name])"),
    )


def seeds() -> list[str]:
    """The same seed gives the same numbers, another one others."""
    model, x, y = made()
    hessian = products.Hessian(model, (x, y), CE)
    flat, size = spectrum.whole(hessian)

    def numbers(found: bitwright.Sensitivity) -> list[float]:
        return np.concatenate([e.value for e in found.layers.values()]).tolist()

    sure = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    with torch.no_grad():
        sure[2].weight *= 20
    many = torch.randn(99, 4, generator=torch.Generator().manual_seed(0)).double()
    maps = nn.Sequential(nn.Conv2d(1, 60, 2)).double()  # outputs with many positions: random signs
    estimates: dict[str, Callable[[int], Any]] = {
        "hutchinson": lambda s: numbers(curvature.hutchinson(model, x, probes=2, seed=s)),
        "samples": lambda s: numbers(bitwright.traces(sure, many, tolerance=0.3, seed=s)),
        "signs": lambda s: numbers(bitwright.traces(maps, x, tolerance=0.9, effort=1, seed=s)),
        "eigenvalues": lambda s: spectrum.top_eigenvalues(hessian, steps=2, seed=s),
        "density": lambda s: spectrum.density(flat, size, steps=2, seed=s).trace,
        "Hutch++": lambda s: whole_trace.hutch_plus_plus(flat, size, probes=6, seed=s),
        "XTrace": lambda s: whole_trace.xtrace(flat, size, probes=6, seed=s),
    }
    return [
        name
        for name, f in estimates.items()
        if not (f(0) == f(0) and f(0) != f(1) and f(1) != f(2))
    ]


def test_a_seed_decides():
    """TI tinyml-tensorlab compute_hessian_vector_product: no seed."""
    seeded, free = "generator = torch.Generator().manual_seed(seed)", "generator = None"
    sees(
        seeds,
        ("curvature.hutchinson", seeded, free),
        ("curvature.gauss_newton", "generator=torch.Generator().manual_seed(seed), ", ""),
        ("curvature.visits", "SeedSequence((seed, row, kind))", "SeedSequence()"),
        ("curvature.spectrum", "torch.Generator().manual_seed(seed * 10_007 + i)", "None"),
        ("curvature.spectrum", seeded, free),
        ("curvature.whole_trace", seeded, free),
    )


def eigenvalues() -> list[str]:
    """As exact as asked for, and no product more than that takes."""
    model, x, y = made()
    true = dense(model, x, y, CE)
    hessian = products.Hessian(model, (x, y), CE)
    wrong, counts = [], []
    for tolerance in (1e-1, 1e-6):
        with counted(hessian, "products") as calls:
            found = spectrum.top_eigenvalues(hessian, tolerance=tolerance)
        counts.append(len(calls))
        for name, matrix in true.items():
            top = float(torch.linalg.eigvalsh(matrix)[-1])
            wrong += differ(f"{name} to {tolerance}", found[name], top, 2 * tolerance)
    if not counts[0] < 0.75 * counts[1] or counts[1] >= 40:
        wrong.append(f"{counts} products")
    return wrong


def test_iterations_end_when_the_eigenvalue_has_converged():
    """TI tinyml-tensorlab: a hundred power iterations, whether or not they have converged."""
    converged = "len(history) > 3 and max(before) <= tolerance * abs(history[-1])"
    sees(
        eigenvalues,
        ("curvature.spectrum", f"if {converged}:", "if False:"),
        ("curvature.spectrum", f"if {converged}:", "if len(history) > 3:"),
    )


# ------------------------------------------------------------------------------- what is remembered


def net(act: Callable[[Tensor], Tensor] = torch.relu, seed: int = 0) -> nn.Module:
    """Two layers and outputs [n, 3, 4]."""
    torch.manual_seed(seed)
    forward = lambda m, x: m.b(act(m.a(x))).unflatten(1, (3, 4))  # noqa: E731
    return Fn(forward, a=nn.Linear(5, 6), b=nn.Linear(6, 12)).eval()


def scaled(last: float) -> Callable[[Tensor], Tensor]:
    """A product with a constant that is no buffer."""
    return lambda h: h * torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, last])


def points(seed: int = 0) -> Tensor:
    return torch.randn(30, 5, generator=torch.Generator().manual_seed(seed))


TASK = Task(net(), points(), None, points(9), None)
SETTINGS = Settings(calibration_rows=20)
#: what may change between two runs in one folder
CHANGES: dict[str, tuple[Task, Settings]] = {
    "weights": (replace(TASK, model=net(seed=1)), SETTINGS),
    "forward pass": (replace(TASK, model=net(torch.tanh)), SETTINGS),
    "constants": (replace(TASK, model=net(scaled(2.0))), SETTINGS),
    "rows": (replace(TASK, calibration=points(1)), SETTINGS),
    "divergence": (replace(TASK, divergence="squared"), SETTINGS),
    "class axis": (replace(TASK, class_axis=2), SETTINGS),
    "seed": (TASK, replace(SETTINGS, seed=1)),
    "number of rows": (TASK, replace(SETTINGS, calibration_rows=10)),
    "layers left out": (TASK, replace(SETTINGS, skip=("a",))),
}
#: what was measured before, where it is not `TASK`
BEFORE = {"constants": replace(TASK, model=net(scaled(1.0)))}
_KEY = 'key = make_key("measure", self.base_key)'
FORGOTTEN: dict[str, Mutation] = {
    "weights": ("task", "_feed(digest.update, name, tensors[name])", "pass"),
    "rows": ("task", '_feed(digest.update, ".calibration", task.calibration)', "pass"),
    "forward pass": ("pipeline.measured", "make_key(module.code, ", "make_key("),
    "constants": ("pipeline.measured", ", *constants)", ")"),
    "divergence": (
        "pipeline.measured",
        "self.task.divergence,\n            self.task.class_axis,\n        )",
        "self.task.class_axis,\n        )",
    ),
    "class axis": ("pipeline.measured", "self.task.class_axis,\n        )", ")"),
    "seed": ("pipeline.measured", "s.seed,\n            s.device,", "s.device,"),
    "number of rows": ("pipeline.measured", "            s.calibration_rows,\n", ""),
    "layers left out": ("pipeline.measured", "            s.skip,\n", ""),
}


def stale(change: str) -> list[str]:
    """A run in a folder where something else was measured, against a measurement of its own."""
    task, settings = CHANGES[change]
    with tempfile.TemporaryDirectory() as folder:
        _ = stages.Measured(BEFORE.get(change, TASK), SETTINGS, Path(folder)).sensitivity
        made = stages.Measured(task, settings, Path(folder))
        found = made.sensitivity
    own = curvature.gauss_newton(
        made.network, made.calibration, kind=task.divergence, class_axis=task.class_axis,
        seed=settings.seed,
    )  # fmt: skip
    if found.layers.keys() != own.layers.keys():
        return [f"layers {sorted(found.layers)}"]
    return [
        line
        for name, e in own.layers.items()
        for line in differ(name, found.layers[name].value, e.value, 1e-4)
    ]


@pytest.mark.parametrize("change", CHANGES)
def test_traces_are_not_those_of_something_else(change: str):
    """HAP hessian_pruner.py:115-122: traces are kept by data set, architecture and depth alone."""
    name = "type(self.task.model).__name__, len(self.task.calibration)"
    hap = ("pipeline.measured", _KEY, f'key = make_key("measure", {name})')
    sees(lambda: stale(change), hap, FORGOTTEN[change])
