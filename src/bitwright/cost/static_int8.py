"""The runtime's own static int8 of a float ONNX file, at its best setting: the peer to beat.

Unsigned activations, signed weights with a scale for each channel: on x86 the setting in which most
operations fuse. ONNX Runtime writes it in two formats (Q/DQ pairs, and integer operators).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from bitwright.deploy import runtime
from bitwright.files import replacing

#: name -> member of onnxruntime.quantization.QuantFormat
FORMATS = {"qdq": "QDQ", "operators": "QOperator"}


def static_int8(float_file: Path, rows: Tensor, path: Path, *, form: str = "qdq") -> Path:
    """Quantize `float_file` by the runtime's own tool; written to a temporary name first.

    Args:
        float_file: float ONNX file, batch-norm folded.
        rows: [n, ...] calibration rows; their minima and maxima give the ranges.
        path: of the file.
        form: one of `FORMATS`.

    Returns:
        `path`.
    """
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    feed = runtime.session(float_file).get_inputs()[0].name
    with replacing(path) as temporary, _quiet():
        quantize_static(
            str(float_file),
            str(temporary),
            _reader(rows, feed),
            quant_format=getattr(QuantFormat, FORMATS[form]),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
    return path


def _reader(rows: Tensor, feed: str) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):
        """The rows one by one."""

        def __init__(self) -> None:
            self.left = iter(np.ascontiguousarray(rows.numpy()))

        def get_next(self) -> dict[str, np.ndarray] | None:
            row = next(self.left, None)
            return None if row is None else {feed: row[None]}

    return Reader()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the advice to preprocess: our float file is folded already."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
