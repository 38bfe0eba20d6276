"""The state of a multi-bit training between two epochs, as one safetensors file."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from bitwright.errors import BitwrightError
from bitwright.multibit.net import Multibit
from bitwright.network import join
from bitwright.train import resume

#: rows that the teacher's answers are kept of, and how far these may lie apart, as a share of the
#: largest: with another number of threads they differ in their last bits
_ROWS, _APART = 16, 1e-3


@dataclass(frozen=True)
class Identity:
    """What tells a training from others.

    Attributes:
        said: JSON by name, digests of tensors among it.
        answers: the teacher's to the first rows; empty without one.
    """

    said: Mapping[str, Any]
    answers: Tensor

    def differences(self, said: Mapping[str, Any], answers: Tensor) -> list[str]:
        """Names of what another one differs in."""
        own = self.answers
        found = [k for k in sorted({*self.said, *said}) if self.said.get(k) != said.get(k)]
        near = own.shape == answers.shape and (
            not own.numel() or float((own - answers).abs().max()) <= _APART * float(own.abs().max())
        )
        return found if near else [*found, "teacher"]


def identity(
    net: Multibit,
    rows: tuple[Tensor, Tensor | None],
    teacher: Callable[[Tensor], Tensor] | None,
    floats: Mapping[str, Tensor] | None,
    said: Mapping[str, Any],
) -> Identity:
    """Of a training that begins now: its net, rows, labels or teacher, and what the caller says."""
    x, y = rows
    answers = torch.zeros(0)
    if teacher is not None:
        y = None
        with torch.no_grad():
            answers = join(teacher(x[:_ROWS])).detach().float()
    own = {
        "skip": net.skip,
        "groups": {name: str(net[name].grouping) for name in net.names},
        "starting weights": resume.digest(net.state_dict()),
        "rows": resume.digest({"x": x}),
        "labels": "" if y is None else resume.digest({"y": y}),
        "floats": "" if floats is None else resume.digest(floats),
    }
    return Identity(json.loads(json.dumps({**own, **said})), answers)


def save(
    path: Path,
    of: Identity,
    net: Multibit,
    optimizer: Mapping[str, Tensor],
    generator: torch.Generator,
    history: list[dict[str, Any]],
) -> None:
    """Write the state, to a temporary name first."""
    tensors = {f"net:{k}": v for k, v in net.state_dict().items()}
    tensors |= {f"optimizer:{k}": v for k, v in optimizer.items()}
    tensors |= {"generator": generator.get_state(), "teacher": of.answers}
    resume.write(path, tensors, json.dumps({"of": dict(of.said), "history": history}))


def load(
    path: Path, of: Identity, net: Multibit, generator: torch.Generator
) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """Put the state back; the optimizer's tensors and the history.

    Raises:
        BitwrightError: the file is damaged, or of another training.
    """
    try:
        tensors, text = resume.read(path)
        said = json.loads(text)
        other = of.differences(said["of"], tensors.pop("teacher"))
        if other:
            raise BitwrightError(
                f"{path} is of another training ({', '.join(other)}); begin as that one did, or "
                "delete it"
            )
        generator.set_state(tensors.pop("generator"))
        parts: dict[str, dict[str, Tensor]] = {"net": {}, "optimizer": {}}
        for name, value in tensors.items():
            part, key = name.split(":", 1)
            parts[part][key] = value
        net.load_state_dict(parts["net"])
        net.release()
        return parts["optimizer"], list(said["history"])
    except (OSError, SafetensorError, KeyError, ValueError, TypeError, RuntimeError) as error:
        raise BitwrightError(f"{path} cannot be gone on from: {error}; delete it") from error
