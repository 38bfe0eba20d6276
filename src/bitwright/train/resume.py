"""A training's state on disk, so that a killed one goes on with the same result.

Tensors of the module, of Adam and of the random generator as safetensors: nothing is pickled.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as packed
from torch import Tensor, nn

from bitwright.errors import BitwrightError
from bitwright.files import put

_SEAL = "sha256"

Training = tuple[nn.Module, torch.optim.Optimizer, Any, torch.Generator]


def save(
    path: Path,
    training: Training,
    history: list[float],
    best: Mapping[str, Tensor],
    mean: Mapping[str, Tensor] | None = None,
    options: Mapping[str, Any] | None = None,
) -> None:
    """Write the state after an epoch, to a temporary name first.

    Args:
        path: of the file.
        training: module, optimizer, `LambdaLR`, generator.
        history: held-out losses so far.
        best: the module's state when they were least; empty where that was the beginning.
        mean: of the module's states so far, where one is taken.
        options: numbers and texts that another training would differ in.
    """
    module, optimizer, schedule, generator = training
    tensors = {f"now:{k}": v for k, v in module.state_dict().items()}
    tensors |= {f"best:{k}": v for k, v in best.items()}
    tensors |= {f"mean:{k}": v for k, v in (mean or {}).items()}
    tensors["generator"] = generator.get_state()
    for i, values in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer:{i}:{k}": torch.as_tensor(v) for k, v in values.items()}
    own = {} if options is None else {"options": dict(options)}
    said = json.dumps({"history": history, "steps": schedule.last_epoch, **own})
    write(path, tensors, said)


def load(
    path: Path, training: Training, options: Mapping[str, Any] | None = None
) -> tuple[list[float], dict[str, Tensor], dict[str, Tensor]]:
    """Put the state back; the history, the best state, the mean state.

    Args:
        path: of the file.
        training: module, optimizer, `LambdaLR`, generator.
        options: what the state's own have to equal, where it has them (older ones have none).

    Raises:
        BitwrightError: the file is damaged, or of another training.
    """
    module, optimizer, schedule, generator = training
    try:
        tensors, text = read(path)
        said = json.loads(text)
        for name, value in said.get("options", {}).items():
            if options is not None and options.get(name) != value:
                raise ValueError(f"it is of {name} {value}, not {options.get(name)}")
        parts: dict[str, dict[str, Tensor]] = {p: {} for p in ("now", "best", "mean", "optimizer")}
        for name, value in tensors.items():
            if name != "generator":
                part, rest = name.split(":", 1)
                parts[part][rest] = value
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in parts["optimizer"].items():
            i, key = name.split(":")
            state.setdefault(int(i), {})[key] = value
        history, steps = [float(v) for v in said["history"]], int(said["steps"])
        module.load_state_dict(parts["now"])
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": state, "param_groups": groups})
        generator.set_state(tensors["generator"])
        schedule.last_epoch = steps
        at = zip(optimizer.param_groups, schedule.base_lrs, schedule.lr_lambdas, strict=True)
        for group, rate, share in at:
            group["lr"] = rate * share(steps)
    except (OSError, SafetensorError, KeyError, ValueError, TypeError, RuntimeError) as error:
        raise BitwrightError(f"{path} cannot be gone on from: {error}; delete it") from error
    return history, parts["best"], parts["mean"]


def write(path: Path, tensors: Mapping[str, Tensor], said: str) -> None:
    """Tensors and a text as one safetensors file with a checksum of both."""
    found = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    put(path, packed(found, metadata={"training": said, _SEAL: digest(found, said)}))


def read(path: Path) -> tuple[dict[str, Tensor], str]:
    """What :func:`write` wrote.

    Raises:
        OSError, SafetensorError, KeyError: no such file, or no file of that form.
        ValueError: the checksum does not hold: a bit of it has changed.
    """
    with safe_open(path, framework="pt") as file:
        told = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if told.get(_SEAL) != digest(tensors, told["training"]):
        raise ValueError("its checksum does not hold")
    return tensors, told["training"]


def digest(tensors: Mapping[str, Tensor], said: str = "") -> str:
    """SHA-256 of a text and of tensors by name, types and shapes among it."""
    found = hashlib.sha256(said.encode())
    for name in sorted(tensors):
        value = tensors[name]
        found.update(f"|{name}|{value.dtype}|{tuple(value.shape)}|".encode())
        found.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()
