"""From options to a task and its settings."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

from bitwright.errors import BitwrightError


def assemble(given: dict[str, Any]) -> tuple[Any, Any, str]:
    """Task, settings and the model's name from options."""
    from bitwright.pipeline import METHODS, ROUNDINGS
    from bitwright.pipeline.budget import parse_budget
    from bitwright.pipeline.settings import Settings, check_settings, read_overrides
    from bitwright.quantize import SCORES

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
    rosters: dict[str, dict[str, Any]] = {
        "method": METHODS,
        "score": SCORES,
        "rounding": ROUNDINGS,
    }
    if any(given[name] not in roster for name, roster in rosters.items()):
        _import_files(given)  # which may put it into the roster
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
            levels=given["levels"],
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
    task, name = task_of(given)
    return task, settings, name


def _import_files(given: dict[str, Any]) -> None:
    """Import the user's files and call nothing in them: a wrong name is refused before any work."""
    from bitwright.checkpoint import load_object

    for spec in (given["model"], given["task"], given["data"]):
        if spec and ":" in spec and not spec.startswith(("npz:", "folder:")):
            load_object(spec)


def task_of(given: dict[str, Any]) -> tuple[Any, str]:
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


def command_line() -> str:
    """This command as it was typed."""
    return shlex.join(["bitwright", *sys.argv[1:]])
