"""Which channels go where the rest will be quantized: one plan under one budget."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bitwright.curvature.divergence import per_sample
from bitwright.network import join
from bitwright.pipeline.budget import parse_budget
from bitwright.pipeline.keep import PruneSettings
from bitwright.pipeline.measured import Progress
from bitwright.pipeline.run import Run
from bitwright.pipeline.settings import Settings
from bitwright.prune import Coupling, Rows, Selection, Sizes, compensated, mixed, pruned, select
from bitwright.task import Task

#: share of the parameters that the trial keeps, and rows that it is judged on
_TRIAL, _ROWS = 0.8, 512


def mixed_selection(
    task: Task,
    settings: PruneSettings,
    coupling: Coupling,
    sizes: Sizes,
    scores: Mapping[str, np.ndarray],
    x: Tensor,
    budget: str,
    folder: Path,
    progress: Progress,
) -> Selection:
    """Units to remove and to implant, chosen together with everybody's bits.

    A compression of the whole model to the same budget (in the folder `whole`) tells what each
    channel loses at each width and how many bits there are; a trial with a fifth of the parameters
    removed tells how much of the scores refits leave.

    Args:
        task, settings, coupling, sizes, scores, x: of the model to prune.
        budget: as of :func:`bitwright.compress`; the whole model must fit it at some widths.

    Raises:
        BitwrightError: it does not.
    """
    run = Run(task, Settings(budget=parse_budget(budget), seed=settings.seed,
                             calibration_rows=settings.calibration_rows),
              folder / "whole", progress)  # fmt: skip
    run.check_goal()
    whole = run.plan
    problem = run.bench.weights(whole.cost)
    ends = np.cumsum([0, *(layer.rows for layer in run.network.layers)])
    layers = {
        layer.name: slice(int(a), int(b))
        for layer, a, b in zip(run.network.layers, ends, ends[1:], strict=False)
    }
    rows = Rows(layers, problem.loss, problem.cost, int(whole.cost))
    left = _left(task, coupling, sizes, scores, x[:_ROWS], settings)
    found, _ = mixed(task.model, coupling, rows, scores, left, x[:256], floor=settings.floor)
    return found


def _left(
    task: Task,
    coupling: Coupling,
    sizes: Sizes,
    scores: Mapping[str, np.ndarray],
    x: Tensor,
    settings: PruneSettings,
) -> float:
    """The measured divergence of a trial over the sum of its scores."""
    trial = select(sizes, scores, _TRIAL * sizes.whole.parameters, floor=settings.floor)
    edit = coupling.edit(trial.removed)
    module = pruned(task.model, edit)
    compensated(task.model, module, edit, x, refit=settings.compensate, seed=settings.seed)
    with torch.no_grad():
        wanted = torch.cat([join(task.model(part)) for part in x.split(128)])
        found = torch.cat([join(module(part)) for part in x.split(128)])
    lost = float(per_sample(wanted, found, task.divergence, task.class_axis).mean())
    predicted = sum(float(scores[n][list(u)].sum()) for n, u in trial.removed.items())
    return lost / max(predicted, 1e-12)
