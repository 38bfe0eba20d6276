"""The proof: the ONNX file in the runtime against the integer reference, tensor by tensor.

Every tensor is compared with what the reference makes of the runtime's own integers before it: one
step more or less behind a float operation (softmax, GELU) then counts where it arises, not in
everything that follows, and no difference hides another. Classes and outputs are compared from end
to end, by integers of the reference alone.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor

from bitwright.deploy import runtime
from bitwright.deploy.differences import Difference, Tally, differences
from bitwright.deploy.integer import IntegerNetwork, Stored
from bitwright.errors import BitwrightError
from bitwright.network import join
from bitwright.network.network import fused_activation
from bitwright.network.ops import aten, is_lookup
from bitwright.quantize import Quantized, exposed, input_tops

#: operations the runtime approximates or orders differently: one step is no error there
TOLERATED_FRACTION = 1e-3
#: of the largest output: more is no rounding of float operations but another result
SAME = 1e-4
_CONVOLUTIONS = ("conv1d", "conv2d")


@dataclass(frozen=True)
class Verification:
    """What was compared and how it came out.

    Attributes:
        rows: compared.
        tensors, equal: integer tensors compared, and equal in every element.
        differing: the others, in the order of the graph; the first is where to look.
        lost: those that the artefact, read back, gives otherwise than the network in memory.
        same_class: share of rows with the same largest output, from end to end.
        same_class_given: the same where the reference goes on from the runtime's own integers: 1,
            or float operations behind the last of them differ by more than their rounding.
        output_error: largest absolute difference of an output, from end to end.
        strayed: rows whose outputs differ, by more than 1e-4 of the largest one or by not being
            numbers, from what the reference makes of the runtime's own integers.
        changed: rows that the file as it is answers otherwise, by more than 1e-4 of the largest
            output, than with its integers as outputs for all of the above: the runtime's optimizer
            has then put other numbers in the place of ours.
        fused: every layer whose result is an integer tensor became an integer kernel (all of them
            with 8-bit activations, but one that computes an output).
        qlinear_convolutions, convolutions: fused ones in the runtime's graph, and all.
        integer_linears, linears: calls of linear layers that became integer kernels, and all.
        unsigned: layers whose weights are unsigned because signed ones could saturate.
        operations: what the runtime executes.
        runtime: its version, and the processor.
    """

    rows: int
    tensors: int
    equal: int
    differing: tuple[Difference, ...]
    same_class: float
    same_class_given: float
    output_error: float
    strayed: int
    changed: int
    fused: bool
    qlinear_convolutions: int
    convolutions: int
    integer_linears: int
    linears: int
    unsigned: tuple[str, ...]
    operations: dict[str, int]
    runtime: str
    lost: tuple[Difference, ...] = ()

    @property
    def differences(self) -> tuple[Difference, ...]:
        """All that differs: what was `lost`, then what is `differing` in the runtime."""
        return (*self.lost, *self.differing)

    @property
    def ok(self) -> bool:
        """Whether the file computes what it should.

        Every integer tensor is equal, or at most one step off on at most 0.1 % of its elements for
        a known reason, and none `lost`; from them every row has the same class; layers are `fused`;
        and at most a row and 1 % of them have `strayed`, and as many are `changed`.
        """
        return not self.why

    @property
    def why(self) -> str:
        """What came out otherwise first, in words; empty where `ok`."""
        wrong = (*self.lost, *(d for d in self.differing if not _explained(d)))
        if wrong:
            return str(wrong[0])
        if self.same_class_given < 1:
            count = round((1 - self.same_class_given) * self.rows)
            return f"{count} of {self.rows} rows have another class behind the same integers"
        if self.strayed > _tolerated(self.rows):
            return f"{self.strayed} of {self.rows} rows have other outputs behind the same integers"
        if self.changed > _tolerated(self.rows):
            return f"{self.changed} of {self.rows} rows answered otherwise by the file as it is"
        return "" if self.fused else "a layer was not fused into an integer kernel"

    def to_dict(self) -> dict[str, Any]:
        """As JSON data."""
        said = {"ok": self.ok, **asdict(self)}
        if not math.isfinite(self.output_error):  # which JSON has no word for
            said["output_error"] = None
        return said


def _explained(found: Difference) -> bool:
    return found.max_step <= 1 and found.fraction <= TOLERATED_FRACTION and bool(found.reason)


def _tolerated(rows: int) -> int:
    return 1 + rows // 100


@dataclass
class _Comparison:
    """Running totals over the rows."""

    tallies: dict[str, Tally]
    same: int = 0
    same_given: int = 0
    error: float = 0.0
    strayed: int = 0
    changed: int = 0
    done: int = 0


def verify(
    quantized: Quantized,
    path: Path,
    x: Tensor,
    *,
    class_axis: int = 1,
    chunk: int = 64,
    progress: Callable[[float], None] | None = None,
) -> Verification:
    """Compare the ONNX file at `path` with the integer reference of `quantized` on the rows `x`.

    Rows that embeddings look up are float, and compared by their bits.

    Raises:
        BitwrightError: the file lacks an integer tensor that the network has, or has another shape.
    """
    model = onnx.load(path, load_external_data=False)
    held = {name for node in model.graph.node for name in node.output}
    names = compared(quantized, path, held)
    tables = [name for name in lookups(quantized) if name in held]
    live = runtime.session(with_outputs(model, names, tables), beside=path.parent)
    plain = runtime.session(path)
    extra = [*(f"{n}.q" for n in names), *tables]
    outputs = [o.name for o in live.get_outputs()[: -len(extra) or None]]
    reference = IntegerNetwork(quantized)
    total = _Comparison({n: Tally() for n in [*tables, *names]})
    for rows in x.split(chunk):
        answers = runtime.run(live, rows, [*outputs, *extra], chunk)
        theirs = [torch.from_numpy(v) for v in answers[: len(outputs)]]
        found = dict(zip([*names, *tables], answers[len(outputs) :], strict=True))
        found |= {name: found[name].view(np.int32) for name in tables}
        ours, given = _compare(total, reference, rows, found)
        output = join(theirs[0] if len(theirs) == 1 else tuple(theirs))
        # of NaN and a number this is NaN
        total.error = float(np.maximum(total.error, (ours - output).abs().max().item()))
        total.strayed += _changed(given, output)
        total.changed += _changed(output, runtime.outputs(plain, rows, chunk))
        total.same += _same_class(ours, output, class_axis)
        total.same_given += _same_class(given, output, class_axis)
        total.done += len(rows)
        if progress:
            progress(total.done / len(x))
    return _conclusion(quantized, path, total)


def agree(a: Quantized, b: Quantized, x: Tensor, *, chunk: int = 64) -> tuple[Difference, ...]:
    """Where the integer references of two networks differ on the rows `x`; nothing if they agree.

    For a network and its artefact loaded back: graphs, codes and grids are then all the same.

    Raises:
        BitwrightError: their integer tensors have other names or shapes.
    """
    names = [[e.name for e in q.network.edges if e.group in q.edges] for q in (a, b)]
    if names[0] != names[1]:
        raise BitwrightError(
            f"the networks store other tensors: {', '.join(set(names[0]) ^ set(names[1]))[:200]}"
        )
    references = [IntegerNetwork(q) for q in (a, b)]
    total = _Comparison({name: Tally() for name in [*lookups(a), *names[0]]})
    outputs: list[tuple[Tensor, Tensor]] = []
    for rows in x.split(chunk):
        output, found = _integers(references[1], rows)
        integers = {n: v.numpy() for n, v in found.items()}
        outputs.append((_compare(total, references[0], rows, integers)[1], join(output)))
        total.done += len(rows)
    expected, given = (torch.cat(each) for each in zip(*outputs, strict=True))
    return (*differences(a, total.tallies), *_of_outputs(expected, given))


def _of_outputs(expected: Tensor, found: Tensor) -> tuple[Difference, ...]:
    """Outputs of the same integers, to the last bit."""
    wrong = _bits(expected) != _bits(found)
    if not bool(wrong.any()):
        return ()
    place = tuple(wrong.nonzero()[0].tolist())
    apart = (expected - found).abs()
    return (
        Difference(
            name="output",
            layer="the network",
            fraction=float(wrong.double().mean()),
            max_step=float(apart.max()),
            where=place,
            expected=float(expected[place]),
            found=float(found[place]),
            reason="",
        ),
    )


def compared(quantized: Quantized, path: Path, held: Collection[str]) -> list[str]:
    """Edges that the file holds as integers, in the order of the graph; `held` are its values.

    A padding that only convolutions read is theirs in the file, and no tensor any more.

    Raises:
        BitwrightError: another one is missing.
    """
    network = quantized.network
    nodes = {n.name: n for n in network.module.graph.nodes}
    convolutions = {n for la in network.layers if la.kind in _CONVOLUTIONS for n in la.calls}
    stored = [e.name for e in network.edges if e.group in quantized.edges]
    for name in stored:
        node = nodes[name]
        folds = node.target is aten.pad.default and {u.name for u in node.users} <= convolutions
        if f"{name}.q" not in held and not folds:
            raise BitwrightError(
                f"{path} does not hold the tensor {name!r} as integers: it is of another network"
            )
    return [name for name in stored if f"{name}.q" in held]


def lookups(quantized: Quantized) -> list[str]:
    """Names of what the lookups of embeddings give, `CALL.rows`."""
    return [
        f"{node.name}.rows"
        for node in quantized.network.module.graph.nodes
        if is_lookup(node) and any(node.name in la.calls for la in quantized.network.layers)
    ]


def _bits(values: Tensor) -> Tensor:
    """Float32 numbers by their bits: equal only where they are the same."""
    return values.contiguous().view(torch.int32)


def _integers(
    reference: IntegerNetwork, x: Tensor, given: Mapping[str, Tensor] | None = None
) -> tuple[Any, dict[str, Tensor]]:
    """Outputs, and every edge's integers as computed from the `given` ones before it."""
    notes: dict[str, Tensor] = {}

    def note(name: str, value: Stored | Tensor) -> Tensor | None:
        if isinstance(value, Tensor):
            notes[name] = _bits(value)
            return None
        notes[name] = value.q
        return None if given is None else given.get(name)

    return reference.trace(x, note), notes


def _compare(
    total: _Comparison, reference: IntegerNetwork, x: Tensor, answers: Mapping[str, np.ndarray]
) -> tuple[Tensor, Tensor]:
    """Count where the reference differs from `answers` on the rows x.

    Returns:
        Its outputs from end to end, and from the integers in `answers`.
    """
    result, notes = _integers(reference, x)
    local = result
    for name, value in answers.items():
        if notes[name].shape != value.shape:
            raise BitwrightError(
                f"tensor {name!r} has shape {value.shape} in the file, {tuple(notes[name].shape)} "
                "in the network: the file is of another network"
            )
    if any(not np.array_equal(notes[name].numpy(), value) for name, value in answers.items()):
        given = {name: torch.from_numpy(value).double() for name, value in answers.items()}
        local, notes = _integers(reference, x, given)
    for name, value in answers.items():
        total.tallies[name].add(notes[name].numpy(), value, total.done)
    return join(result), join(local)


def _conclusion(quantized: Quantized, path: Path, total: _Comparison) -> Verification:
    network, rows = quantized.network, total.done
    differing = differences(quantized, total.tallies)
    operations = runtime.optimized_operations(path)
    integer = input_tops(network, quantized.edges)
    tables = {name.removesuffix(".rows") for name in lookups(quantized)}
    calls = [(la, name) for la in network.layers for name in la.calls if name not in tables]
    convolutions = [name for la, name in calls if la.kind in _CONVOLUTIONS]
    linears = [name for la, name in calls if la.kind == "linear"]
    expected = sum(1 for la, _ in calls if la.kind == "linear" and la.name in integer)
    found = sum(operations[op] for op in runtime.INTEGER_MATMULS)
    fused = not quantized.edges or (
        operations["QLinearConv"] >= _stored(quantized, set(convolutions), list(total.tallies))
        and found >= expected
    )
    return Verification(
        rows=rows,
        tensors=len(total.tallies),
        equal=len(total.tallies) - len(differing),
        differing=differing,
        same_class=total.same / rows,
        same_class_given=total.same_given / rows,
        output_error=total.error,
        strayed=total.strayed,
        changed=total.changed,
        fused=fused,
        qlinear_convolutions=operations["QLinearConv"],
        convolutions=len(convolutions),
        integer_linears=found,
        linears=len(linears),
        unsigned=tuple(exposed(network, quantized.layers, quantized.edges)),
        operations=dict(sorted(operations.items())),
        runtime=f"onnxruntime {onnxruntime.__version__} on {platform.machine()}",
    )


def _changed(a: Tensor, b: Tensor) -> int:
    """Rows in which some output differs by more than the share `SAME` of the largest, or is NaN."""
    apart = (a - b).abs().reshape(len(a), -1).amax(1)
    return int((~(apart <= SAME * float(a.abs().max()))).sum())


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


def with_outputs(model: onnx.ModelProto, names: Sequence[str], tables: Sequence[str]) -> bytes:
    """The model with the integers of these edges as outputs too; what is fused stays fused.

    Also what `tables`, the lookups, give.
    """
    for name in names:
        model.graph.output.append(onnx.helper.make_empty_tensor_value_info(f"{name}.q"))
        model.graph.output[-1].type.tensor_type.elem_type = onnx.TensorProto.UINT8
    for name in tables:
        model.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
        model.graph.output[-1].type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    return model.SerializeToString()
