"""What a run was asked for, in its folder: later stages need not be told again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import typer

from bitwright.cli.signed import code, is_ours, seal
from bitwright.errors import BitwrightError
from bitwright.files import put

REMEMBERED = (
    "model", "weights", "data", "task", "budget", "method", "max_drop", "max_kl", "overrides",
    "activations", "epochs", "order", "seed", "skip", "evaluations", "calibration_rows", "device",
    "max_bops", "max_latency", "profile", "score", "rounding", "ranges", "granularity", "batch",
    "processes", "augment", "temperature", "rate", "equalize", "refit_head",
    "accumulator", "accumulator_kind", "accumulator_mode", "levels",
)  # fmt: skip

#: beside the options in the file
SEAL = "hmac"
#: options that runs of earlier versions did not have
YOUNGER = {
    "ranges": None, "granularity": "edge", "refit_head": False, "accumulator": None,
    "accumulator_kind": "wrap", "accumulator_mode": "guaranteed", "levels": "uniform",
}  # fmt: skip


def defaults() -> dict[str, Any]:
    """Options of a run that nobody typed."""
    return dict.fromkeys(REMEMBERED) | {
        "method": "channels", "epochs": 0, "order": "all", "seed": 0, "activations": "8",
        "evaluations": 150, "batch": 1, "processes": 0, "calibration_rows": 1024, "device": "cpu",
        "score": "actual-error", "rounding": "nearest", "temperature": 4.0, "rate": 1e-3,
        "equalize": 0.0, **YOUNGER,
    }  # fmt: skip


def typed(context: typer.Context) -> set[str]:
    """Names of the run's options that stand on the command line."""
    sources = {k: context.get_parameter_source(k) for k in REMEMBERED}
    return {k for k, source in sources.items() if source and source.name == "COMMANDLINE"}


def remembered(out: Path, given: dict[str, Any], typed: set[str]) -> dict[str, Any]:
    """The options of the run in `out`, but for those typed; a stage command need not repeat them.

    A goal typed now replaces the goal of then.

    Raises:
        BitwrightError: there is no such run, it is damaged, or it names code and was not written
            here by this user: a folder that one was given must not choose what is run.
    """
    path = out / "run.json"
    try:
        written = json.loads(path.read_text())
        found = YOUNGER | written
        kept = {k: found[k] for k in REMEMBERED if k not in typed}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise BitwrightError(
            f"give --model and --data (or --task): {out} holds no earlier run to take them from"
        ) from error
    for name, value in kept.items():
        if not _may_be(name, value):
            raise BitwrightError(
                f"{path} is damaged: {name} is {value!r}; give --model and --data (or --task) again"
            )
    named = code(kept)
    if named and not is_ours(written, written.pop(SEAL, None)):
        raise BitwrightError(
            f"{path} was not written here by this user, so the code that it names "
            f"({', '.join(named)}) is not run; give --model and --data (or --task), which every "
            "stage takes, `bitwright verify` among them"
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
            *("accumulator_kind", "accumulator_mode", "levels"),
        )
    )


def remember(path: Path, given: dict[str, Any]) -> None:
    """Write the options of a run to its folder, with a seal if this user can keep a key."""
    sealed = {**given, SEAL: seal(given)}
    put(path, json.dumps(sealed, indent=1, sort_keys=True))
