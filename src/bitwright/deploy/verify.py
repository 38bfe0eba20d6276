"""The proof: the ONNX file in the runtime against the integer reference, tensor by tensor."""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor

from bitwright.deploy import runtime
from bitwright.deploy.integer import IntegerNetwork, Stored
from bitwright.network import join
from bitwright.network.network import fused_activation
from bitwright.quantize import Quantized

#: operations the runtime approximates or orders differently: one step is no error there
TOLERATED_FRACTION = 1e-3


@dataclass(frozen=True)
class Difference:
    """A tensor that is not equal everywhere.

    Attributes:
        name: of the edge.
        fraction: of elements that differ.
        max_step: the largest difference in quantization steps.
    """

    name: str
    fraction: float
    max_step: int


@dataclass(frozen=True)
class Verification:
    """What was compared and how it came out.

    Attributes:
        ok: every integer tensor equal, or at most one step off on at most 0.1 % of its elements,
            the same class on every row, and every convolution fused whose result is an integer
            tensor (all of them with 8-bit activations, but one that computes an output).
        rows: compared.
        tensors, equal: integer tensors compared, and equal in every element.
        differing: the others, in the order of the graph; the first is where to look.
        same_class: share of rows with the same largest output.
        output_error: largest absolute difference of an output.
        qlinear_convolutions, convolutions: fused ones in the runtime's graph, and all.
        operations: what the runtime executes.
        runtime: its version, and the processor.
    """

    ok: bool
    rows: int
    tensors: int
    equal: int
    differing: tuple[Difference, ...]
    same_class: float
    output_error: float
    qlinear_convolutions: int
    convolutions: int
    operations: dict[str, int]
    runtime: str

    def to_dict(self) -> dict[str, Any]:
        """As JSON data."""
        return asdict(self)


def verify(
    quantized: Quantized,
    path: Path,
    x: Tensor,
    *,
    class_axis: int = 1,
    chunk: int = 64,
    progress: Callable[[float], None] | None = None,
) -> Verification:
    """Compare the ONNX file at `path` with the integer reference of `quantized` on the rows `x`."""
    reference = IntegerNetwork(quantized)
    names = [e.name for e in quantized.network.edges if e.group in quantized.edges]
    live = runtime.session(_with_outputs(path, [f"{n}.q" for n in names]))
    wanted = [o.name for o in runtime.session(path).get_outputs()]
    counts = dict.fromkeys(names, 0)
    sizes = dict.fromkeys(names, 0)
    steps = dict.fromkeys(names, 0)
    same, error, done = 0, 0.0, 0
    for rows in x.split(chunk):
        notes: dict[str, Tensor] = {}

        def note(name: str, value: Stored, notes: dict[str, Tensor] = notes) -> None:
            notes[name] = value.q

        ours = join(reference.trace(rows, note))
        answers = runtime.run(live, rows, [*wanted, *(f"{n}.q" for n in names)], chunk)
        theirs = [torch.from_numpy(v) for v in answers[: len(wanted)]]
        output = join(theirs[0] if len(theirs) == 1 else tuple(theirs))
        for name, value in zip(names, answers[len(wanted) :], strict=True):
            gap = np.abs(value.astype(np.int32) - notes[name].numpy().astype(np.int32))
            counts[name] += int((gap > 0).sum())
            steps[name] = max(steps[name], int(gap.max(initial=0)))
            sizes[name] += gap.size
        error = max(error, float((ours - output).abs().max()))
        same += _same_class(ours, output, class_axis)
        done += len(rows)
        if progress:
            progress(done / len(x))
    differing = tuple(
        Difference(n, counts[n] / max(sizes[n], 1), steps[n]) for n in names if counts[n]
    )
    operations = runtime.optimized_operations(path)
    calls = {name for la in quantized.network.layers if la.kind != "linear" for name in la.calls}
    close = all(d.max_step <= 1 and d.fraction <= TOLERATED_FRACTION for d in differing)
    fused = not quantized.edges or operations["QLinearConv"] >= _stored(quantized, calls, names)
    return Verification(
        ok=close and same == len(x) and fused,
        rows=len(x),
        tensors=len(names),
        equal=len(names) - len(differing),
        differing=differing,
        same_class=same / len(x),
        output_error=error,
        qlinear_convolutions=operations["QLinearConv"],
        convolutions=len(calls),
        operations=dict(sorted(operations.items())),
        runtime=f"onnxruntime {onnxruntime.__version__} on {platform.machine()}",
    )


def _same_class(a: Tensor, b: Tensor, class_axis: int) -> int:
    """Rows with the same largest output at every position; all of them where rows are numbers."""
    if a.ndim == 1:
        return len(a)
    axis = min(class_axis, a.ndim - 1)
    same = a.argmax(axis) == b.argmax(axis)
    return int(same.reshape(len(a), -1).all(1).sum())


def _stored(quantized: Quantized, calls: set[str], edges: list[str]) -> int:
    """How many of the layer calls give an edge, by themselves or through a folded clip."""
    count = 0
    for node in quantized.network.module.graph.nodes:
        if node.name in calls:
            clip = fused_activation(node)
            count += node.name in edges or (clip is not None and clip.name in edges)
    return count


def _with_outputs(path: Path, names: list[str]) -> bytes:
    """The model with further values as outputs; what is fused stays fused."""
    model = onnx.load(path)
    for name in names:
        model.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
        model.graph.output[-1].type.tensor_type.elem_type = onnx.TensorProto.UINT8
    return model.SerializeToString()
