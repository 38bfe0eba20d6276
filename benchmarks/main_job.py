"""The main job on ResNet-20 (CIFAR-10), the embedded default and MobileNetV2.

    python benchmarks/main_job.py [--data-root DIR] [--quick] [--only quality,ratios,files,…]

Parts: `quality` (KL at 3, 2.5, 2 and 4 bits, float activations), `ratios` (CW-HAWQ against random
ratios, 8 seeds), `files` (8-bit activations through the ONNX file, fusion, equality, bytes),
`command` (time of the whole command), `mobilenet`.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import harness
import networks
import numpy as np
import torch

from bitwright import allocate, demo, quantize
from bitwright.curvature.divergence import per_sample
from bitwright.data import Data
from bitwright.deploy import runtime
from bitwright.network import outputs
from bitwright.pipeline import Run, Settings
from bitwright.pipeline.budget import parse_budget
from bitwright.pipeline.judge import answers_of
from bitwright.pipeline.search import solve
from bitwright.task import Task, assemble


def task(model: torch.nn.Module, arrays: dict[str, np.ndarray]) -> Task:
    """A task of arrays."""
    tensors = {k: torch.from_numpy(v) for k, v in arrays.items()}
    data = Data(tensors["train_x"], tensors["train_y"], tensors["test_x"], tensors["test_y"])
    return assemble(model, data)


#: of each search in `ratios`
EVALUATIONS = 150


def stderr(values: torch.Tensor) -> float:
    """Standard error of the mean."""
    return float(values.std() / math.sqrt(len(values)))


def raw_channels(run: Run, budget: int) -> allocate.Plan:
    """The knapsack on traces as measured, to tell what their shrinkage is worth."""
    tables = run.bench.tables
    problem = quantize.channel_problem(run.network, run.sensitivity, tables, budget, shrink=False)
    return allocate.knapsack(problem)


def quality(rows: harness.Rows, folder: Path, quick: bool) -> None:
    """KL(float ‖ quantized) on the test images, weights only, no fine-tuning."""
    work = task(networks.resnet20(), networks.cifar10())
    run = Run(work, Settings(activations=None), folder / "quality")
    test, labels = work.test, work.test_labels
    reference = outputs(run.network.module, test)
    bars = {3.0: 0.09, 2.5: 0.19, 2.0: 0.45, 4.0: math.inf}
    for bits in (3.0,) if quick else bars:
        found = {}
        budget = int(bits * run.network.weights)
        plans = {m: solve(run.bench, m, budget) for m in ("uniform", "layers", "channels")}
        plans["channels, traces not shrunk"] = raw_channels(run, budget)
        for method, plan in plans.items():
            answers = quantize.simulate(run.bench.build(plan), test)
            kl = per_sample(reference, answers, "kl")
            right = (answers.argmax(1) == labels).double().mean()
            used = plan.cost / run.network.weights
            found[method] = float(kl.mean()), stderr(kl), float(right), used
        for method, (kl, error, right, used) in found.items():
            bar, holds = "", None
            if method == "channels" and bits < 4:
                bar = f"<= {bars[bits]}, below layers and uniform"
                rivals = [found["layers"][0], found["uniform"][0]]
                holds = kl <= bars[bits] and kl < min(rivals)
            rows.add(
                f"KL, ResNet-20, {bits} mean bits, {method}",
                kl,
                bar,
                holds,
                "layers",
                found["layers"][0],
                stderr=round(error, 5),
                top1=round(right, 4),
                mean_bits=round(used, 4),
            )


class _Contest:
    """CW-HAWQ against random ratios on ResNet-20 at 2.5 bits; one for each process."""

    def __init__(self, folder: Path, judged: int | None) -> None:
        work = task(networks.resnet20(), networks.cifar10())
        run = Run(work, Settings(activations=None), folder)
        self.bench = bench = run.bench
        seen = torch.cat([run.calibration, run.pool])
        used = {row.numpy().tobytes() for row in seen}
        fresh = [i for i, row in enumerate(work.calibration) if row.numpy().tobytes() not in used]
        self.judges = {"unseen": work.calibration[fresh[:judged]], "test": work.test}
        self.references = {n: outputs(run.network.module, x) for n, x in self.judges.items()}
        self.problem = bench.problem(int(2.5 * run.network.weights))
        self.order = quantize.trace_order(run.network, run.sensitivity, bench.tables)
        self.cache: dict[bytes, float] = {}

    def evaluate(self, plan: allocate.Plan) -> float:
        if plan.key not in self.cache:
            self.cache[plan.key] = self.bench.reward(plan)
        return self.cache[plan.key]

    def judged(self, plan: allocate.Plan) -> dict[str, float]:
        built = self.bench.build(plan)
        return {
            n: float(per_sample(self.references[n], quantize.simulate(built, x), "kl").mean())
            for n, x in self.judges.items()
        }

    def hold(self, seed: int, count: int) -> tuple[dict[str, float], dict[str, float]]:
        """KL on the judges' images, and the reward, of the agent's and of chance's best plan."""
        problem, order = self.problem, self.order
        agent = allocate.cw_hawq(problem, order, self.evaluate, evaluations=count, seed=seed)
        chance = allocate.random_ratios(problem, order, self.evaluate, evaluations=count, seed=seed)
        ours, theirs = ({**self.judged(r.plan), "reward": r.value} for r in (agent, chance))
        return ours, theirs


_contest: _Contest | None = None


def _prepare(folder: Path, judged: int | None) -> None:
    global _contest
    torch.set_num_threads(1)
    _contest = _Contest(folder, judged)


def _hold(seed: int, count: int) -> tuple[dict[str, float], dict[str, float]]:
    assert _contest is not None
    return _contest.hold(seed, count)


def ratios(rows: harness.Rows, folder: Path, quick: bool) -> None:
    """CW-HAWQ against random ratios: same start, same cache, same number of evaluations.

    Judged on all training images that neither measuring, nor correction, nor the reward has seen
    (6,020 of them), and on the 517 test images. One process a core, each with its own seeds.
    """
    place = folder / "ratios"
    judged = 500 if quick else None
    contest = _Contest(place, judged)  # measures; the workers find the sensitivity there
    plain = contest.judged(allocate.knapsack(contest.problem))
    plain["reward"] = contest.bench.reward(allocate.knapsack(contest.problem))
    count, seeds = (4, 1) if quick else (EVALUATIONS, 8)
    found = []
    with ProcessPoolExecutor(
        1 if quick else os.cpu_count(),
        multiprocessing.get_context("spawn"),
        _prepare,
        (place, judged),
    ) as pool:
        for seed, (ours, theirs) in enumerate(pool.map(_hold, range(seeds), [count] * seeds)):
            found.append([ours[k] / theirs[k] for k in ("unseen", "test", "reward")])
            rows.add(
                f"KL on unseen images, cw-hawq, seed {seed}, {count} evaluations",
                ours["unseen"],
                peer="random ratios",
                peer_value=theirs["unseen"],
                test=round(ours["test"], 5),
                peer_test=round(theirs["test"], 5),
                reward=round(ours["reward"], 5),
                peer_reward=round(theirs["reward"], 5),
            )
    unseen, test, reward = np.exp(np.mean(np.log(found), axis=0))
    rows.add(
        "paired geometric mean of KL on unseen images, cw-hawq / random ratios",
        float(unseen),
        "<= 0.95 over 8 seeds",
        None if quick else bool(unseen <= 0.95),
        "knapsack, KL on unseen images",
        plain["unseen"],
        on_test_images=round(float(test), 4),
        on_reward_images=round(float(reward), 4),
        knapsack_test=round(plain["test"], 5),
        knapsack_reward=round(plain["reward"], 5),
    )


def files(rows: harness.Rows, folder: Path, quick: bool) -> None:
    """Through the ONNX file: added KL of 8-bit activations, fusion, equality, bytes."""
    cases = [("ResNet-20", task(networks.resnet20(), networks.cifar10()), "4bit")]
    cases.append(("embedded net", task(demo.network(), demo.data()), "3bit"))
    for name, work, budget in cases[:1] if quick else cases:
        if quick:
            work = replace(work, test=work.test[:64], test_labels=work.test_labels[:64])
        settings = Settings(budget=parse_budget(budget))
        run = Run(work, settings, folder / name)
        reference = outputs(run.network.module, work.test)
        eight = float(per_sample(reference, answers_of(run.onnx, work.test), "kl").mean())
        weights_only = Run(work, replace(settings, activations=None), folder / f"{name} float")
        plain = quantize.simulate(weights_only.bench.build(run.plan), work.test)
        added = eight - float(per_sample(reference, plain, "kl").mean())
        rows.add(
            f"added KL of 8-bit activations through the ONNX file, {name}, {budget}",
            added,
            "<= 0.01",
            added <= 0.01,
            "KL of the file",
            eight,
        )
        found = run.verification
        rows.add(
            f"QLinearConv nodes, {name}",
            found.qlinear_convolutions,
            f"= {found.convolutions}",
            found.qlinear_convolutions == found.convolutions,
        )
        worst = max((d.fraction for d in found.differing), default=0.0)
        rows.add(
            f"integer tensors equal in the runtime, {name}, {found.rows} images",
            found.equal,
            f"= {found.tensors}, or one step on <= 0.1 %; same class everywhere",
            found.ok,
            worst_fraction=worst,
            same_class=found.same_class,
        )
        parts = run.breakdown()
        need = parts["weights"] + parts["scales"] + parts["biases"]
        for file, factor, spare in (("model.safetensors", 1.02, 4e3), ("model.onnx", 1.05, 3e4)):
            rows.add(
                f"bytes of {file}, {name}, {budget}",
                parts[file],
                f"<= {factor} x {need} + {int(spare)}",
                parts[file] <= factor * need + spare,
                "float ONNX file",
                run.preflight.float_bytes,
            )
        ours, theirs = runtime.latencies([run.onnx, run.store.path("float.onnx")], work.test[:1])
        rows.add(f"latency of one image, s, {name}", ours, peer="float ONNX", peer_value=theirs)


def command(rows: harness.Rows, folder: Path, quick: bool) -> None:
    """Wall time of the whole command."""
    for method, bar in (("channels", 90), ("cw-hawq", 900)):
        if quick:
            continue
        begin = time.perf_counter()
        place = str(harness.HERE / "networks.py")
        subprocess.run(
            [
                *(sys.executable, "-m", "bitwright", "compress", "--quiet"),
                *("--model", f"{place}:resnet20", "--data", f"{place}:cifar10"),
                *("--method", method, "--out", str(folder / f"command {method}")),
            ],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        spent = time.perf_counter() - begin
        rows.add(f"whole command, s, ResNet-20, {method}", spent, f"<= {bar}", spent <= bar)


def mobilenet(rows: harness.Rows, folder: Path, quick: bool) -> None:
    """MobileNetV2 at 224 px: calibrate on 250 images, judge on the other 250."""
    if quick:
        return
    work = task(networks.mobilenet_v2(), networks.imagenet())
    run = Run(work, Settings(budget=parse_budget("4bit")), folder / "mobilenet")
    for name, row in run.judgements.items():
        found = row.judgement
        rows.add(
            f"KL, MobileNetV2, {row.mean_bits:.2f} mean bits, 8-bit activations, {name}",
            found.kl,
            stderr=round(found.kl_stderr, 5),
            agreement=found.agreement,
            top1=found.metric,
            bytes=row.bytes,
            latency_s=round(row.latency, 5),
        )
    raw = run.bench.build(raw_channels(run, 4 * run.network.weights))
    reference = outputs(run.network.module, work.test)
    kl = per_sample(reference, quantize.simulate(raw, work.test), "kl")
    rows.add(
        "KL, MobileNetV2, 4.00 mean bits, 8-bit activations, channels, traces not shrunk",
        float(kl.mean()),
        stderr=round(stderr(kl), 5),
    )
    check = run.verification
    rows.add(
        "QLinearConv nodes, MobileNetV2",
        check.qlinear_convolutions,
        f"{check.convolutions} (reported)",
        check.qlinear_convolutions == check.convolutions,
    )
    worst = max((d.fraction for d in check.differing), default=0.0)
    rows.add(
        f"integer tensors equal in the runtime, MobileNetV2, {check.rows} images",
        check.equal,
        f"{check.tensors} (reported)",
        check.ok,
        worst_fraction=worst,
        same_class=check.same_class,
    )


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        parts = {
            part.__name__: lambda rows, quick, part=part: part(rows, Path(place), quick)
            for part in (quality, files, command, mobilenet, ratios)
        }
        harness.run("main_job", __doc__ or "", parts)
