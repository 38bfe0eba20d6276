"""`prune`: a model with fewer channels, the files it is rebuilt from, and what it lost.

Stages (scores, cut, finetune) are resumable as those of a compression are, in a folder that a
compression may share: `compress` takes what `prune` gives as any other model.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import torch
from safetensors.numpy import load_file
from safetensors.numpy import save as packed
from torch import Tensor, nn

from bitwright.checkpoint import load_model
from bitwright.curvature import make_key
from bitwright.deploy import runtime
from bitwright.deploy.files import write
from bitwright.deploy.placeholders import export
from bitwright.errors import BitwrightError
from bitwright.files import put
from bitwright.network import answers
from bitwright.network.capture import capture
from bitwright.pipeline.budget import parse_budget
from bitwright.pipeline.compress import Result, finish
from bitwright.pipeline.judge import Judgement, answers_of, judge
from bitwright.pipeline.keep import (
    AUTO,
    PruneOptions,
    PruneSettings,
    bound_of,
    check_prune_settings,
    within_latency,
)
from bitwright.pipeline.measured import Progress, silent, with_test_rows
from bitwright.pipeline.mixed import mixed_selection
from bitwright.pipeline.run import Run
from bitwright.pipeline.settings import Options, Settings, known
from bitwright.pipeline.store import Store
from bitwright.pipeline.tasks import task_of
from bitwright.prune import (
    Coupling,
    Edit,
    Selection,
    Size,
    Sizes,
    best_share,
    compensated,
    coupled,
    implantable,
    pruned,
    read_edit,
    select,
)
from bitwright.prune import load as read_pruned
from bitwright.prune import save as save_pruned
from bitwright.prune import scores as unit_scores
from bitwright.prune import to_json as edit_json
from bitwright.report import pruning as page
from bitwright.report.summary import Summary
from bitwright.task import Task, fingerprint
from bitwright.train import Recipe, augment, finetune_float

#: bump when a stage computes something else from the same inputs
_VERSION = 1
#: rows that scores look at, and rows that compensation is fitted on
SCORE_ROWS, FIT_ROWS = 1024, 512


@dataclass(frozen=True)
class Pruned:
    """What pruning gave.

    Attributes:
        folder: with `pruned.safetensors`, `pruned.onnx`, `prune.json` and `pruning.html`.
        module: the pruned module, in evaluation mode.
        edit: what was cut.
        selection: units removed and units with implants, by group.
        coupling: of the model.
        before, after: sizes of the model and of the module.
        judgement: of the module on the test rows, against the model.
        history: held-out losses of the fine-tuning; empty without.
    """

    folder: Path
    module: nn.Module
    edit: Edit
    selection: Selection
    coupling: Coupling
    before: Size
    after: Size
    judgement: Judgement
    history: tuple[float, ...]

    @property
    def note(self) -> str:
        """A line for a report."""
        share = self.after.parameters / self.before.parameters
        return (
            f"pruned first: {share:.1%} of the parameters and "
            f"{self.after.macs / self.before.macs:.1%} of the multiply-accumulates are left; KL "
            f"of the pruned float network to the original {self.judgement.kl:.4f} on the test rows"
        )


def prune(
    model: nn.Module | Task,
    calibration: Tensor | Iterable[Any] | None = None,
    *,
    keep: str = "50%",
    out: str | Path,
    test: Tensor | tuple[Tensor, Tensor] | None = None,
    progress: Progress = silent,
    **options: Unpack[PruneOptions],
) -> Pruned:
    """Remove the channels, heads and widths whose removal loses least (HAP, arXiv 2101.08940).

    Args:
        model: a module (never changed), or a :class:`bitwright.Task` with everything in it.
        calibration, test: see :func:`bitwright.compress`.
        keep: of the parameters, `40%`; or of what `of` says.
        out: folder for the files; finished stages in it are reused.
        progress: called with a stage's name and the finished fraction.
        **options: fields of :class:`bitwright.pipeline.PruneSettings`: of, score, floor, multiple,
            implant, rank, compensate, skip, epochs, augment, temperature, rate, seed,
            calibration_rows, device.

    Raises:
        BitwrightError: the input is wrong, or channels of a layer cannot be cut; one line says
            what, where, and what to do.
    """
    task = task_of(model, calibration, test, options.get("seed", 0), "prune")
    own = known(PruneSettings, options, "prune")
    settings = check_prune_settings(PruneSettings(keep=str(keep), **own))
    return run_prune(task, settings, Path(out), progress)


def run_prune(
    task: Task,
    settings: PruneSettings,
    folder: Path,
    progress: Progress = silent,
    budget: str | None = None,
) -> Pruned:
    """:func:`prune` for a task that is checked; `budget` is that of the compression to follow."""
    task = with_test_rows(task)
    if settings.keep == AUTO and budget is None:
        raise BitwrightError("--keep auto weighs removal against bits; give --budget as well")
    generator = torch.Generator().manual_seed(settings.seed)
    drawn = torch.randperm(len(task.calibration), generator=generator)
    x = task.calibration[drawn[: settings.calibration_rows]]
    progress("couple", 0.0)
    coupling = coupled(task.model, x[:2], settings.skip)
    progress("couple", 1.0)
    sizes = Sizes(task.model, coupling.groups, x[:1], refit=settings.compensate)
    store = Store(folder)
    known = ("skip", "score", "seed", "calibration_rows")
    base = make_key(_VERSION, fingerprint(task), task.divergence, task.class_axis,
                    *(getattr(settings, name) for name in known))  # fmt: skip
    scores = _scores(task, settings, coupling, x, store, base, progress)
    if settings.keep == AUTO:
        assert budget is not None
        selection = mixed_selection(
            task, settings, coupling, sizes, scores, x, budget, folder, progress
        )
    else:
        selection = _selected(task, settings, coupling, sizes, scores, x, store, base, progress)
    asked = [str(getattr(settings, f.name)) for f in fields(settings)]
    key = make_key("cut", base, str(budget if settings.keep == AUTO else None), *asked)
    path = store.path("pruned.safetensors")
    history_path = store.path("finetune-pruned.json")
    if not store.done("cut", key, path.name):
        with store.stage("cut", key, path.name):
            module, edit = _cut(task, settings, coupling, selection, x, progress)
            history: list[float] = []
            if settings.epochs:
                checkpoint = store.path(f"prune-{key[:12]}.safetensors")
                module, history = _finetuned(task, settings, module, checkpoint, drawn, progress)
            put(history_path, json.dumps(history))
            save_pruned(module, edit, path)
    module = read_pruned(task.model, path)
    edit = read_edit(path) or Edit()
    history = _read_history(history_path)
    _export(module, x, store.path("pruned.onnx"))
    assert task.test is not None
    judgement = judge(task, answers(task.model, task.test), answers(module, task.test))
    found = Pruned(
        folder, module, edit, selection, coupling, sizes.whole,
        sizes.of(*selection.counts(), settings.rank), judgement, tuple(history),
    )  # fmt: skip
    _describe(found, task, settings, store)
    return found


def _read_history(path: Path) -> list[float]:
    """Held-out losses of the fine-tuning; none where the file is gone or damaged."""
    try:
        return [float(v) for v in json.loads(path.read_text())]
    except (OSError, ValueError, TypeError):
        return []  # only the page's curve is lost


def _scores(
    task: Task,
    settings: PruneSettings,
    coupling: Coupling,
    x: Tensor,
    store: Store,
    base: str,
    progress: Progress,
) -> dict[str, np.ndarray]:
    """Scores of all units; `prune-scores.safetensors`."""
    path = store.path("prune-scores.safetensors")
    key = make_key("prune-scores", base)
    if not store.done("prune-scores", key, path.name):
        with store.stage("prune-scores", key, path.name):
            progress("score", 0.0)
            found = unit_scores(
                task.model, coupling.groups, x[:SCORE_ROWS], score=settings.score,
                kind=task.divergence, class_axis=task.class_axis, seed=settings.seed,
            )  # fmt: skip
            put(path, packed({k: np.ascontiguousarray(v) for k, v in found.items()}))
            progress("score", 1.0)
    return dict(load_file(path))


def _selected(
    task: Task,
    settings: PruneSettings,
    coupling: Coupling,
    sizes: Sizes,
    scores: dict[str, np.ndarray],
    x: Tensor,
    store: Store,
    base: str,
    progress: Progress,
) -> Selection:
    can = [g.name for g in coupling.groups if implantable(task.model, g)]
    options: dict[str, Any] = {
        "floor": settings.floor,
        "multiple": settings.multiple,
        "rank": settings.rank,
        "implantable": can,
    }

    def chosen(bound: float, unit: str, implants: float) -> Selection:
        return select(sizes, scores, bound, unit, implant=implants, **options)

    unit, bound = bound_of(settings, sizes.whole)
    if unit != "latency":
        asked = make_key("implants", base, unit, bound, settings.implant, settings.compensate,
                         *(str(v) for v in options.values()))  # fmt: skip
        share = _implants(
            task, settings, coupling, lambda s: chosen(bound, unit, s), x, store, asked, progress
        )
        return chosen(bound, unit, share)

    def file(share: float, path: Path) -> Selection:
        found = chosen(share * sizes.whole.macs, "macs", settings.implant)
        _export(_made(task.model, coupling, found, settings)[0], x, path)
        return found

    return within_latency(file, lambda path: _export(task.model, x, path), x[:1], settings)


def _implants(
    task: Task,
    settings: PruneSettings,
    coupling: Coupling,
    choose: Callable[[float], Selection],
    x: Tensor,
    store: Store,
    key: str,
    progress: Progress,
) -> float:
    """The share of implants, by trial; `implants.json`."""
    if not settings.implant or not any(choose(settings.implant).implanted.values()):
        return 0.0
    path = store.path("implants.json")
    if not store.done("implants", key, path.name):
        with store.stage("implants", key, path.name):
            progress("try implants", 0.0)
            share, trials = best_share(
                task.model, coupling, choose, x[: 2 * FIT_ROWS], settings.implant,
                rank=settings.rank, refit=settings.compensate, kind=task.divergence,
                class_axis=task.class_axis, seed=settings.seed,
                progress=lambda f: progress("try implants", f),
            )  # fmt: skip
            said = {"share": share, "trials": [asdict(t) for t in trials]}
            put(path, json.dumps(said, indent=1))
    return float(json.loads(path.read_text())["share"])


def _made(
    model: nn.Module, coupling: Coupling, selection: Selection, settings: PruneSettings
) -> tuple[nn.Module, Edit]:
    """The module without what is removed, implants at zero."""
    edit = coupling.edit(selection.removed, selection.implanted, rank=settings.rank)
    return pruned(model, edit), edit


def _cut(
    task: Task,
    settings: PruneSettings,
    coupling: Coupling,
    selection: Selection,
    x: Tensor,
    progress: Progress,
) -> tuple[nn.Module, Edit]:
    """The module, its layers refitted to what they still read."""
    module, edit = _made(task.model, coupling, selection, settings)
    edit = compensated(
        task.model, module, edit, x[:FIT_ROWS], refit=settings.compensate,
        seed=settings.seed, progress=lambda f: progress("compensate", f),
    )  # fmt: skip
    return module, edit


def _finetuned(
    task: Task,
    settings: PruneSettings,
    module: nn.Module,
    checkpoint: Path,
    drawn: Tensor,
    progress: Progress,
) -> tuple[nn.Module, list[float]]:
    found, history = finetune_float(
        module,
        task.model,
        task.calibration[drawn],
        Recipe(
            epochs=settings.epochs, rate=settings.rate, temperature=settings.temperature,
            kind=task.divergence, class_axis=task.class_axis, seed=settings.seed,
            device=settings.device,
        ),
        augment=None if settings.augment is None else augment.parse(settings.augment),
        checkpoint=checkpoint,
        progress=lambda f: progress("finetune", f),
    )  # fmt: skip
    checkpoint.unlink(missing_ok=True)
    return found, history


def _export(module: nn.Module, x: Tensor, path: Path) -> None:
    """The float ONNX file, after running it.

    Raises:
        BitwrightError: it answers otherwise than the module.
    """
    graph = capture(module, x[:2])
    write(export(graph, tuple(x.shape[1:]), x.dtype), path)
    wanted = answers(module, x[:4])
    apart = float((wanted - runtime.outputs(runtime.session(path), x[:4])).abs().max())
    if not apart <= 1e-3 * max(1.0, float(wanted.abs().max())):
        raise BitwrightError(
            f"{path} differs from the pruned module by {apart:.3g}; its forward() depends on "
            "something torch.export does not see"
        )


def _describe(found: Pruned, task: Task, settings: PruneSettings, store: Store) -> None:
    """`prune.json` and `pruning.html`: what was done, for people and programs."""
    groups = [
        {
            "name": g.name,
            "kind": g.kind,
            "units": g.units,
            "removed": list(found.selection.removed.get(g.name, ())),
            "implanted": list(found.selection.implanted.get(g.name, ())),
            "members": [[m.path, "out" if m.out else "in"] for m in g.members],
        }
        for g in found.coupling.groups
    ]
    said: dict[str, Any] = {
        "schema": "bitwright.prune/1",
        "settings": {f.name: getattr(settings, f.name) for f in fields(settings)},
        "groups": groups,
        "whole": dict(found.coupling.whole),
        "size": {"before": vars(found.before), "after": vars(found.after)},
        "kl": [found.judgement.kl, found.judgement.kl_stderr],
        "metric": [found.judgement.metric, found.judgement.metric_stderr],
        "finetuning": list(found.history),
        "edit": edit_json(found.edit),
    }
    put(store.path("prune.json"), json.dumps(said, indent=1))
    page.write(said, task.metric_name, store.path("pruning.html"))


def load_pruned(model: nn.Module, folder: str | Path) -> nn.Module:
    """The pruned module of a folder of :func:`prune`, made of the model that was pruned.

    Args:
        model: from the same factory, its weights do not matter; left as it is.
        folder: or the path of its `pruned.safetensors`.

    Raises:
        BitwrightError: the file is missing, damaged or of another model.
    """
    path = Path(folder)
    return read_pruned(model, path / "pruned.safetensors" if path.is_dir() else path)


def load_network(spec: str, weights: Path | None = None) -> nn.Module:
    """:func:`bitwright.checkpoint.load_model`, with weights that may be those of a pruned module.

    Raises:
        BitwrightError: as both do.
    """
    tensors = weights is not None and weights.suffix == ".safetensors" and weights.is_file()
    if weights is not None and tensors and read_edit(weights) is not None:
        return read_pruned(load_model(spec), weights)
    return load_model(spec, weights)


def prune_and_compress(
    task: Task,
    found: Pruned,
    budget: str,
    folder: Path,
    name: str,
    command: str,
    progress: Progress = silent,
    **options: Unpack[Options],
) -> tuple[Result, Summary]:
    """Search, quantize and export what pruning has left: one folder and one report.

    The table's rows are judged against the pruned float network; a note tells how far the file is
    from the original.

    Args:
        task: of the original model; found: what :func:`run_prune` gave for it.
        budget, options: as for :func:`bitwright.compress`.
        name, command: for the report.
    """
    whole = with_test_rows(task)
    notes = (*whole.notes, found.note)
    small = replace(whole, model=found.module, notes=notes)
    own = known(Settings, options, "prune")
    run = Run(small, Settings(budget=parse_budget(budget), **own), folder, progress)
    run.check_goal()
    assert whole.test is not None
    last = judge(whole, answers(whole.model, whole.test), answers_of(run.onnx, whole.test))
    told = "" if last.metric is None else f", {whole.metric_name} {last.metric:.4f}"
    line = f"the file's KL to the original network is {last.kl:.4f} ± {last.kl_stderr:.4f}{told}"
    run.task = replace(small, notes=(*notes, line))
    return finish(run, f"{name}, pruned", command)


__all__ = ["Pruned", "load_network", "load_pruned", "prune", "prune_and_compress", "run_prune"]
