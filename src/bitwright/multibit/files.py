"""`convert`: what was trained as files, checked in the runtime before anybody relies on them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from bitwright.deploy import runtime
from bitwright.errors import BitwrightError
from bitwright.multibit import artefact, onnx_file
from bitwright.multibit.net import Multibit
from bitwright.multibit.stored import Stored, stored
from bitwright.network import outputs

#: of logits, as a share of the largest
TOLERANCE = 1e-5


def convert(net: Multibit, out: str | Path, metadata: Mapping[str, Any] | None = None) -> Stored:
    """Write `model.safetensors` and `model.onnx` of a trained net.

    Args:
        net: left as it is.
        out: folder, made if it is not there.
        metadata: JSON kept in the artefact (preprocessing, say).

    Returns:
        The network as the files compute it, read back from the artefact.

    Raises:
        BitwrightError: the training diverged, the graph cannot be stored, or onnxruntime does not
            answer what the artefact does.
    """
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    made = stored(net)
    artefact.save(made, folder / "model.safetensors", metadata or {})
    onnx_file.save(made, folder / "model.onnx")
    found = artefact.load(folder / "model.safetensors")
    off = disagreement(found, folder / "model.onnx", net.example)
    if not off <= TOLERANCE:
        raise BitwrightError(
            f"{folder / 'model.onnx'} answers {off:.2g} away from the artefact in onnxruntime; at "
            f"most {TOLERANCE:g} was expected: keep model.safetensors alone, and report it"
        )
    return found


def disagreement(found: Stored, path: Path, x: Tensor) -> float:
    """The largest difference of the ONNX file's answers, as a share of the largest answer."""
    session = runtime.session(path, threads=1)
    got = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    wanted = outputs(found.network.module, x).numpy()
    flat = np.concatenate([np.asarray(g).reshape(len(x), -1) for g in got], 1)
    wanted = wanted.reshape(len(x), -1)
    return float(np.abs(flat - wanted).max() / max(1.0, np.abs(wanted).max()))
