"""Several runs beside each other, as data: what each was asked for, and what it gained and lost."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitwright.allocate import plan as plans
from bitwright.codec import encode, parse
from bitwright.errors import BitwrightError
from bitwright.report.summary import Summary, from_json, setting_text

#: stages in their order, as `stages.json` has them, and what people call them
_STAGES = {
    "measure": "measured", "search": "searched", "quantize": "quantized", "finetune": "fine-tuned",
    "refit-head": "head refitted", "export": "exported",
}  # fmt: skip
#: what other commands leave in their folders
_OTHERS = {
    "prune.json": "a pruning that was not quantized (give `bitwright prune` a --budget)",
    "pruned.safetensors": "a pruning that was not quantized (give `bitwright prune` a --budget)",
    "graph.json": "a graph network's training (`bitwright train-graph`)",
    "multibit.json": "a multi-bit training (`bitwright train-multibit`)",
}
#: options that say which network and data, in the order they are shown
_WHAT = ("model", "weights", "data", "task")
#: in `run.json`, but of no matter here: how long it takes, and the seal
_NOT_COMPARED = ("processes", "hmac")


@dataclass(frozen=True)
class LayerBits:
    """Widths of one layer in a run.

    Attributes:
        name: of the layer.
        bits: of each output channel; empty if kept in float.
    """

    name: str
    bits: tuple[int, ...]


@dataclass(frozen=True)
class ComparedRun:
    """One run; what is not known of it is None.

    Attributes:
        name: its folder's, with as much of the path as tells the runs apart.
        folder: as given.
        finished: whether it has a report, and of the files that are there now.
        state: in words.
        network: what was compressed.
        task: fingerprint of the float weights and calibration rows; empty if not known.
        settings: option -> what it was given.
        allocator: the method that chose the widths.
        mean_bits: of a weight.
        size_bytes, float_bytes: of the file and of the float one.
        divergence: `kl` (nats) or `squared`.
        kl, kl_stderr: divergence from the float model on the test rows, and its standard error.
        metric_name, metric, float_metric: of the task, of the file and of the float model.
        lost, lost_stderr: float_metric − metric, and the standard error of that.
        lost_paired: whether that error is of the pairs on the same rows; else it is the larger one
            of two models judged on rows of their own.
        agreement: share of test rows with the float model's answer.
        latency_ms, float_latency_ms: median for one row.
        verified: whether the file was proven equal to the integer reference.
        command: that made it.
        seed: of every random choice.
        layers: widths, in the order of the network.
    """

    name: str
    folder: str
    finished: bool
    state: str
    network: str | None = None
    task: str = ""
    settings: Mapping[str, str] | None = None
    allocator: str | None = None
    mean_bits: float | None = None
    size_bytes: int | None = None
    float_bytes: int | None = None
    divergence: str = "kl"
    kl: float | None = None
    kl_stderr: float | None = None
    metric_name: str | None = None
    metric: float | None = None
    float_metric: float | None = None
    lost: float | None = None
    lost_stderr: float | None = None
    lost_paired: bool = False
    agreement: float | None = None
    latency_ms: float | None = None
    float_latency_ms: float | None = None
    verified: bool | None = None
    command: str | None = None
    seed: int | None = None
    layers: tuple[LayerBits, ...] = ()

    @property
    def ratio(self) -> float | None:
        """Bytes of the float file over bytes of the compressed one."""
        if not self.size_bytes or self.float_bytes is None:
            return None
        return self.float_bytes / self.size_bytes


@dataclass(frozen=True)
class Comparison:
    """Runs in the order they were given.

    Attributes:
        runs: of them.
        differing: names of the options that are not the same in all.
        notes: what a reader has to know before comparing.
    """

    runs: tuple[ComparedRun, ...]
    differing: tuple[str, ...]
    notes: tuple[str, ...]

    def to_json(self) -> str:
        """Standard JSON, a line at its end; `ratio` of each run is there too."""
        found = encode(self)
        for run, said in zip(self.runs, found["runs"], strict=True):
            said["ratio"] = run.ratio
            # a list of numbers a layer, on a line
            said["layers"] = {layer.name: "".join(map(str, layer.bits)) for layer in run.layers}
        return json.dumps(found, indent=1, sort_keys=True, allow_nan=False, ensure_ascii=False)


def read_runs(folders: Sequence[str | Path]) -> Comparison:
    """Read the runs in `folders`; nothing is measured, and nothing is written.

    Raises:
        BitwrightError: fewer than two folders, one given twice, one that is missing, holds no run
            or one of another kind, or whose files are damaged.
    """
    paths = [Path(folder) for folder in folders]
    if len(paths) < 2:
        raise BitwrightError(f"compare needs two folders of runs at least, not {len(paths)}")
    whole = [path.resolve() for path in paths]
    for i, path in enumerate(whole):
        if path in whole[:i]:
            raise BitwrightError(f"{paths[i]} is given twice; give each run once")
    runs = tuple(_read(p, n) for p, n in zip(paths, _names(whole), strict=True))
    return Comparison(runs, _differing(runs), _notes(runs))


def _names(paths: Sequence[Path]) -> list[str]:
    """The last parts of each path, as many as tell them apart."""
    most = max(len(path.parts) for path in paths)
    for count in range(1, most + 1):
        names = ["/".join(path.parts[-count:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


def _read(folder: Path, name: str) -> ComparedRun:
    if not folder.is_dir():
        raise BitwrightError(f"there is no folder {folder}; give folders of `bitwright compress`")
    said = {f: (folder / f).is_file() for f in ("summary.json", "run.json", "stages.json")}
    if not any(said.values()):
        other = next((what for file, what in _OTHERS.items() if (folder / file).is_file()), None)
        if other is not None:
            raise BitwrightError(f"{folder} holds {other}; compare reads runs of `compress`")
        raise BitwrightError(
            f"{folder} holds no run: there is no summary.json, run.json or stages.json in it"
        )
    stages, options = _object(folder / "stages.json"), _object(folder / "run.json")
    if said["summary.json"]:
        summary = _summary(folder / "summary.json")
        if not summary.key or _key(stages, "export") == summary.key:
            return _finished(folder, name, summary, options)
        state = f"went on after its report; `bitwright report --out {folder}` makes a new one"
    else:
        asked = {
            "finetune": bool(options.get("epochs")),
            "refit-head": bool(options.get("refit_head")),
        }
        done = [
            word for stage, word in _STAGES.items() if stage in stages and asked.get(stage, True)
        ]
        state = f"unfinished, {done[-1] if done else 'nothing measured'} so far"
    return _unfinished(folder, name, state, options, stages)


def _summary(path: Path) -> Summary:
    try:
        return from_json(path.read_bytes().decode())
    except (BitwrightError, UnicodeDecodeError) as error:
        raise BitwrightError(f"{path}: {error}") from error


def _object(path: Path) -> dict[str, Any]:
    """A JSON object of a run's folder; nothing where there is no such file."""
    if not path.is_file():
        return {}
    try:
        found = parse(path.read_bytes(), "it")
    except ValueError as error:
        raise BitwrightError(f"{path} is damaged: {error}") from error
    if not isinstance(found, dict):
        raise BitwrightError(f"{path} is damaged: it is no JSON object")
    return found


def _key(stages: Mapping[str, Any], stage: str) -> str | None:
    found = stages.get(stage)
    key = found.get("key") if isinstance(found, dict) else None
    return key if isinstance(key, str) else None


def _asked(options: Mapping[str, Any]) -> dict[str, str]:
    """What `run.json` remembers of the command line, as a summary has its settings."""
    texts = {n: setting_text(v) for n, v in options.items() if n not in _NOT_COMPARED}
    found = {name: text for name, text in texts.items() if text is not None}
    if options and not {"budget", "max_kl", "max_drop"} & set(found):
        found["budget"] = "3bit"
    return found


def _finished(folder: Path, name: str, summary: Summary, options: Mapping[str, Any]) -> ComparedRun:
    chosen, original = summary.chosen, summary.original
    if chosen is None:
        raise BitwrightError(f"{folder / 'summary.json'} names no chosen method; compress again")
    asked = _asked(options)
    settings = {n: asked[n] for n in _WHAT if n in asked} | (summary.settings or asked)
    before = None if original is None else original.metric
    lost = summary.lost
    verification = summary.verification
    return ComparedRun(
        name=name,
        folder=str(folder),
        finished=True,
        state="finished",
        network=summary.model,
        task=summary.task,
        settings=settings,
        allocator=chosen.name,
        mean_bits=chosen.mean_bits,
        size_bytes=chosen.bytes,
        float_bytes=None if original is None else original.bytes,
        divergence=summary.divergence,
        kl=chosen.kl,
        kl_stderr=chosen.kl_stderr,
        metric_name=summary.metric_name,
        metric=chosen.metric,
        float_metric=before,
        lost=None if lost is None else lost.value,
        lost_stderr=None if lost is None else lost.stderr,
        lost_paired=lost is not None and lost.paired,
        agreement=chosen.agreement,
        latency_ms=chosen.latency_ms,
        float_latency_ms=None if original is None else original.latency_ms,
        verified=None if verification is None else verification.ok,
        command=summary.command,
        seed=summary.seed,
        layers=tuple(LayerBits(row.name, row.bits) for row in summary.layers),
    )


def _unfinished(
    folder: Path, name: str, state: str, options: Mapping[str, Any], stages: Mapping[str, Any]
) -> ComparedRun:
    """What the options tell, and the plan where there is one already."""
    asked = _asked(options)
    layers: tuple[LayerBits, ...] = ()
    allocator, path = asked.get("method"), folder / "plan.json"
    if "search" in stages and path.is_file():
        try:
            plan = plans.read_json(path.read_bytes())
        except BitwrightError as error:
            raise BitwrightError(f"{path}: {error}") from error
        allocator = plan.method
        layers = tuple(LayerBits(n, tuple(int(b) for b in bits)) for n, bits in plan.bits.items())
    seed = options.get("seed")
    return ComparedRun(
        name=name,
        folder=str(folder),
        finished=False,
        state=state,
        network=asked.get("model") or asked.get("task"),
        settings=asked or None,
        allocator=allocator,
        seed=seed if isinstance(seed, int) else None,
        layers=layers,
    )


def _differing(runs: Sequence[ComparedRun]) -> tuple[str, ...]:
    """Options that two runs, whose options are known, were given different values for."""
    known = [run.settings for run in runs if run.settings is not None]
    names = dict.fromkeys(name for found in known for name in found)
    order = [*(n for n in _WHAT if n in names), *(n for n in names if n not in _WHAT)]
    return tuple(n for n in order if len({found.get(n) for found in known}) > 1)


def _notes(runs: Sequence[ComparedRun]) -> tuple[str, ...]:
    found = []
    done = [run for run in runs if run.finished]
    tasks = {run.task for run in done if run.task}
    if len(tasks) > 1 or len({run.float_bytes for run in done}) > 1:
        found.append(
            "These are runs of different networks, weights or calibration rows: divergence and "
            "losses are from each run's own float model, and tell nothing of the others'."
        )
    elif any(not run.task for run in done):
        found.append(
            "Some of these runs do not say what they were made from (an older version wrote them): "
            "that they share a network and data was not checked."
        )
    if len({run.divergence for run in done}) > 1:
        found.append("Some runs measure KL divergence and some squared differences.")
    found += [
        f"{run.name}: verification FAILED; its figures are of a file that is not proven."
        for run in done
        if run.verified is False
    ]
    found += [f"{run.name}: {run.state}." for run in runs if not run.finished]
    return tuple(found)
