"""The command line: parse, call the library, print, exit."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import re
import shlex
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bitwright.console import Bars, root_options
from bitwright.errors import BitwrightError

app = typer.Typer(
    name="bitwright",
    help="Make trained PyTorch networks small: every channel gets the bits it deserves.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

app.callback()(root_options)

Model = Annotated[
    str | None, typer.Option(help="FILE.py:factory or package.module:factory; or demo.")
]
Weights = Annotated[
    Path | None, typer.Option(help="Weights for the model: .safetensors, .pt, .th.")
]
DataSpec = Annotated[
    str | None, typer.Option("--data", help="npz:PATH, folder:PATH, FILE.py:factory, or demo.")
]
TaskSpec = Annotated[
    str | None, typer.Option("--task", help="FILE.py:task instead of --model and --data.")
]
Out = Annotated[Path, typer.Option(help="Folder of the run; finished stages in it are reused.")]
BudgetText = Annotated[
    str | None,
    typer.Option("--budget", help="3bit (mean), 12.5% of the float file, or 180KB. Default 3bit."),
]
Method = Annotated[
    str,
    typer.Option(
        help="From predicted losses: channels (use this), layers, uniform, hawq (V1), pareto "
        "(HAWQ-V2), ilp (HAWQ-V3). By evaluating plans, in minutes: local-moves (the best of these "
        "on larger networks), cw-hawq and cross-entropy (no better than channels), random-ratios, "
        "haq (far worse)."
    ),
]
Score = Annotated[
    str,
    typer.Option(
        help="Predicted loss of a channel: actual-error, trace, eigenvalue, fisher or measured."
    ),
]
MaxDrop = Annotated[
    float | None, typer.Option(help="Smallest file that loses at most so many points.")
]
MaxKl = Annotated[float | None, typer.Option(help="Smallest file within so much KL (nats).")]
MaxBops = Annotated[
    str | None,
    typer.Option(help="Bound on Σ MACs × weight bits × activation bits: 300M, 1.2G, 3T."),
]
MaxLatency = Annotated[
    str | None,
    typer.Option(help="Bound on the sum of the layers' times: 800us, 3ms. Measured here, or:"),
]
ProfileFile = Annotated[
    str | None,
    typer.Option("--profile", help="profile.json of `bitwright profile`, with those times."),
]
Overrides = Annotated[Path | None, typer.Option(help="YAML: bounds of layers, float, ties.")]
Activations = Annotated[str, typer.Option(help="Mean bits, 2 to 8; auto (with --max-bops); float.")]
Rounding = Annotated[
    str,
    typer.Option(help="nearest; feedback: weights make up for each other's errors; or learned."),
]
Epochs = Annotated[int, typer.Option(help="Of fine-tuning; 0 skips it.")]
Order = Annotated[
    str,
    typer.Option(help="Of fine-tuning: all layers at once, or hawq's (measured no better)."),
]
Granularity = Annotated[
    str,
    typer.Option(
        help="Of activations' widths below 8 bits: edge, or channel (loses less, runs slower)."
    ),
]
Ranges = Annotated[
    str | None,
    typer.Option(help="Of activations: curvature (below 8 bits), squared (else) or percentile."),
]
Equalize = Annotated[
    float,
    typer.Option(help="0 to 1: how far ranges of activations' channels are made equal."),
]
Augment = Annotated[
    str | None, typer.Option(help="Images while fine-tuning: flip, crop4, mixup, or flip,crop4.")
]
Temperature = Annotated[float, typer.Option(help="Of the answers that fine-tuning compares.")]
Rate = Annotated[float, typer.Option(help="Of fine-tuning, relative to each layer's mean step.")]
RefitHead = Annotated[
    bool,
    typer.Option(help="Refit the classifier at last, kept only where held-out rows gain."),
]
AccumulatorBits = Annotated[
    int | None,
    typer.Option("--accumulator", help="Bits that every sum of products must fit, 12 to 32."),
]
AccumulatorKind = Annotated[
    str,
    typer.Option(help="What a sum that does not fit does: wrap, pairs (vpmaddubsw), saturate."),
]
AccumulatorMode = Annotated[
    str,
    typer.Option(help="guaranteed: no input overflows, a theorem; data: no calibration row does."),
]
Seed = Annotated[int, typer.Option(help="Of every random choice.")]
Skip = Annotated[
    list[str] | None,
    typer.Option(help="Layer to leave in float (a name, or a prefix ending in .)."),
]
Evaluations = Annotated[int, typer.Option(help="Plans that a search evaluates.")]
Batch = Annotated[int, typer.Option(help="Plans that a search proposes at a time.")]
Processes = Annotated[
    int, typer.Option(help="That evaluate a batch; 0: as many as there are cores.")
]
Rows = Annotated[int, typer.Option("--calibration-rows", help="Used at most.")]
Device = Annotated[str, typer.Option(help="cpu or cuda: where measuring and fine-tuning run.")]
Threads = Annotated[int, typer.Option(help="Of the runtime; 0: as it chooses.")]
Repeats = Annotated[int, typer.Option(help="Runs behind each median.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]

_REMEMBERED = (
    "model", "weights", "data", "task", "budget", "method", "max_drop", "max_kl", "overrides",
    "activations", "epochs", "order", "seed", "skip", "evaluations", "calibration_rows", "device",
    "max_bops", "max_latency", "profile", "score", "rounding", "ranges", "granularity", "batch",
    "processes", "augment", "temperature", "rate", "equalize", "refit_head",
    "accumulator", "accumulator_kind", "accumulator_mode",
)  # fmt: skip


#: options that runs of earlier versions did not have
_YOUNGER = {
    "ranges": None, "granularity": "edge", "refit_head": False, "accumulator": None,
    "accumulator_kind": "wrap", "accumulator_mode": "guaranteed",
}  # fmt: skip


def _stage(
    help_text: str, act: Callable[[Any, Console, str], None], **fixed: Any
) -> Callable[..., None]:
    """A command with the options of a run that does `act` on it; `fixed` ones are not asked for."""

    def command(
        context: typer.Context,
        out: Out,
        model: Model = None,
        weights: Weights = None,
        data: DataSpec = None,
        task: TaskSpec = None,
        budget: BudgetText = None,
        method: Method = "channels",
        score: Score = "actual-error",
        max_drop: MaxDrop = None,
        max_kl: MaxKl = None,
        overrides: Overrides = None,
        activations: Activations = "8",
        epochs: Epochs = 0,
        order: Order = "all",
        seed: Seed = 0,
        skip: Skip = None,
        evaluations: Evaluations = 150,
        batch: Batch = 1,
        processes: Processes = 0,
        calibration_rows: Rows = 1024,
        device: Device = "cpu",
        max_bops: MaxBops = None,
        max_latency: MaxLatency = None,
        profile: ProfileFile = None,
        rounding: Rounding = "nearest",
        ranges: Ranges = None,
        granularity: Granularity = "edge",
        equalize: Equalize = 0.0,
        augment: Augment = None,
        temperature: Temperature = 4.0,
        rate: Rate = 1e-3,
        refit_head: RefitHead = False,
        accumulator: AccumulatorBits = None,
        accumulator_kind: AccumulatorKind = "wrap",
        accumulator_mode: AccumulatorMode = "guaranteed",
        quiet: Quiet = False,
    ) -> None:
        given = {k: v for k, v in locals().items() if k in _REMEMBERED}
        if model is None and task is None:
            given = _remembered(out, given, _typed(context))
        _perform(given | fixed, out, quiet, act)

    command.__doc__ = help_text
    return command


def _perform(
    given: dict[str, Any],
    out: Path,
    quiet: bool,
    act: Callable[[Any, Console, str], None],
    goal: bool = True,
) -> None:
    from bitwright.curvature import processes
    from bitwright.pipeline import Run

    given = {k: str(v) if isinstance(v, Path) else v for k, v in given.items()}
    with (
        processes.started() as group,
        tempfile.TemporaryDirectory() as scratch,
        _interruptible(),
        Bars(quiet or group.rank > 0) as bars,
    ):
        if group.size > 1:
            out = _shared(out, act, group, Path(scratch) / "run")
        task, settings, name = _assemble(given)
        run = Run(task, settings, out, bars.update)
        for note in run.task.notes:
            bars.print(note)
        with _without_logs():
            _ = run.network  # nothing is written for a model that cannot be traced
        if goal and act not in (_preflight, _measure):
            run.check_goal()
        _ = run.preflight
        _remember(run.store.path("run.json"), given)
        act(run, Console(quiet=True) if group.rank else bars.console, name)


def _shared(out: Path, act: Callable[[Any, Console, str], None], group: Any, scratch: Path) -> Path:
    """The folder of one of several processes: the first one's is the run's, others have copies."""
    if act not in (_measure, _finetune):
        raise BitwrightError(
            f"{group.size} processes (torchrun) can only `measure` and `finetune`; run the other "
            "stages in one"
        )
    if act is _finetune and not (out / "quantized.safetensors").is_file():
        raise BitwrightError(
            f"{out} holds no quantized network that {group.size} processes could fine-tune: run "
            "`bitwright quantize` with these options first, in one process"
        )
    if group.rank and out.is_dir():
        shutil.copytree(out, scratch)
    group.together()  # nobody writes before all have copied
    return scratch if group.rank else out


@contextmanager
def _without_logs() -> Iterator[None]:
    """What torch.export logs about a model that it cannot trace; the error says it in a line."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Control-C ends with a line and status 130 (typer would say "Aborted!" and 1)."""
    try:
        yield
    except KeyboardInterrupt:
        print("bitwright: interrupted; the same command continues", file=sys.stderr)
        raise typer.Exit(130) from None


def _typed(context: typer.Context) -> set[str]:
    """Names of the run's options that stand on the command line."""
    sources = {k: context.get_parameter_source(k) for k in _REMEMBERED}
    return {k for k, source in sources.items() if source and source.name == "COMMANDLINE"}


def _remembered(out: Path, given: dict[str, Any], typed: set[str]) -> dict[str, Any]:
    """The options of the run in `out`, but for those typed; a stage command need not repeat them.

    A goal typed now replaces the goal of then.
    """
    path = out / "run.json"
    try:
        found = _YOUNGER | json.loads(path.read_text())
        kept = {k: found[k] for k in _REMEMBERED if k not in typed}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise BitwrightError(
            f"give --model and --data (or --task): {out} holds no earlier run to take them from"
        ) from error
    for name, value in kept.items():
        if not _may_be(name, value):
            raise BitwrightError(
                f"{path} is damaged: {name} is {value!r}; give --model and --data (or --task) again"
            )
    goals = {"budget", "max_drop", "max_kl"}
    if typed & goals:
        kept |= dict.fromkeys(goals - typed)
    return {**given, **kept}


def _may_be(name: str, value: object) -> bool:
    """Whether an option can have this value."""
    if name in ("epochs", "seed", "evaluations", "batch", "processes", "calibration_rows"):
        return isinstance(value, int) and not isinstance(value, bool)
    if name == "refit_head":
        return isinstance(value, bool)
    if name == "accumulator":
        return value is None or (isinstance(value, int) and not isinstance(value, bool))
    if name == "skip":
        return value is None or (isinstance(value, list) and all(isinstance(v, str) for v in value))
    if name in ("max_drop", "max_kl", "temperature", "rate", "equalize"):
        optional = name in ("max_drop", "max_kl")
        return (optional and value is None) or isinstance(value, int | float)
    return isinstance(value, str) or (
        value is None
        and name
        not in (
            *("method", "score", "activations", "rounding", "order", "device", "granularity"),
            *("accumulator_kind", "accumulator_mode"),
        )
    )


def _remember(path: Path, given: dict[str, Any]) -> None:
    from bitwright.files import put

    put(path, json.dumps(given, indent=1, sort_keys=True))


def _assemble(given: dict[str, Any]) -> tuple[Any, Any, str]:
    """Task, settings and the model's name from options."""
    from bitwright.pipeline.budget import parse_budget
    from bitwright.pipeline.settings import Settings, check_settings, read_overrides

    activations: float | str | None = None
    if given["activations"] == "auto":
        activations = "auto"
    elif given["activations"] != "float":
        try:
            activations = float(given["activations"])
        except ValueError:
            raise BitwrightError(
                f"--activations must be 2 to 8, auto or float, not {given['activations']!r}"
            ) from None
    goal = given["budget"]
    if goal is None and given["max_kl"] is None and given["max_drop"] is None:
        goal = "3bit"
    settings = check_settings(
        Settings(
            budget=None if goal is None else parse_budget(goal),
            method=given["method"],
            score=given["score"],
            activations=activations,
            epochs=given["epochs"],
            order=given["order"],
            seed=given["seed"],
            max_kl=given["max_kl"],
            max_drop=given["max_drop"],
            overrides=read_overrides(Path(given["overrides"])) if given["overrides"] else {},
            skip=tuple(given["skip"] or ()),
            evaluations=given["evaluations"],
            batch=given["batch"],
            processes=given["processes"],
            calibration_rows=given["calibration_rows"],
            device=given["device"],
            max_bops=given["max_bops"],
            max_latency=given["max_latency"],
            profile=given["profile"],
            rounding=given["rounding"],
            ranges=given["ranges"],
            granularity=given["granularity"],
            equalize=given["equalize"],
            augment=given["augment"],
            temperature=given["temperature"],
            rate=given["rate"],
            refit_head=given["refit_head"],
            accumulator=given["accumulator"],
            accumulator_kind=given["accumulator_kind"],
            accumulator_mode=given["accumulator_mode"],
        )
    )
    task, name = _task(given)
    return task, settings, name


def _task(given: dict[str, Any]) -> tuple[Any, str]:
    """The task and the model's name from options."""
    from bitwright.data import load_data
    from bitwright.pipeline import load_network
    from bitwright.task import assemble, load_task

    if given["task"] is not None:
        if given["model"] or given["data"]:
            raise BitwrightError("give --task, or --model and --data, not both")
        return load_task(given["task"]), given["task"]
    if given["model"] is None:
        raise BitwrightError("give --model and --data, or --task")
    if given["data"] is None:
        raise BitwrightError("--data is missing: npz:PATH, folder:PATH, FILE.py:factory or demo")
    weights = Path(given["weights"]) if given["weights"] else None
    model = load_network(given["model"], weights)
    data = load_data(given["data"], seed=given["seed"])
    task = assemble(model, data, source=given["data"])
    return task, "embedded default" if given["model"] == "demo" else type(model).__name__


# ------------------------------------------------------------------------------- what stages print


def _compress(run: Any, console: Console, name: str) -> None:
    from bitwright.pipeline import finish

    result, summary = finish(run, name, _command())
    _print_compressed(console, run.folder, result, summary, run.accumulators)


def _print_compressed(
    console: Console, folder: Path, result: Any, summary: Any, bounds: Sequence[str] = ()
) -> None:
    _print_table(console, summary)
    sizes = result.sizes
    check = result.verification
    console.print(
        f"verified: {check.equal} of {check.tensors} integer tensors equal in the runtime on "
        f"{check.rows} rows, same class on {check.same_class:.2%}, {check.qlinear_convolutions} of "
        f"{check.convolutions} convolutions fused"
        + ("" if check.ok else f"; FAILED, first difference: {_first(check)}")
    )
    _print_lines(console, bounds)
    for file in ("model.safetensors", "model.onnx"):
        console.print(f"{folder / file}  {sizes[file]:,} bytes", soft_wrap=True)
    console.print(f"{folder / 'report.html'}", soft_wrap=True)
    if not check.ok:
        raise typer.Exit(1)


def _print_lines(console: Console, lines: Sequence[str]) -> None:
    for line in lines:
        console.print(line, soft_wrap=True, highlight=False, markup=False)


def _first(check: Any) -> str:
    if check.differing:
        return str(check.differing[0])
    if check.changed:
        return f"{check.changed} rows answered otherwise by the file as it is"
    return "an output or a layer not fused"


def _command() -> str:
    return shlex.join(["bitwright", *sys.argv[1:]])


def _print_table(console: Console, summary: Any) -> None:
    table = Table(title=f"{summary.model}: {summary.target}")
    columns = ("method", "bits", "bytes", "KL to float", summary.metric_name, "agree", "ms")
    for column in columns:
        table.add_column(column, justify="left" if column == "method" else "right")
    for row in summary.methods:
        table.add_row(
            Text(row.name, style="bold" if row.chosen else ""),
            "32" if row.mean_bits is None else f"{row.mean_bits:.2f}",
            f"{row.bytes:,}",
            "–" if row.kl is None else f"{row.kl:.4f} ± {row.kl_stderr:.4f}",
            "–" if row.metric is None else f"{100 * row.metric:.2f} %",
            "–" if row.agreement is None else f"{100 * row.agreement:.2f} %",
            "–" if row.latency_ms is None else f"{row.latency_ms:.2f}",
        )
    console.print(table)


def _preflight(run: Any, console: Console, name: str) -> None:
    found = run.preflight
    console.print(
        f"{name}: {found.weights:,} weights in {found.layers} layers, {found.edges} 8-bit edges; "
        f"float ONNX file {found.float_bytes:,} bytes, within {found.error:.2g} of the model"
    )
    if found.skipped:
        console.print(f"left in float: {', '.join(found.skipped)}")
    console.print(
        f"measuring will take about {found.time_s:.0f} s and {found.memory_bytes / 1e6:,.0f} MB"
    )


def _measure(run: Any, console: Console, name: str) -> None:
    from bitwright.curvature import processes

    sensitivity = run.sensitivity
    if processes.group().rank:
        return
    table = Table(title=f"{name}: Hessian trace of the KL to float")
    for column in ("layer", "trace", "± probes", "± data", "per weight"):
        table.add_column(column, justify="left" if column == "layer" else "right")
    for layer in run.network.layers:
        found = sensitivity.layers[layer.name]
        total = float(found.value.sum())
        table.add_row(
            layer.name,
            f"{total:.4g}",
            f"{(found.stderr_probe**2).sum() ** 0.5:.2g}",
            f"{found.stderr_data.sum():.2g}",
            f"{total / layer.weights:.3g}",
        )
    console.print(table)
    console.print(str(run.store.path("sensitivity.safetensors")), soft_wrap=True)


def _search(run: Any, console: Console, name: str) -> None:
    from bitwright.pipeline.summarize import limit_lines

    plan = run.plan
    console.print(
        f"{plan.method}: {plan.cost:,} bits, {plan.cost / run.network.weights:.4f} a weight, "
        f"predicted loss {plan.loss:.4g}"
    )
    if run.within_error is not None:
        console.print(
            f"{run.within_error:.0%} of the weights would get another width if the predicted "
            "losses came out one standard error off (more calibration rows make them surer)"
        )
    for line in limit_lines(run):
        console.print(line)
    console.print(str(run.store.path("plan.json")), soft_wrap=True)


def _profile(threads: int, repeats: int, run: Any, console: Console, name: str) -> None:
    from bitwright.cost import calls

    found = run.profile(threads, repeats)
    count = Counter(shape for _, shape in calls(run.network))
    rows = [row for row in found.rows if row.shape in count]
    widths = [w.bits for w in rows[0].int8]
    table = Table(box=None, padding=(0, 1, 0, 0))
    against = [f"{b}:{widths[-1]}" for b in widths]
    for column in ("layer shape", "calls", "float µs", "int8 µs", "p95", *against):
        table.add_column(column, justify="left" if column == "layer shape" else "right")
    for row in rows:
        *narrow, widest = [w.time for w in row.int8]
        table.add_row(
            str(row.shape),
            str(count[row.shape]),
            f"{1e6 * row.float32.median_s:.1f}",
            f"{1e6 * row.int8_s:.1f}",
            f"{1e6 * widest.p95_s:.1f}",
            *(f"{t.median_s / max(widest.median_s, 1e-9):.2f}" for t in (*narrow, row.control)),
        )
    console.print(f"{name}: {found.machine}, {found.repeats} repeats", soft_wrap=True)
    console.print(table)
    top = widths[-1]
    console.print(
        f"{', '.join(against[:-1])}: time at these bits over time at {top}; {against[-1]}: of a "
        f"second copy at {top}, the noise. All widths are unpacked to 8 bits at load: fewer bits "
        "make the file smaller, not the network faster.",
        soft_wrap=True,
    )
    for form, seconds, total in (
        ("float", found.whole.float_s, found.whole.float_sum_s),
        ("8-bit", found.whole.int8_s, found.whole.int8_sum_s),
    ):
        console.print(
            f"whole network, {form}: {1e3 * seconds:.3f} ms, {seconds / max(total, 1e-9):.2f} of "
            f"the {1e3 * total:.3f} ms of its layers"
        )
    console.print(str(run.store.path("profile.json")), soft_wrap=True)


def _bench(threads: int, repeats: int, run: Any, console: Console, name: str) -> None:
    found = run.benchmark(threads, repeats)
    best = min((f for f in found.forms if f.name.startswith("static")), key=lambda f: f.latency_s)
    table = Table(title=f"{name}: {found.machine}, {repeats} rounds in turns")
    for column in (
        "form",
        "median ms",
        "p95",
        "of float",
        "of int8",
        "load ms",
        "bytes",
        "peak MB",
        "convs int8",
    ):
        table.add_column(column, justify="left" if column == "form" else "right")
    for form in found.forms:
        table.add_row(
            form.name,
            f"{1e3 * form.latency_s:.3f}",
            f"{1e3 * form.p95_s:.3f}",
            f"{form.ratio:.2f}",
            f"{found.ratio(form.name, best.name):.2f}",
            f"{1e3 * form.load_s:.1f}",
            f"{form.size_bytes:,}",
            f"{form.peak_bytes / 1e6:.1f}",
            "{} of {}".format(*form.convolutions),
        )
    console.print(table)
    console.print(
        f"of int8: of the faster static int8 ({best.name}); load: processor time; peak: of a "
        "process that loads the file and runs one row, without the runtime itself",
        soft_wrap=True,
    )
    console.print(str(run.store.path("bench.json")), soft_wrap=True)


def _quantize(run: Any, console: Console, name: str) -> None:
    _ = run.corrected
    console.print(str(run.store.path("quantized.safetensors")), soft_wrap=True)


def _finetune(run: Any, console: Console, name: str) -> None:
    _ = run.quantized
    console.print(str(run.store.path("model.safetensors")), soft_wrap=True)


def _refit_head(run: Any, console: Console, name: str) -> None:
    from bitwright.pipeline.summarize import refit_line

    console.print(refit_line(run))
    _ = run.onnx
    for file in ("model.safetensors", "model.onnx"):
        console.print(str(run.store.path(file)), soft_wrap=True)


def _export(run: Any, console: Console, name: str) -> None:
    path = run.onnx
    console.print(f"{path}  {path.stat().st_size:,} bytes", soft_wrap=True)


def _verify(run: Any, console: Console, name: str) -> None:
    check = run.verification
    console.print(
        f"{'equal' if check.ok else 'DIFFERENT'}: {check.equal} of {check.tensors} integer tensors "
        f"equal on {check.rows} rows; same class on {check.same_class:.2%}; "
        f"{check.qlinear_convolutions} of {check.convolutions} convolutions fused"
    )
    for d in check.differing:
        console.print(f"  {d}", soft_wrap=True, highlight=False, markup=False)
    _print_lines(console, run.accumulators)
    if not check.ok:
        raise typer.Exit(1)


def _evaluate(run: Any, console: Console, name: str) -> None:
    from bitwright.pipeline.summarize import summarize

    _print_table(console, summarize(run, name, _command()))


_COMMANDS: dict[str, tuple[str, Callable[[Any, Console, str], None]]] = {
    "compress": ("All stages: from a trained network to a small file that runs.", _compress),
    "preflight": ("Export the float model, run it, compare; estimate time and memory.", _preflight),
    "measure": ("Hessian traces of every channel and activation.", _measure),
    "search": ("Choose the widths.", _search),
    "quantize": ("Round the weights and correct every layer's outputs.", _quantize),
    "finetune": ("Train the quantized network towards the float model's answers.", _finetune),
    "refit-head": (
        "Refit the classifier to the float model's answers, write both files.",
        _refit_head,
    ),
    "export": ("Write the packed artefact and the ONNX file.", _export),
    "verify": ("Prove the ONNX file equal to the integer reference, tensor by tensor.", _verify),
    "evaluate": ("Judge the file beside float, uniform and layers.", _evaluate),
    "report": ("Write the report.", _compress),
}
for _name, (_help, _act) in _COMMANDS.items():
    _fixed = {"refit_head": True} if _act is _refit_head else {}
    app.command(_name, help=_help)(_stage(_help, _act, **_fixed))


def _defaults() -> dict[str, Any]:
    """Options of a run that nobody typed."""
    return dict.fromkeys(_REMEMBERED) | {
        "method": "channels", "epochs": 0, "order": "all", "seed": 0, "activations": "8",
        "evaluations": 150, "batch": 1, "processes": 0, "calibration_rows": 1024, "device": "cpu",
        "score": "actual-error", "rounding": "nearest", "temperature": 4.0, "rate": 1e-3,
        "equalize": 0.0, **_YOUNGER,
    }  # fmt: skip


@app.command()
def demo(
    out: Out = Path("build/demo"),
    budget: BudgetText = None,
    method: Method = "channels",
    epochs: Epochs = 0,
    seed: Seed = 0,
    quiet: Quiet = False,
) -> None:
    """Compress the embedded default: a small residual network on Fashion-MNIST."""
    given = {
        **_defaults(), "model": "demo", "data": "demo", "budget": budget, "method": method,
        "epochs": epochs, "seed": seed,
    }  # fmt: skip
    _perform(given, out, quiet, _compress)


@app.command()
def prune(
    out: Out,
    model: Model = None,
    weights: Weights = None,
    data: DataSpec = None,
    task: TaskSpec = None,
    keep: Annotated[
        str, typer.Option(help="40% of --of; 180KB; 3ms here; auto: as --budget makes best.")
    ] = "50%",
    of: Annotated[
        str, typer.Option(help="parameters, macs, bytes (float32) or latency (measured here).")
    ] = "parameters",
    score: Annotated[str, typer.Option(help="removal (use this) or trace (HAP's).")] = "removal",
    floor: Annotated[float, typer.Option(help="Share of each layer's channels that stay.")] = 0.05,
    multiple: Annotated[
        int, typer.Option(help="Of what stays of larger layers; 16 for a faster file.")
    ] = 1,
    implant: Annotated[
        float, typer.Option(help="Largest share of the channels taken that get implants.")
    ] = 0.0,
    rank: Annotated[int, typer.Option(help="Of implants; 0: a 1×1 convolution.")] = 0,
    compensate: Annotated[
        bool, typer.Option(help="Refit layers to the inputs that they still have.")
    ] = True,
    skip: Annotated[list[str] | None, typer.Option(help="Layer to leave whole.")] = None,
    epochs: Epochs = 0,
    augment: Augment = None,
    temperature: Temperature = 4.0,
    rate: Annotated[float, typer.Option(help="Of fine-tuning, relative to weights.")] = 1e-3,
    seed: Seed = 0,
    calibration_rows: Rows = 1024,
    device: Device = "cpu",
    budget: Annotated[
        str | None, typer.Option(help="Quantize what is left as well: 3bit, 12.5%, 180KB.")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Remove the channels, heads and widths whose removal loses least, then quantize if asked."""
    from bitwright.pipeline import PruneSettings, prune_and_compress, run_prune
    from bitwright.pipeline.keep import check_prune_settings

    given = locals()
    names = ("keep", "of", "score", "floor", "multiple", "implant", "rank", "compensate",
             "epochs", "augment", "temperature", "rate", "seed", "calibration_rows",
             "device")  # fmt: skip
    settings = check_prune_settings(
        PruneSettings(**{k: given[k] for k in names}, skip=tuple(skip or ()))
    )
    with _interruptible(), Bars(quiet) as bars:
        whole, name = _task(given)
        found = run_prune(whole, settings, out, bars.update, budget)
        _print_pruned(bars.console, found, whole.metric_name)
        if budget is not None:
            result, summary = prune_and_compress(
                whole, found, budget, out, name, _command(), bars.update
            )
            _print_compressed(bars.console, out, result, summary)


def _print_pruned(console: Console, found: Any, metric: str) -> None:
    before, after = found.before, found.after
    for unit in ("parameters", "macs", "bytes"):
        share = after[unit] / max(before[unit], 1)
        console.print(f"{unit}: {before[unit]:,.0f} -> {after[unit]:,.0f} ({share:.1%})")
    judged = found.judgement
    told = "" if judged.metric is None else f", {metric} {judged.metric:.4f}"
    console.print(f"KL to the original {judged.kl:.4f} ± {judged.kl_stderr:.4f}{told}")
    for file in ("pruned.safetensors", "pruned.onnx", "prune.json", "pruning.html"):
        console.print(str(found.folder / file), soft_wrap=True)


@app.command("train-multibit")
def train_multibit(
    out: Out,
    model: Model = None,
    weights: Weights = None,
    data: DataSpec = None,
    task: TaskSpec = None,
    bits: Annotated[float, typer.Option(help="Stored bits a weight, everything counted.")] = 1.0,
    loops: Annotated[int, typer.Option(help="Of pruning, bases and coordinates.")] = 4,
    epochs: Annotated[int, typer.Option(help="Of bases, and of coordinates, in a loop.")] = 1,
    straight: Annotated[int, typer.Option(help="Straight-through epochs at the end.")] = 2,
    group: Annotated[
        list[str] | None,
        typer.Option(help="LAYER=kernel, pixel, channel or a number of weights that share bases."),
    ] = None,
    size: Annotated[int, typer.Option(help="About so many weights share bases elsewhere.")] = 64,
    most: Annotated[int, typer.Option(help="Bases that a group begins with, 1 to 8.")] = 6,
    curvature: Annotated[str, typer.Option(help="Of pruning: amsgrad, gauss-newton.")] = "amsgrad",
    activation_bases: Annotated[
        int, typer.Option(help="Binary bases of what each layer reads, 1 to 4; 0: float.")
    ] = 0,
    labels: Annotated[
        bool, typer.Option("--labels", help="Learn from labels, not from the float model.")
    ] = False,
    batch: Annotated[int, typer.Option(help="Rows in a step.")] = 128,
    rate: Annotated[float, typer.Option(help="Of coordinates, relative to their mean.")] = 1e-2,
    augment: Augment = None,
    temperature: Temperature = 4.0,
    skip: Skip = None,
    seed: Seed = 0,
    quiet: Quiet = False,
) -> None:
    """Train weights as few signed bases (ALQ): down to less than a bit a weight."""
    from bitwright.multibit import Recipe
    from bitwright.pipeline import MultibitSettings
    from bitwright.pipeline import train_multibit as run

    given = locals()
    recipe = Recipe(bits=bits, loops=loops, bases=epochs, coordinates=epochs, straight=straight,
                    batch=batch, rate=rate, curvature=curvature, seed=seed)  # fmt: skip
    groups = dict(g.partition("=")[::2] for g in group or ())
    settings = MultibitSettings(recipe, groups, size, most, tuple(skip or ()), labels,
                                temperature, augment, activation_bases)  # fmt: skip
    with _interruptible(), Bars(quiet) as bars:
        whole, _ = _task(given)
        found = run(whole, settings, out, bars.update)
        bars.console.print(f"{found.bits:.3f} bits a weight: signs, coordinates, counts of bases")
        if found.judgement is not None:
            judged = found.judgement
            told = "" if judged.metric is None else f", {whole.metric_name} {judged.metric:.4f}"
            bars.console.print(f"KL to the original {judged.kl:.4f} ± {judged.kl_stderr:.4f}{told}")
        for name, spent in found.sizes.items():
            bars.console.print(f"{out / name}: {spent:,} bytes", soft_wrap=True)
        bars.console.print(str(out / "multibit.html"), soft_wrap=True)


@app.command()
def profile(
    context: typer.Context,
    model: Model = None,
    weights: Weights = None,
    data: DataSpec = None,
    task: TaskSpec = None,
    skip: Skip = None,
    overrides: Overrides = None,
    out: Out = Path("build/profile"),
    threads: Threads = 1,
    repeats: Repeats = 100,
    quiet: Quiet = False,
) -> None:
    """Time every layer shape in the runtime here; `search --max-latency` reads the table."""
    for name, value, least in (("--threads", threads, 0), ("--repeats", repeats, 1)):
        if value < least:
            raise BitwrightError(f"{name} must be {least} or more, not {value}")
    given = {
        **_defaults(), "model": model, "weights": weights, "data": data, "task": task,
        "skip": skip, "overrides": overrides,
    }  # fmt: skip
    if model is None and task is None:
        given = _remembered(out, given, _typed(context))
    _perform(given, out, quiet, partial(_profile, threads, repeats), goal=False)


@app.command()
def inspect(
    file: Annotated[
        Path, typer.Argument(help="model.safetensors, model.onnx, plan.json, sensitivity.…")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> None:
    """Say what is inside a file, with the widths of its weights."""
    from bitwright.console import print_inspection
    from bitwright.report import inspection

    found = inspection.inspect(file)
    if as_json:
        print(json.dumps(inspection.to_data(found), indent=1))
    else:
        print_inspection(Console(highlight=False, markup=False), found)


@app.command()
def overflow(
    file: Annotated[Path, typer.Argument(help="model.safetensors, or the folder of a run.")],
    accumulator: Annotated[int, typer.Option(help="Bits of the accumulator, 12 to 32.")] = 16,
    accumulator_kind: AccumulatorKind = "wrap",
) -> None:
    """Prove that no input can overflow an accumulator, layer by layer; or name the smallest fix."""
    from bitwright import overflow as sums
    from bitwright.pipeline import load

    found = sums.require(load(file).quantized, sums.Accumulator(accumulator, accumulator_kind))
    for line in sums.lines(found):
        print(line)


@app.command()
def bench(
    context: typer.Context,
    out: Out,
    threads: Threads = 1,
    repeats: Repeats = 200,
    quiet: Quiet = False,
) -> None:
    """Time the file of a run beside float and the runtime's own static int8; bytes and memory."""
    for name, value, least in (("--threads", threads, 0), ("--repeats", repeats, 1)):
        if value < least:
            raise BitwrightError(f"{name} must be {least} or more, not {value}")
    given = _remembered(out, _defaults(), _typed(context))
    _perform(given, out, quiet, partial(_bench, threads, repeats))


@app.command("convert-to")
def convert_to(
    form: Annotated[
        str, typer.Argument(metavar="FORMAT", help="c, compressed-tensors or torchao.")
    ],
    file: Annotated[Path, typer.Argument(help="model.safetensors of a run.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder; default: FORMAT beside the file.")
    ] = None,
) -> None:
    """Write an artefact in the form of another program."""
    from bitwright.deploy import artefact, formats

    written = formats.convert_to(form, artefact.load(file).quantized, out or file.parent / form)
    console = Console(highlight=False, markup=False)
    for note in written.notes:
        console.print(note, soft_wrap=True)
    for path in written.files:
        console.print(f"{path}  {path.stat().st_size:,} bytes", soft_wrap=True)


@app.command("train-graph")
def train_graph(
    dataset: Annotated[
        Path, typer.Option(help="Graph of labelled nodes (.npz), or labelled graphs (.txt, .gz).")
    ],
    out: Annotated[Path, typer.Option(help="Folder; the same command goes on in it.")] = Path(
        "build/graph"
    ),
    net: Annotated[str, typer.Option(help="gcn, gat, gin or sage.")] = "gcn",
    bits: Annotated[float, typer.Option(help="Of weights and activations, 2 to 8.")] = 8,
    widths: Annotated[
        str, typer.Option(help="As 2,4,8: mixed, by layer and in-degree; --bits is their mean.")
    ] = "",
    classes: Annotated[int, typer.Option(help="Of in-degree, for --widths.")] = 4,
    protect: Annotated[
        str,
        typer.Option(help="LOW:HIGH, chances that a node stays in float, by in-degree; 0:0 none."),
    ] = "0:0.1",
    percentile: Annotated[
        float | None, typer.Option(help="Left out of ranges; 0.001, or 0.01 from 4 bits down.")
    ] = None,
    hidden: Annotated[int, typer.Option(help="Channels between layers.")] = 16,
    layers: Annotated[int, typer.Option(help="Of message passing.")] = 2,
    dropout: Annotated[float, typer.Option(help="Behind each layer but the last.")] = 0.5,
    epochs: Annotated[int, typer.Option(help="Of training.")] = 200,
    rate: Annotated[float, typer.Option(help="Adam's.")] = 0.01,
    decay: Annotated[float, typer.Option(help="Of weights.")] = 5e-4,
    fold: Annotated[int, typer.Option(help="That is tested, of 10, where graphs have labels.")] = 0,
    seed: Seed = 0,
    quiet: Quiet = False,
) -> None:
    """Train a graph network in float and with Degree-Quant; needs the extra `graph`."""
    try:
        from bitwright.graph import Recipe
        from bitwright.graph.run import Settings, run
    except ModuleNotFoundError as error:
        raise BitwrightError(
            f"{error.name} is not installed; pip install 'bitwright[graph]'"
        ) from error

    try:
        low, high = (float(part) for part in protect.split(":"))
    except ValueError:
        raise BitwrightError(f"--protect is {protect!r}; use LOW:HIGH, as 0:0.1") from None
    if widths and not re.fullmatch(r"[2-8](,[2-8])*", widths):
        raise BitwrightError(f"--widths is {widths!r}; use numbers from 2 to 8, as 2,4,8")
    if not widths and bits != int(bits):
        raise BitwrightError(f"--bits is {bits}; a mean between whole numbers needs --widths")
    left_out = (0.001 if bits > 4 else 0.01) if percentile is None else percentile
    settings = Settings(
        str(dataset), net, bits, tuple(int(b) for b in widths.split(",") if b), classes,
        (low, high), left_out, hidden, layers, dropout, fold,
        Recipe(epochs, rate, decay, seed=seed),
    )  # fmt: skip
    with _interruptible(), Bars(quiet) as bars:
        said = run(settings, out, bars.update)
        for name, row in said["rows"].items():
            bars.console.print(f"{name}: {row['val']:.1%} validation, {row['test']:.1%} test")
        size = said["bytes"]
        bars.console.print(f"bytes: {size['float']:,} -> {size['artefact']:,}")
        for file in ("model.safetensors", "graph.json", "graph.html"):
            bars.console.print(str(out / file), soft_wrap=True)


def main() -> None:
    """Entry point: a :class:`BitwrightError` becomes one line and exit status 2."""
    try:
        app()
    except (BitwrightError, OSError) as error:  # of the system: a full disk, a folder not ours
        print(f"bitwright: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
