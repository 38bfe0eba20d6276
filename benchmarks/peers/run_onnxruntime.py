"""ONNX Runtime: static quantization to 8 bits, per channel, judged in the runtime; see `child`.

Settings:
    method: how ranges of activations are found: `MinMax`, `Entropy` or `Percentile`.
    percentile: of the last.
    reduce: 7 bits of weights, against saturation on CPUs without VNNI.
"""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from onnxruntime import quantization as q
from onnxruntime.quantization.shape_inference import quant_pre_process
from peers import child
from torch import Tensor, nn

DEFAULTS: dict[str, Any] = {"method": "MinMax", "percentile": 99.999, "reduce": False}


class Reader(q.CalibrationDataReader):
    """The calibration rows."""

    def __init__(self, request: child.Request) -> None:
        self.rows = request.batches()

    def get_next(self) -> dict[str, np.ndarray] | None:
        """One batch, or None at the end."""
        batch = next(self.rows, None)
        return None if batch is None else {"input": batch.numpy()}


def exported(model: nn.Module, request: child.Request, path: Path) -> None:
    """The float network as a file, shapes inferred and batch-norm folded by the runtime's own."""
    torch.onnx.export(
        model,
        (next(request.batches(2)),),
        path,
        dynamo=True,
        external_data=False,
        input_names=["input"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("n")},),
        verbose=False,
    )
    quant_pre_process(path, path, skip_symbolic_shape=True)


def quantize(model: nn.Module, request: child.Request) -> child.Quantized:
    """Q/DQ on every edge, u8 activations and s8 weights per channel."""
    if (request.weight_bits, request.activation_bits) != (8, 8):
        raise ValueError("ONNX Runtime quantizes convolutions to 8 bits alone")
    setting = DEFAULTS | request.setting
    with tempfile.TemporaryDirectory() as folder:
        before, after = Path(folder) / "float.onnx", Path(folder) / "quantized.onnx"
        exported(model, request, before)
        q.quantize_static(
            before,
            after,
            Reader(request),
            quant_format=q.QuantFormat.QDQ,
            per_channel=True,
            reduce_range=setting["reduce"],
            activation_type=q.QuantType.QUInt8,
            weight_type=q.QuantType.QInt8,
            calibrate_method=q.CalibrationMethod[setting["method"]],
            extra_options={"CalibPercentile": setting["percentile"]},
        )
        made = onnx.load(after)
    weights = {t.name: t for t in made.graph.initializer if t.data_type == onnx.TensorProto.INT8}
    widths = [(int(np.prod(t.dims)), 8.0) for t in weights.values() if len(t.dims) > 1]
    session = ort.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])

    def forward(batch: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {"input": batch.numpy()})[0])

    return child.Quantized(forward, widths)


if __name__ == "__main__":
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        child.serve("ONNX Runtime", ort.__version__, quantize)
