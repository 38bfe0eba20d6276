"""Stock ONNX Runtime on the CPU: run a file, look at what it made of it, time it."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from torch import Tensor

from bitwright.errors import BitwrightError

#: what a linear layer on integers becomes
INTEGER_MATMULS = ("QGemm", "QLinearMatMul", "MatMulIntegerToFloat")


def session(
    model: Path | bytes,
    *,
    threads: int = 0,
    optimized: Path | None = None,
    beside: Path | None = None,
) -> ort.InferenceSession:
    """A CPU session with the runtime's default optimizations.

    Args:
        model: path or serialized model.
        threads: intra-op threads; 0 lets the runtime choose.
        optimized: where to write the optimized graph; its tensors go beside it.
        beside: folder of a serialized model's external data.

    Raises:
        BitwrightError: the runtime refuses the model.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
        name = f"{optimized.name}.data"
        options.add_session_config_entry(
            "session.optimized_model_external_initializers_file_name", name
        )
    if beside is not None:
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", str(beside)
        )
    source = model if isinstance(model, bytes) else str(model)
    try:
        return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        first = (str(error).splitlines() or [""])[0]
        raise BitwrightError(f"ONNX Runtime refuses the model: {first[:300]}") from error


def run(
    live: ort.InferenceSession, x: Tensor, names: Sequence[str] | None = None, chunk: int = 128
) -> list[np.ndarray]:
    """The outputs (or those in `names`) for all rows, in chunks, joined along axis 0.

    Raises:
        BitwrightError: an operation of the model fails.
    """
    feed = live.get_inputs()[0].name
    wanted = list(names) if names is not None else [o.name for o in live.get_outputs()]
    found: list[list[np.ndarray]] = [[] for _ in wanted]
    for rows in x.split(chunk):
        try:
            values = live.run(wanted, {feed: rows.numpy()})
        except Exception as error:
            first = (str(error).splitlines() or [""])[0]
            raise BitwrightError(f"ONNX Runtime cannot run the model: {first[:300]}") from error
        for pieces, value in zip(found, values, strict=True):
            pieces.append(value)
    return [np.concatenate(pieces) for pieces in found]


def outputs(live: ort.InferenceSession, x: Tensor, chunk: int = 128) -> Tensor:
    """All outputs as one tensor, joined as :func:`bitwright.network.join` does."""
    values = [torch.from_numpy(v) for v in run(live, x, chunk=chunk)]
    return values[0] if len(values) == 1 else torch.cat([v.flatten(1) for v in values], dim=1)


def size_bytes(path: Path) -> int:
    """Of the file and of the data that it keeps beside it."""
    model = onnx.load(path, load_external_data=False)
    beside = {
        entry.value
        for tensor in model.graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }
    return path.stat().st_size + sum((path.parent / name).stat().st_size for name in beside)


def optimized_operations(model: Path | bytes) -> Counter[str]:
    """How often each operation occurs in the graph the runtime executes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimized.onnx"
        session(model, optimized=path)
        return Counter(n.op_type for n in onnx.load(path, load_external_data=False).graph.node)


def latencies(
    models: Sequence[Path], row: Tensor, *, rounds: int = 40, threads: int = 0
) -> list[float]:
    """Median seconds for one row of each model, measured in turns so that noise hits all alike."""
    live = [session(m, threads=threads) for m in models]
    feeds: list[dict[str, Any]] = [{s.get_inputs()[0].name: row.numpy()} for s in live]
    calls: list[Callable[[], Any]] = [
        lambda s=s, f=f: s.run(None, f)  # type: ignore[misc]
        for s, f in zip(live, feeds, strict=True)
    ]
    for call in calls:
        for _ in range(3):
            call()
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds):
        for spent, call in zip(times, calls, strict=True):
            begin = time.perf_counter()
            call()
            spent.append(time.perf_counter() - begin)
    return [statistics.median(t) for t in times]
