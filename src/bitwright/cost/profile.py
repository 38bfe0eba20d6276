"""The profile of a network: all its layer shapes, then the network itself beside their sum."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from torch import Tensor

from bitwright import quantize
from bitwright.arith.grid import fit
from bitwright.arith.grid import quantize as rounded
from bitwright.cost import latency
from bitwright.cost.shapes import calls
from bitwright.cost.table import Machine, Profile, Whole, latencies, read, write
from bitwright.deploy import onnx_file, runtime
from bitwright.errors import BitwrightError
from bitwright.network import Network
from bitwright.quantize import Quantized

#: rows the ranges of the whole network's activations are taken from; no time depends on them
_ROWS = 64


def profile(
    network: Network,
    float_file: bytes,
    rows: Tensor,
    path: Path,
    *,
    threads: int = 1,
    repeats: int = 100,
    progress: Callable[[float], None] = lambda fraction: None,
) -> Profile:
    """Measure what `path` does not hold yet, and write it there after every shape.

    What was measured on another machine, with another runtime or other settings is measured again.

    Args:
        network: captured network.
        float_file: its float ONNX file.
        rows: [n, ...] calibration rows.
        path: of `profile.json`.
        threads, repeats: of :func:`bitwright.cost.measure`.
        progress: called with the finished fraction.

    Raises:
        BitwrightError: the file at `path` is no profile; it is left as it is.
    """
    found = Profile(Machine.here(threads), repeats, ())
    if path.exists():
        before = _before(path)
        if (before.machine, before.repeats) == (found.machine, repeats):
            found = before
    shapes = list(dict.fromkeys(shape for _, shape in calls(network)))
    for i, shape in enumerate(shapes):
        progress(i / (len(shapes) + 1))
        if shape in found.by_shape:
            continue
        row = latency.measure(shape, threads=threads, repeats=repeats)
        found = replace(found, rows=(*found.rows, row), whole=None)
        write(found, path)
    key = _key(network)
    if found.whole is None or found.whole.key != key:
        found = replace(found, whole=_whole(network, float_file, rows, found, key))
        write(found, path)
    progress(1.0)
    return found


def _before(path: Path) -> Profile:
    try:
        return read(path)
    except BitwrightError as error:
        raise BitwrightError(f"{error}; delete it or give another --out") from error


def _key(network: Network) -> str:
    """Of the computation, not of the weights: they do not change what it takes."""
    text = f"{network.module.code} {network.input_shape} {calls(network)}"
    return hashlib.sha256(text.encode()).hexdigest()


def _whole(network: Network, float_file: bytes, rows: Tensor, found: Profile, key: str) -> Whole:
    ours = latency.serialized(onnx_file.build_model(_rounded(network, rows)))
    one = rows[:1].numpy()
    sessions = [runtime.session(m, threads=found.machine.threads) for m in (float_file, ours)]
    feeds = [{s.get_inputs()[0].name: one} for s in sessions]
    called = [partial(s.run, None, f) for s, f in zip(sessions, feeds, strict=True)]
    spent = latency.in_turns([latency.empty_call(), *called], found.repeats)
    seconds = np.median(spent[:, 1:] - spent[:, :1], axis=0)
    return Whole(
        key=key,
        float_s=float(seconds[0]),
        int8_s=float(seconds[1]),
        float_sum_s=float(latencies(network, found, None).sum()),
        int8_sum_s=float(latencies(network, found).sum()),
    )


def _rounded(network: Network, rows: Tensor) -> Quantized:
    """The network at 4 bits; any width is the same to the runtime."""
    layers = {}
    for layer in network.layers:
        matrix = network.matrix(layer)
        grid, _ = fit(matrix, 4)
        bias = network.bias(layer)
        layers[layer.name] = quantize.QuantizedLayer(rounded(matrix, grid), grid, bias)
    return Quantized(network, layers, quantize.calibrate(network, rows[:_ROWS]))
