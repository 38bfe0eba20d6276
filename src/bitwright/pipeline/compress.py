"""`compress` and `load`: the whole road in one call, and the way back."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

from torch import Tensor, nn

from bitwright.allocate import Plan
from bitwright.curvature import Sensitivity
from bitwright.deploy import IntegerNetwork, Verification, artefact
from bitwright.errors import BitwrightError
from bitwright.files import put
from bitwright.pipeline.budget import parse_budget
from bitwright.pipeline.calls import compress_call
from bitwright.pipeline.judge import Judgement
from bitwright.pipeline.measured import Progress, silent
from bitwright.pipeline.run import Run
from bitwright.pipeline.settings import Options, Settings, known
from bitwright.pipeline.summarize import summarize
from bitwright.pipeline.tasks import task_of
from bitwright.report import page
from bitwright.report.summary import MethodRow, Summary, to_json
from bitwright.task import Task


@dataclass(frozen=True)
class Result:
    """What a compression gave.

    Attributes:
        folder: with `model.onnx`, `model.safetensors`, `report.html` and the rest.
        plan: widths of all channels.
        sensitivity: traces of all channels and edges, with errors.
        judgement: of the ONNX file on the test rows, against the float model.
        rivals: the table of the report: float, uniform, layers, channels, and the chosen one.
        verification: of the ONNX file against the integer reference.
        sizes: bytes by part and by file.
    """

    folder: Path
    plan: Plan
    sensitivity: Sensitivity
    judgement: Judgement
    rivals: tuple[MethodRow, ...]
    verification: Verification
    sizes: dict[str, int]

    def network(self) -> IntegerNetwork:
        """The network as the file computes it."""
        return load(self.folder)


def finish(run: Run, model: str, command: str | None = None) -> tuple[Result, Summary]:
    """Run every stage that is not done yet, write the report, return what came out."""
    run.check_goal()
    _ = run.preflight, run.limits  # what may refuse the goal comes first
    _ = run.sensitivity, run.plan, run.corrected, run.quantized, run.onnx, run.verification
    _ = run.accumulators  # a promise that does not hold stops here
    summary = summarize(run, model, command)
    put(run.store.path("summary.json"), to_json(summary))
    page.write(summary, run.store.path("report.html"))
    run.progress("report", 1.0)
    result = Result(
        folder=run.folder,
        plan=run.plan,
        sensitivity=run.sensitivity,
        judgement=run.judgements[run.plan.method].judgement,
        rivals=summary.methods,
        verification=run.verification,
        sizes=run.breakdown(),
    )
    return result, summary


def compress(
    model: nn.Module | Task,
    calibration: Tensor | Iterable[Any] | None = None,
    *,
    budget: str | None = None,
    out: str | Path,
    test: Tensor | tuple[Tensor, Tensor] | None = None,
    progress: Progress = silent,
    **options: Unpack[Options],
) -> Result:
    """Make a trained network small: a file that runs in a stock ONNX Runtime, and a report.

    Args:
        model: a module (never changed), or a :class:`bitwright.Task` with everything in it.
        calibration: [n, ...] rows as the model takes them, or batches of them (labels are kept for
            `max_drop`). A thousand are plenty.
        budget: `3bit` (mean bits a weight), `12.5%` (of the float ONNX file) or `180KB` (of the
            ONNX file, every byte counted); default `3bit`. Or give `max_kl` / `max_drop` instead.
        out: folder for the files; finished stages in it are reused.
        test: rows, or (rows, labels), to judge on; without them a fifth of `calibration` is held
            out.
        progress: called with a stage's name and the finished fraction.
        **options: fields of :class:`bitwright.Settings`: method, score, activations, ranges,
            granularity, equalize, rounding, levels, epochs, order, augment, temperature, rate,
            refit_head, seed, max_kl, max_drop, overrides, skip, evaluations, batch, processes,
            calibration_rows, device, max_bops, max_latency, profile, accumulator,
            accumulator_kind, accumulator_mode.

    Raises:
        BitwrightError: the input is wrong; one line says what, where, and what to do.
    """
    task = task_of(model, calibration, test, options.get("seed", 0), "compress")
    if budget is None and options.get("max_kl") is None and options.get("max_drop") is None:
        budget = "3bit"
    parsed = None if budget is None else parse_budget(budget)
    settings = Settings(budget=parsed, **known(Settings, options, "compress"))
    run = Run(task, settings, Path(out), progress)
    given = ["task"] if isinstance(model, Task) else ["model", "calibration"]
    given += [f"out={str(out)!r}"]
    if test is not None and not isinstance(model, Task):
        given.append("test=test")
    return finish(run, type(task.model).__name__, compress_call(given, settings))[0]


def load(folder: str | Path) -> IntegerNetwork:
    """The network of a run's folder (or of an artefact file), computing what the file computes.

    Args:
        folder: a run's folder, or the path of a `model.safetensors`.

    Raises:
        BitwrightError: there is no artefact, or it is damaged.
    """
    path = Path(folder)
    path = path / "model.safetensors" if path.is_dir() else path
    if not path.is_file():
        raise BitwrightError(f"there is no {path}; run `bitwright compress … --out {folder}` first")
    return IntegerNetwork(artefact.load(path).quantized)


__all__ = ["Result", "compress", "finish", "load"]
