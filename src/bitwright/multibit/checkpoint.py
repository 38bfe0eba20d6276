"""The state of a multi-bit training between two epochs, as one safetensors file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from bitwright.errors import BitwrightError
from bitwright.multibit.net import Multibit
from bitwright.train import resume


def save(
    path: Path,
    net: Multibit,
    optimizer: Mapping[str, Tensor],
    generator: torch.Generator,
    history: list[dict[str, Any]],
) -> None:
    """Write the state, to a temporary name first."""
    tensors = {f"net:{k}": v for k, v in net.state_dict().items()}
    tensors |= {f"optimizer:{k}": v for k, v in optimizer.items()}
    tensors["generator"] = generator.get_state()
    resume.write(path, tensors, json.dumps(history))


def load(
    path: Path, net: Multibit, generator: torch.Generator
) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """Put the state back; the optimizer's tensors and the history.

    Raises:
        BitwrightError: the file is damaged, or of another net.
    """
    try:
        tensors, text = resume.read(path)
        history = json.loads(text)
        generator.set_state(tensors.pop("generator"))
        parts: dict[str, dict[str, Tensor]] = {"net": {}, "optimizer": {}}
        for name, value in tensors.items():
            part, key = name.split(":", 1)
            parts[part][key] = value
        net.load_state_dict(parts["net"])
        net.release()
        return parts["optimizer"], list(history)
    except (OSError, SafetensorError, KeyError, ValueError, TypeError, RuntimeError) as error:
        raise BitwrightError(f"{path} cannot be gone on from: {error}; delete it") from error
