"""The searches of the HAWQ line side by side; activations chosen with weights. For `search.py`.

ResNet-20 (CIFAR-10) and the embedded default (a narrow ResNet for Fashion-MNIST), weights only, two
budgets each. Every search makes the same number of evaluations of the same reward (the softened KL
on 256 calibration images, after correction) and those that start from a plan start from the
knapsack's; `cold` starts from equal shares. Their best plans are judged by the KL to the float
network, after correction, on images that neither measuring, nor correction, nor the reward has
seen. CW-HAWQ and the cross-entropy method run over five seeds, the others over one.
Logs are kept, so that a run that was stopped goes on where it was.
"""

from __future__ import annotations

import hashlib
import itertools
import multiprocessing
import os
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import harness
import main_job
import networks
import numpy as np
import torch
from torch import Tensor

from bitwright import demo
from bitwright.allocate import Plan, knapsack
from bitwright.curvature.divergence import per_sample
from bitwright.network import outputs
from bitwright.pipeline import METHODS, Run, Settings
from bitwright.pipeline.bench import Workbench
from bitwright.pipeline.budget import parse_budget
from bitwright.pipeline.search import solve
from bitwright.quantize import simulate

EVALUATIONS, REWARD_ROWS, JUDGED = 150, 256, 2048
BUDGETS = {"ResNet-20": (2.5, 3.0), "embedded net": (1.75, 2.25)}
SEEDS = {"cw-hawq": 5, "cross-entropy": 5}
CONTEST = ("cw-hawq", "cross-entropy", "random-ratios", "cw-hawq, cold", "local-moves", "haq")


@dataclass(frozen=True)
class Job:
    """One search: network, mean bits, method, seed, evaluations; and where things are kept."""

    network: str
    bits: float
    method: str
    seed: int
    evaluations: int
    folder: Path


@dataclass(frozen=True)
class Held:
    """What a search found: reward, KL on unseen images, best reward after each evaluation."""

    reward: float
    unseen: float
    best: tuple[float, ...]


def run_of(network: str, folder: Path, **settings: object) -> Run:
    """A run on one of the networks, measured once a folder."""
    if network == "ResNet-20":
        task = main_job.task(networks.resnet20(), networks.cifar10())
    else:
        task = main_job.task(demo.network(), demo.data())
    return Run(task, Settings(**{"activations": None, **settings}), folder / network)  # type: ignore[arg-type]


def unseen(run: Run) -> Tensor:
    """Images of the task that the run has not looked at: of training, and those of the test."""
    seen = {row.numpy().tobytes() for row in torch.cat([run.calibration, run.pool])}
    x, test = run.task.calibration, run.task.test
    assert test is not None
    fresh = [i for i, row in enumerate(x) if row.numpy().tobytes() not in seen]
    return torch.cat([x[fresh], test])[:JUDGED]


class Judge:
    """KL to the float network on unseen images, after correction."""

    def __init__(self, run: Run) -> None:
        self.bench: Workbench = replace(run.bench, pool=run.bench.pool[:REWARD_ROWS])
        self.x = unseen(run)
        self.target = outputs(run.network.module, self.x)

    def __call__(self, plan: Plan) -> Tensor:
        """KL of each image."""
        return per_sample(self.target, simulate(self.bench.build(plan), self.x), "kl")


@cache
def _judge(network: str, folder: Path) -> Judge:
    return Judge(run_of(network, folder))


def _prepare() -> None:
    torch.set_num_threads(1)


def _hold(job: Job) -> Held:
    judge = _judge(job.network, job.folder)
    bench = judge.bench
    name, _, cold = job.method.partition(", ")
    problem = bench.problem(int(job.bits * bench.network.weights))
    key = hashlib.sha256(problem.loss.tobytes() + bench.order().tobytes()).hexdigest()[:8]
    search = METHODS[name].search
    assert search is not None
    words = "-".join([job.network, str(job.bits), name, cold, str(job.seed), key])
    found = search(
        bench,
        problem,
        bench.reward,
        evaluations=job.evaluations,
        seed=job.seed,
        start=None if cold or name == "haq" else knapsack(problem),
        log=job.folder / f"{words}.jsonl".replace(" ", "-"),
    )
    best = tuple(e.best for e in found.history)
    return Held(found.value, float(judge(found.plan).mean()), best)


def searches(rows: harness.Rows, quick: bool) -> None:
    """Every search on every network and budget, and CW-HAWQ beside each of the others."""
    cases = [(n, b) for n, budgets in BUDGETS.items() for b in budgets]
    evaluations = 6 if quick else EVALUATIONS
    if quick:
        cases = cases[-1:]
    with tempfile.TemporaryDirectory() as scratch:
        folder = _kept(scratch, quick)
        for network in dict.fromkeys(n for n, _ in cases):
            assert run_of(network, folder).sensitivity.layers  # the workers find it in the folder
        jobs = [
            Job(network, bits, method, seed, evaluations, folder)
            for network, bits in cases
            for method in CONTEST
            for seed in range(1 if quick else SEEDS.get(method, 1))
        ]
        with ProcessPoolExecutor(
            1 if quick else os.cpu_count(), multiprocessing.get_context("spawn"), _prepare
        ) as pool:
            held = dict(zip(jobs, pool.map(_hold, jobs), strict=True))
        for case in cases:
            own: dict[str, list[Held]] = {}
            for job, found in held.items():
                if (job.network, job.bits) == case:
                    own.setdefault(job.method, []).append(found)
            _case(rows, case, own, _judge(case[0], folder), quick)
    if not quick:
        _overall(rows, cases, held)


def _kept(scratch: str, quick: bool) -> Path:
    """Where measurements and logs are kept between runs."""
    folder = Path(scratch) if quick else harness.HERE.parent / "build" / "search"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _case(
    rows: harness.Rows,
    case: tuple[str, float],
    own: dict[str, list[Held]],
    judge: Judge,
    quick: bool,
) -> None:
    """One row a search; the evaluations that CW-HAWQ needs to where HAQ ends."""
    bench = judge.bench
    plan = solve(bench, "channels", int(case[1] * bench.network.weights))
    start, reward = float(judge(plan).mean()), bench.reward(plan)
    for method, found in own.items():
        values = [h.unseen for h in found]
        rows.add(
            f"KL on unseen images, {case[0]}, {case[1]} mean bits, {method}",
            _mean(values),
            peer="knapsack",
            peer_value=start,
            seeds=[round(v, 5) for v in values],
            reward=round(_mean([h.reward for h in found]), 6),
            peer_reward=round(reward, 6),
            evaluations=len(found[0].best),
            judged=len(judge.x),
        )
    (haq,) = own["haq"]
    spent = haq.best.index(haq.reward) + 1
    for method in ("cw-hawq", "cw-hawq, cold"):
        needed = [_reached(h.best, haq.reward) for h in own[method]]
        share = float(np.mean([n / spent if n else np.inf for n in needed]))
        rows.add(
            f"evaluations to the reward HAQ ends with, {method} / haq, {case[0]}, {case[1]} bits",
            share if np.isfinite(share) else None,
            "<= 0.2" if method == "cw-hawq" else "",
            None if quick or method != "cw-hawq" else bool(share <= 0.2),
            "evaluations of haq",
            spent,
            each=needed,
        )


def _overall(rows: harness.Rows, cases: list[tuple[str, float]], held: dict[Job, Held]) -> None:
    """CW-HAWQ over the others, geometric means over networks, budgets and seeds."""
    for other in CONTEST[1:]:
        shares = []
        for case in cases:
            of = {
                m: [
                    h.unseen for j, h in held.items() if (j.network, j.bits, j.method) == (*case, m)
                ]
                for m in ("cw-hawq", other)
            }
            shares.append(_mean(of["cw-hawq"]) / _mean(of[other]))
        bar = "<= 1" if other == "cross-entropy" else ""
        value = _mean(shares)
        rows.add(
            f"KL on unseen images, cw-hawq / {other}",
            value,
            bar,
            bool(value <= 1) if bar else None,
            cases=[round(s, 4) for s in shares],
        )


def _is(job: Job, case: tuple[str, float], method: str) -> bool:
    return (job.network, job.bits, job.method) == (*case, method)


def _mean(values: list[float]) -> float:
    """Geometric."""
    return float(np.exp(np.mean(np.log(values))))


def _reached(best: tuple[float, ...], value: float) -> int | None:
    """Evaluations after which the best reward is no worse than `value`."""
    return next((i + 1 for i, b in enumerate(best) if b <= value), None)


def bops(rows: harness.Rows, quick: bool) -> None:
    """Weights and activations of ResNet-20 within half the bit operations of W4A8."""
    network = "embedded net" if quick else "ResNet-20"
    with tempfile.TemporaryDirectory() as scratch:
        folder = _kept(scratch, quick) / "bops"
        plain = run_of(network, folder)
        bound = 16 * sum(layer.macs for layer in plain.network.layers)
        found: dict[str, Tensor] = {}
        for method in ("cw-hawq", "channels", "layers", "uniform"):
            run = run_of(
                network,
                folder,
                activations="auto",
                max_bops=f"{bound / 1e6}M",
                budget=parse_budget("8bit"),
                method=method,
                evaluations=6 if quick else EVALUATIONS,
            )
            judge = Judge(run)
            plan = run.plan
            found[method] = judge(plan)
            weights = len(plan.names) - len(run.edges)
            rows.add(
                f"KL on unseen images, {network}, half the BOPs of W4A8, {method}",
                float(found[method].mean()),
                peer="mean bits of weights, of activations",
                mean_bits=round(plan.cost / run.network.weights, 3),
                activation_bits=sorted(plan.bits[weights:].tolist()),
                bops=round(plan.limits[0].total, 3),
                bound=round(plan.limits[0].bound, 3),
                stderr=round(main_job.stderr(found[method]), 5),
            )
        for first, second in itertools.product(("cw-hawq", "channels"), ("layers", "uniform")):
            moved = found[first] - found[second]
            ratio = float(found[first].mean() / found[second].mean())
            rows.add(
                f"KL on unseen images under the BOPs bound, {first} / {second}, {network}",
                ratio,
                "< 1" if first == "cw-hawq" else "",
                None if quick or first != "cw-hawq" else bool(ratio < 1),
                "standard errors of the difference",
                float(moved.mean()) / main_job.stderr(moved),
            )
