"""How well each score predicts the truth on ResNet-20. A part of `search.py`.

The truth is the KL to the float network on the 517 test images:

- of single channels, drawn at random, at 1 to 4 bits, everything else in float; as rounded, and
  with the channel's own output corrected;
- of whole plans around 2, 2.5, 3 and 4 mean bits, as rounded and corrected. They are knapsacks on
  squared errors relative to the layer's weights, times random factors of layers and channels: no
  score has a share in them, and among plans of one budget good and bad ones occur.

Then each score's own plans are judged at equal bits, corrected: on the test images, and on 2,048
training images that neither measuring nor correcting has seen, whose KL is softened as the search's
reward is (docs/decisions/0004-reward.md): a few images decide the plain mean.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import harness
import main_job
import networks
import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

from bitwright import allocate, quantize
from bitwright.allocate import Plan, Problem
from bitwright.curvature.divergence import per_sample
from bitwright.network import outputs
from bitwright.pipeline import Run, Settings
from bitwright.pipeline.bench import REWARD_TEMPERATURE
from bitwright.quantize import Quantized
from bitwright.quantize.actual_error import FIT_ROWS, errors_left
from bitwright.quantize.measured import changed_rows, divergences

BUDGETS = (2.0, 2.5, 3.0, 4.0)


class Scene:
    """A network measured, and images that nothing has seen; one for each process.

    Args:
        folder: of the run.
        model, data: functions of `networks`.
        calibration, unseen: images measured on; images beside the test images to judge on, as far
            as there are any.
    """

    def __init__(
        self,
        folder: Path,
        model: Callable[[], nn.Module] = networks.resnet20,
        data: Callable[[], dict[str, np.ndarray]] = networks.cifar10,
        *,
        calibration: int = 1024,
        unseen: int = 2048,
    ) -> None:
        self.task = main_job.task(model(), data())
        settings = Settings(activations=None, calibration_rows=calibration)
        self.run = Run(self.task, settings, folder)
        self.bench, self.network = self.run.bench, self.run.network
        seen = torch.cat([self.run.calibration, self.run.pool])
        used = {row.numpy().tobytes() for row in seen}
        x = self.task.calibration
        fresh = [i for i, row in enumerate(x) if row.numpy().tobytes() not in used]
        self.judges = {"test": self.task.test}
        if fresh:
            self.judges["unseen"] = x[fresh[:unseen]]
        self.targets = {n: outputs(self.network.module, x) for n, x in self.judges.items()}
        self.problem = self.bench.problem(8 * self.network.weights)
        generator = torch.Generator().manual_seed(self.run.settings.seed)  # as the calibration's
        order = torch.randperm(len(x), generator=generator)[: len(self.run.calibration)]
        labels = self.task.calibration_labels
        assert labels is not None
        self.rows = quantize.Rows(self.run.calibration, labels[order])

    def random_plan(self, seed: int) -> Plan:
        """A plan that knows squared errors alone."""
        rng = np.random.default_rng(seed)
        relative = [
            self.bench.tables[la.name].error.numpy().T
            / float(self.network.matrix(la).double().square().mean())
            for la in self.network.layers
        ]
        by_layer, by_channel = rng.uniform(0, 1.5, 2)
        owner = quantize.layer_ties(self.network)
        factor = by_layer * rng.standard_normal(owner.max() + 1)[owner]
        factor += by_channel * rng.standard_normal(len(owner))
        loss = np.concatenate(relative) * np.exp(factor)[:, None]
        budget = int(BUDGETS[seed % len(BUDGETS)] * self.network.weights)
        return allocate.knapsack(replace(self.problem, loss=loss, budget=budget))

    def kl(self, built: Quantized, judge: str = "test", soft: float = 1.0) -> Tensor:
        """KL of each image, of logits divided by `soft`."""
        answers = quantize.simulate(built, self.judges[judge])
        return soft**2 * per_sample(self.targets[judge] / soft, answers / soft, "kl")

    def singles(self, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Channels, places of their widths, and KL [2, count] as rounded and as corrected."""
        rng = np.random.default_rng(0)
        channels, widths = (
            rng.integers(len(self.problem.names), size=count),
            rng.integers(4, size=count),
        )
        owner = quantize.layer_ties(self.network)
        first = np.searchsorted(owner, owner)
        found = []
        for x in (None, self.rows.x[:FIT_ROWS]):
            changes = errors_left(self.network, self.bench.tables, x)
            variants = []
            for c, w in zip(channels, widths, strict=True):
                layer, row = self.network.layers[owner[c]], int(c - first[c])
                change = changes[layer.name][[row], int(w)]
                variants.append((layer, partial(changed_rows, self.network, layer, [row], change)))
            found.append(divergences(self.network, self.judges["test"], variants).mean(1))
        return channels, widths, torch.stack(found).numpy()


_scene: Scene | None = None


def _prepare(folder: Path, images: dict[str, int]) -> None:
    global _scene
    torch.set_num_threads(1)
    _scene = Scene(folder, **images)


def _plan(seed: int) -> tuple[np.ndarray, float, float]:
    """Choices of a random plan, and its KL as rounded and as corrected."""
    assert _scene is not None
    plan = _scene.random_plan(seed)
    bits = quantize.plan_bits(_scene.network, plan)
    rounded = quantize.round_weights(_scene.network, _scene.bench.tables, bits)
    before = _scene.kl(Quantized(_scene.network, rounded, {}))
    return plan.choice, float(before.mean()), float(_scene.kl(_scene.bench.build(plan)).mean())


def predictions(scene: Scene, quick: bool) -> dict[str, tuple[Problem, float]]:
    """Each score's problem and the seconds it took, traces not counted."""
    found = {}
    rows = scene.rows
    if quick:
        rows = replace(rows, x=rows.x[:64], labels=rows.labels[:64])  # type: ignore[index]
    for score in quantize.SCORES:
        if quick and score in ("eigenvalue", "measured"):
            continue
        begin = time.perf_counter()
        problem = quantize.channel_problem(
            scene.network,
            scene.run.sensitivity,
            scene.bench.tables,
            8 * scene.network.weights,
            score=score,
            rows=rows,
        )
        found[score] = problem, time.perf_counter() - begin
    return found


def scores(rows: harness.Rows, quick: bool) -> None:
    """Rank correlation with the truth, one row a score; and the KL of the plans it chooses."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        images = {"calibration": 128, "unseen": 64} if quick else {}
        scene = Scene(folder, **images)
        assert scene.run.sensitivity.layers  # the workers find it in the folder
        problems = predictions(scene, quick)
        singles, plans = (20, 8) if quick else (200, 200)
        channels, widths, single = scene.singles(singles)
        with ProcessPoolExecutor(
            1 if quick else os.cpu_count(),
            multiprocessing.get_context("spawn"),
            _prepare,
            (folder, images),
        ) as pool:
            found = list(pool.map(_plan, range(plans)))
        choices = np.stack([f[0] for f in found])
        whole = np.array([f[1:] for f in found]).T
        budget = np.arange(plans) % len(BUDGETS)
        for score, (problem, seconds) in problems.items():
            loss = problem.loss
            one = [_rank(loss[channels, widths], t) for t in single]
            predicted = loss[np.arange(len(loss)), choices].sum(1)
            inside = [
                np.mean([_rank(predicted[budget == b], t[budget == b]) for b in set(budget)])
                for t in whole
            ]
            rows.add(
                f"rank correlation with the KL after correction, single channels, {score}",
                one[1],
                peer="before correction",
                peer_value=one[0],
                plans=round(_rank(predicted, whole[1]), 4),
                plans_before=round(_rank(predicted, whole[0]), 4),
                plans_of_one_budget=round(float(inside[1]), 4),
                plans_of_one_budget_before=round(float(inside[0]), 4),
                channels=singles,
                plans_judged=plans,
                seconds=round(seconds, 1),
            )
        _chosen(rows, scene, {k: p for k, (p, _) in problems.items()}, quick)


def _rank(a: np.ndarray, b: np.ndarray) -> float:
    return float(spearmanr(a, b).statistic)


def _chosen(rows: harness.Rows, scene: Scene, problems: dict[str, Problem], quick: bool) -> None:
    """KL of every score's own plan, corrected, beside the trace's."""
    for bits in BUDGETS[-1:] if quick else BUDGETS:
        budget = int(bits * scene.network.weights)
        test, unseen = {}, {}
        for score, problem in problems.items():
            built = scene.bench.build(allocate.knapsack(problem.with_budget(budget)))
            test[score] = scene.kl(built)
            unseen[score] = scene.kl(built, "unseen", REWARD_TEMPERATURE)
        for score, kl in test.items():
            moved = unseen[score] - unseen["trace"]
            rows.add(
                f"KL on test images, ResNet-20, {bits} mean bits, channels by {score}",
                float(kl.mean()),
                peer="trace",
                peer_value=float(test["trace"].mean()),
                difference_stderr=round(main_job.stderr(kl - test["trace"]), 5),
                softened_unseen=round(float(unseen[score].mean()), 5),
                softened_difference=round(float(moved.mean()), 5),
                softened_difference_stderr=round(main_job.stderr(moved), 5),
                images=len(unseen[score]),
            )
