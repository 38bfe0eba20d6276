"""OpenVINO as a second runtime: does it take the file, and what does it answer?

It computes convolutions on the same integers, but rescales and adds in float in an order of its
own, so its integers differ by a step here and there; classes are what is compared. It is no
dependency of this library: `pip install openvino`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bitwright.deploy import runtime
from bitwright.errors import BitwrightError


@dataclass(frozen=True)
class SecondOpinion:
    """The file in OpenVINO beside ONNX Runtime.

    Attributes:
        version: of OpenVINO.
        same_class: share of rows with the same largest output.
        output_error: mean absolute difference of the outputs, over their standard deviation.
    """

    version: str
    same_class: float
    output_error: float


def second_opinion(path: Path, x: Tensor, *, class_axis: int = 1) -> SecondOpinion:
    """Run the file on the rows `x` in both runtimes.

    Raises:
        BitwrightError: OpenVINO is not installed, or it refuses the file.
    """
    try:
        import openvino
    except ImportError as error:
        raise BitwrightError("OpenVINO is not installed; pip install openvino") from error
    core = openvino.Core()
    exact = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    try:
        compiled: Any = core.compile_model(core.read_model(path), "CPU", exact)
        theirs = torch.from_numpy(compiled(x.numpy())[0].copy())
    except RuntimeError as error:
        last = (str(error).strip().splitlines() or [""])[-1]
        raise BitwrightError(f"OpenVINO refuses the model: {last[:300]}") from error
    ours = runtime.outputs(runtime.session(path), x)
    axis = min(class_axis, ours.ndim - 1)
    same = (ours.argmax(axis) == theirs.argmax(axis)).reshape(len(x), -1).all(1)
    gap = (ours - theirs).abs().mean() / ours.std()
    return SecondOpinion(openvino.get_version(), float(same.double().mean()), float(gap))
