"""What is inside a file that bitwright wrote, as plain data: `bitwright inspect FILE`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from bitwright.allocate import plan as plans
from bitwright.curvature import estimate
from bitwright.deploy import artefact, onnx_sealed
from bitwright.deploy.seal import KEY
from bitwright.deploy.tensors import read_bytes
from bitwright.errors import BitwrightError
from bitwright.quantize import coordinate_bytes

Value = str | int | float
PLAN_PARTS = ("choices", "bits", "cost_bits", "budget_bits")


@dataclass(frozen=True)
class Inspection:
    """What a file holds.

    Attributes:
        kind: `artefact`, `onnx`, `plan` or `sensitivity`.
        facts: about the whole.
        columns, rows: a table, a row a layer (or a kind of content).
        unit: of the histogram, `weights` or `channels`.
        histogram: how many of them have each width in bits.
    """

    kind: str
    facts: dict[str, Value]
    columns: tuple[str, ...]
    rows: tuple[tuple[Value, ...], ...]
    unit: str = ""
    histogram: dict[int, int] = field(default_factory=dict)


def inspect(path: Path) -> Inspection:
    """Read a file and say what is inside.

    Raises:
        BitwrightError: it is none of ours, or damaged.
    """
    if (path / "model.safetensors").is_file():  # a run's folder
        path = path / "model.safetensors"
    return READERS[kind_of(path)](path)


def kind_of(path: Path) -> str:
    """The key in `READERS` of a file, by its name, and by its seal where names do not tell.

    Raises:
        BitwrightError: there is no such file, or bitwright writes none of that name.
    """
    if not path.is_file():
        raise BitwrightError(f"there is no file {path}; give the path of one")
    if path.suffix == ".onnx":
        return "onnx"
    if path.suffix == ".json":
        if _another_json(path):
            raise BitwrightError(f"{path} is no plan; of JSON files inspect reads plan.json alone")
        return "plan"
    if path.suffix == ".safetensors":
        with path.open("rb") as file:
            head = file.read(4096)
        if KEY.encode() in head:
            return "artefact"
        if b'"bitwright"' in head:
            return "sensitivity"
        raise BitwrightError(f"{path} was not written by bitwright; give a model.safetensors of it")
    raise BitwrightError(
        f"{path} is no file of bitwright by its name; give a model.safetensors, model.onnx, "
        "plan.json or sensitivity.safetensors"
    )


def _another_json(path: Path) -> bool:
    """Whether a file is sound JSON without anything that a plan has."""
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return False  # a damaged plan, perhaps: its reader says where
    return not isinstance(found, dict) or found.keys().isdisjoint(PLAN_PARTS)


def _artefact(path: Path) -> Inspection:
    stored = artefact.load(path)
    quantized, said = stored.quantized, stored.metadata
    network = quantized.network
    size = path.stat().st_size
    facts: dict[str, Value] = {"bytes": size, "schema": artefact.SCHEMA}
    facts |= {k: v for k, v in said.items() if k != "schema" and isinstance(v, str | int | float)}
    rows: list[tuple[Value, ...]] = []
    histogram: Counter[int] = Counter()
    bases: Counter[int] = Counter()
    for layer in network.layers:
        grid = quantized.layers[layer.name].grid
        bits = grid.bits
        bases.update(bits[grid.multibit].tolist())
        for b in bits.tolist():
            histogram[b] += layer.fan_in
        mean = float(bits.double().mean())
        span = f"{int(bits.min())}-{int(bits.max())}"
        packed = -(-int(bits.sum()) * layer.fan_in // 8)
        packed += int(coordinate_bytes(bits[grid.multibit].numpy()).sum())
        shape = "×".join(map(str, layer.shape))
        rows.append((layer.name, layer.kind, shape, layer.weights, round(mean, 2), span, packed))
    total = sum(bits * count for bits, count in histogram.items())
    widths = Counter(
        f"{g.bits} bits ({g.mean_bits:.2f} by channel)" if g.widths else f"{g.bits} bits"
        for g in quantized.edges.values()
    )
    facts |= {
        "weights": network.weights,
        "bits a weight": round(total / network.weights, 4),
        "bytes a weight": round(size / network.weights, 4),
        "channels": sum(layer.rows for layer in network.layers),
        **_of_bases(bases),
        "input of a row": "×".join(map(str, network.input_shape)),
        "activations": ", ".join(f"{n} groups of {b}" for b, n in sorted(widths.items()))
        or "float",
        "left in float": ", ".join(network.skipped) or "nothing",
    }
    columns = ("layer", "kind", "shape", "weights", "bits", "widths", "bytes")
    return Inspection(
        "artefact", facts, columns, tuple(rows), "weights", dict(sorted(histogram.items()))
    )


def _of_bases(counts: Counter[int]) -> dict[str, Value]:
    """Channels by their number of bases, for people; nothing where there are none."""
    each = ", ".join(f"{n} of {k} bases" for k, n in sorted(counts.items()))
    return {"channels of bases": each} if each else {}


def _onnx(path: Path) -> Inspection:
    found = onnx_sealed.read(path)
    graph = found.model.graph
    sizes: dict[str, list[int]] = {}
    for tensor in graph.initializer:
        name = onnx.TensorProto.DataType.Name(tensor.data_type).lower()
        entry = sizes.setdefault(name, [0, 0, 0])
        numbers = int(np.prod(tensor.dims, dtype=object))
        for i, amount in enumerate((1, numbers, len(tensor.raw_data))):
            entry[i] += amount
    operations = Counter(node.op_type for node in graph.node)
    total = sum(found.weights.values())
    mean = sum(bits * count for bits, count in found.weights.items()) / max(total, 1)
    facts: dict[str, Value] = {
        "bytes": found.size,
        "opset": found.model.opset_import[0].version,
        "weights": total,
        "bits a weight": round(mean, 4),
        "inputs": ", ".join(v.name for v in graph.input),
        "outputs": ", ".join(v.name for v in graph.output),
        "operations": ", ".join(f"{n} {op}" for op, n in operations.most_common()),
    }
    rows: list[tuple[Value, ...]] = [(name, *entry) for name, entry in sorted(sizes.items())]
    columns = ("constants of", "tensors", "numbers", "bytes")
    return Inspection("onnx", facts, columns, tuple(rows), "weights", found.weights)


def _plan(path: Path) -> Inspection:
    try:
        found = plans.read_json(read_bytes(path, "a plan"))
    except BitwrightError as error:
        raise BitwrightError(f"{path}: {error}") from error
    facts: dict[str, Value] = {
        "method": found.method,
        "cost in bits": found.cost_bits,
        "budget in bits": found.budget_bits,
        "predicted loss": found.predicted_loss,
        "widths": ", ".join(map(str, found.choices)),
    }
    for limit in found.limits:
        facts[limit.name] = f"{limit.total:.6g} of {limit.bound:.6g} {limit.unit}".strip()
    histogram: Counter[int] = Counter()
    bases: Counter[int] = Counter()
    rows: list[tuple[Value, ...]] = []
    for name, bits in found.bits.items():
        histogram.update(bits)
        own = (c for c in found.bases.get(name, ()) if 0 <= c < len(bits))
        bases.update(bits[c] for c in own)
        mean = round(sum(bits) / max(len(bits), 1), 2)
        rows.append((name, len(bits), mean, f"{min(bits, default=0)}-{max(bits, default=0)}"))
    facts |= _of_bases(bases)
    return Inspection(
        "plan", facts, ("layer", "channels", "bits", "widths"), tuple(rows), "channels",
        dict(sorted(histogram.items())),
    )  # fmt: skip


def _sensitivity(path: Path) -> Inspection:
    found = estimate.load(path)
    facts: dict[str, Value] = {"method": found.method, "key": found.key}
    facts |= {k: v for k, v in found.details.items() if isinstance(v, str | int | float)}
    rows: list[tuple[Value, ...]] = []
    for kind, group in (("layer", found.layers), ("edge", found.edges)):
        for name, e in group.items():
            trace, probes = float(e.value.sum()), float(np.sqrt((e.stderr_probe**2).sum()))
            data = float(e.stderr_data.sum())
            rows.append((kind, name, len(e.value), trace, probes, data, e.samples))
    columns = ("", "name", "channels", "trace", "± probes", "± data", "samples")
    return Inspection("sensitivity", facts, columns, tuple(rows))


#: kind -> how it is read
READERS: dict[str, Callable[[Path], Inspection]] = {
    "artefact": _artefact,
    "onnx": _onnx,
    "plan": _plan,
    "sensitivity": _sensitivity,
}


def to_data(found: Inspection) -> dict[str, Any]:
    """As JSON data; each row an object by column."""
    names = [name or "kind" for name in found.columns]
    return {
        "kind": found.kind,
        "facts": found.facts,
        "rows": [dict(zip(names, row, strict=True)) for row in found.rows],
        "histogram": {"unit": found.unit, "counts": {str(b): n for b, n in found.histogram.items()}}
        if found.unit
        else None,
    }
