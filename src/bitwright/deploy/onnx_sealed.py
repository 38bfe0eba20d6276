"""ONNX files with a seal of ours: written with what is inside, read without trusting a byte.

The metadata entry `bitwright` of the model is JSON: the seal (:mod:`bitwright.deploy.seal`), a
schema, and how many weights have each width, which the graph of unpacking operations does not tell.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import DecodeError

from bitwright.codec import decode, parse
from bitwright.deploy.files import write
from bitwright.deploy.seal import BLANK, KEY, check, seal
from bitwright.deploy.tensors import read_bytes
from bitwright.errors import BitwrightError
from bitwright.quantize import Quantized

SCHEMA = 1
_ENTRY = "bitwright"
#: operations that hold other graphs, repeat them or come from elsewhere: none of ours
_REFUSED = {"If", "Loop", "Scan", "SequenceMap"}
#: a message takes 75 times the memory of its two bytes: at most one for so many bytes, a field each
_BYTES_MESSAGE, _BYTES_FIELD, _ALWAYS = 10, 3, 256
#: messages inside each other, as many as protobuf reads
_DEPTH = 100


@dataclass(frozen=True)
class Sealed:
    """An ONNX file of ours.

    Attributes:
        model: the parsed file, external data not read.
        weights: how many weights have each width, ascending.
        size: of the file, in bytes.
    """

    model: onnx.ModelProto
    weights: dict[int, int]
    size: int


@dataclass(frozen=True)
class _Header:
    schema: int
    weights: dict[str, int]


def save(model: ir.Model, quantized: Quantized, path: Path) -> None:
    """Write a model of `quantized`, sealed, to a temporary name first.

    Above 2 GB its tensors are in `NAME.data` beside it.
    """
    weights: Counter[int] = Counter()
    for layer in quantized.network.layers:
        for bits in quantized.layers[layer.name].grid.bits.tolist():
            weights[bits] += layer.fan_in
    save_counted(model, weights, path)


def save_counted(model: ir.Model, weights: Mapping[int, int], path: Path) -> None:
    """The same for a model of so many weights of each width."""
    said = {KEY: BLANK, "schema": SCHEMA, "weights": {str(b): weights[b] for b in sorted(weights)}}
    model.metadata_props[_ENTRY] = json.dumps(said, separators=(",", ":"))
    write(model, path, finish=seal)


def read(path: Path) -> Sealed:
    """An ONNX file of ours, safe to give to a runtime.

    Raises:
        BitwrightError: it is not sealed, damaged, or holds what no file of ours does.
    """
    content = read_bytes(path, "an ONNX file")
    check(content, path)
    try:
        _scan(content)
        model = onnx.ModelProto()
        model.ParseFromString(content)
        _check_graph(model, path.parent)
        entries = {p.key: p.value for p in model.metadata_props}
        found = parse(entries.get(_ENTRY, "").encode(), "its metadata")
        if isinstance(found, dict):
            found.pop(KEY, None)
        header: _Header = decode(_Header, found, "its metadata")
        if header.schema != SCHEMA:
            raise ValueError(f"it has schema {header.schema}; this version reads {SCHEMA}")
        weights = {int(bits): count for bits, count in header.weights.items()}
        if any(not 1 <= bits <= 8 or count < 1 for bits, count in weights.items()):
            raise ValueError("its weights have widths outside 1 to 8")
        return Sealed(model, dict(sorted(weights.items())), len(content))
    except (ValueError, DecodeError) as error:
        raise BitwrightError(f"{path} is damaged: {error}") from error


def _scan(content: bytes) -> None:
    """Refuse protobuf that would take far more memory than it has bytes, before it is parsed.

    Messages are entered where they stand, so that nothing is kept but the ends of those around.
    """
    messages = fields = place = 0
    data = memoryview(content)
    around: list[tuple[int, Descriptor]] = [(len(content), onnx.ModelProto.DESCRIPTOR)]
    while around:
        end, kind = around[-1]
        if place == end:
            around.pop()
            continue
        key, place = _varint(data, place)
        field, form = kind.fields_by_number.get(key >> 3), key & 7
        size, inside = 0, None
        if form == 0:
            _, place = _varint(data, place)
        elif form in (1, 5):
            size = 8 if form == 1 else 4
        elif form == 2:
            size, place = _varint(data, place)
            inside = None if field is None else field.message_type
            if field is not None and field.type == field.TYPE_STRING:
                data[place : place + size].tobytes().decode()  # ValueError where it is none
        else:
            raise ValueError(f"a field of wire type {form}, which ONNX has none of")
        fields, messages = fields + 1, messages + (inside is not None)
        if place + size > end:
            raise ValueError("a field reaches beyond its end")
        if (
            messages > _ALWAYS + len(content) // _BYTES_MESSAGE
            or fields > _ALWAYS + len(content) // _BYTES_FIELD
            or len(around) > _DEPTH
        ):
            raise ValueError("it is more structure than content")
        if inside is None:
            place += size
        else:
            around.append((place + size, inside))


def _varint(data: memoryview, place: int) -> tuple[int, int]:
    """A number of up to ten bytes, and where it ends."""
    value = 0
    for i, byte in enumerate(data[place : place + 10]):
        value |= (byte & 127) << (7 * i)
        if byte < 128:
            return value, place + i + 1
    raise ValueError("a number does not end")


def _check_graph(model: onnx.ModelProto, folder: Path) -> None:
    domains = {o.domain for o in model.opset_import}
    if domains != {""} or model.functions or model.training_info:
        raise ValueError(f"it needs more than ONNX itself: {sorted(domains)!r:.100}")
    graph = model.graph
    for node in graph.node:
        if node.domain or node.op_type in _REFUSED:
            raise ValueError(f"it calls {node.domain!r:.20} {node.op_type!r:.40}")
        if any(a.HasField("g") or a.graphs for a in node.attribute):
            raise ValueError(f"a {node.op_type!r:.40} holds another graph")
    if graph.sparse_initializer:
        raise ValueError("it holds sparse tensors")
    for tensor in graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
            _check_beside(tensor, folder)
        elif tensor.HasField("raw_data"):
            _check_size(tensor)


def _check_beside(tensor: onnx.TensorProto, folder: Path) -> None:
    """Whether a tensor's bytes are where it says, in a file beside the model."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    name = entries.get("location", "")
    if Path(name).name != name or name.startswith(".") or not name.isprintable():
        raise ValueError(f"its data lies in {name!r:.80}, which is not beside it")
    file = folder / name
    if not name or not file.is_file() or file.is_symlink():
        raise ValueError(f"its data lies in {name!r:.80}, where there is no file")
    if int(entries.get("offset", 0)) + int(entries.get("length", 0)) > file.stat().st_size:
        raise ValueError(f"{name!r:.80} does not reach as far as its tensors")


def _check_size(tensor: onnx.TensorProto) -> None:
    """Whether a tensor has as many bytes as its shape says."""
    count = 1
    for size in tensor.dims:
        count *= size
    try:
        each = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    except KeyError:
        raise ValueError(f"{tensor.name!r:.40} is of an unknown type") from None
    packed = tensor.data_type in (onnx.TensorProto.INT4, onnx.TensorProto.UINT4)
    wanted = -(-count // 2) if packed else count * each
    if count < 0 or min(tensor.dims, default=0) < 0 or len(tensor.raw_data) != wanted:
        raise ValueError(f"{tensor.name!r:.40} has {len(tensor.raw_data)} bytes for {wanted}")
