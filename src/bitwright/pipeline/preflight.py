"""Before anything slow: does the float model survive the trip to ONNX, and what will it take?"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from bitwright.deploy import runtime
from bitwright.deploy.files import write
from bitwright.deploy.placeholders import export
from bitwright.errors import BitwrightError
from bitwright.network import Network, join, outputs


@dataclass(frozen=True)
class Preflight:
    """What was found.

    Attributes:
        float_bytes: of the float ONNX file, weights included.
        error: largest absolute difference between the model and its ONNX file.
        weights, layers, edges: quantizable weights, their layers, and 8-bit tensors.
        skipped: layers that stay in float.
        forward_s: seconds for one row, captured graph.
        memory_bytes, time_s: estimates for measuring.
    """

    float_bytes: int
    error: float
    weights: int
    layers: int
    edges: int
    skipped: tuple[str, ...]
    forward_s: float
    memory_bytes: int
    time_s: float

    def to_json(self) -> str:
        """JSON text."""
        return json.dumps(asdict(self), indent=1)

    @staticmethod
    def from_json(text: str) -> Preflight:
        """What :meth:`to_json` wrote."""
        found = json.loads(text)
        return Preflight(**{**found, "skipped": tuple(found["skipped"])})


def preflight(model: nn.Module, network: Network, x: Tensor, path: Path, rows: int) -> Preflight:
    """Export the captured float graph to `path`, run it, compare it with the model.

    Args:
        model: the user's model.
        network: what was captured of it.
        x: a few rows.
        path: where the float ONNX file goes.
        rows: calibration rows that measuring will see.

    Raises:
        BitwrightError: it does not export, or the file answers differently.
    """
    few = x[:4]
    with torch.no_grad():
        expected = join(model(few))
    captured = outputs(network.module, few)
    hidden = "its forward() depends on something torch.export does not see"
    _compare(expected, captured, "the captured graph", f"{hidden} (random numbers, training mode?)")
    write(export(network.module, network.input_shape, x.dtype), path)
    answers = runtime.outputs(runtime.session(path), few)
    error = _compare(
        expected, answers, "the float ONNX file",
        "the captured graph agrees with it, so onnxruntime computes an operation otherwise (known: "
        "its optimizer pads with -inf where zeros stand before a max pool; put a ReLU before them)",
    )  # fmt: skip
    begin = time.perf_counter()
    outputs(network.module, few)
    forward_s = (time.perf_counter() - begin) / len(few)
    per_row = 4 * sum(int(np.prod(e.shape)) for e in network.edges)
    return Preflight(
        float_bytes=runtime.size_bytes(path),
        error=error,
        weights=network.weights,
        layers=len(network.layers),
        edges=len(network.edges),
        skipped=network.skipped,
        forward_s=forward_s,
        memory_bytes=int(32 * per_row * 4 + 4 * network.weights * 8),
        time_s=forward_s * rows * 4,
    )


def _compare(expected: Tensor, found: Tensor, what: str, why: str) -> float:
    if expected.shape != found.shape:
        raise BitwrightError(
            f"{what} returns shape {tuple(found.shape)}, the model {tuple(expected.shape)}; {why}"
        )
    error = float((expected - found).abs().max())
    if error > 1e-3 * max(1.0, float(expected.abs().max())):
        raise BitwrightError(
            f"{what} differs from the model by {error:.3g} on calibration rows; {why}"
        )
    return error
