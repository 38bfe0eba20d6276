"""safetensors read strictly: one reading of every file, no number taken on trust.

The format is eight bytes of length, a JSON header, and the tensors' bytes one after another. What
is refused here and read elsewhere: a name that stands twice, tensors that leave bytes out or share
them, types without a numpy form. Tensors are views of the file's bytes, so that reading costs no
more memory than the file.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from bitwright.codec import parse
from bitwright.deploy.seal import BLANK, KEY, check, seal
from bitwright.errors import BitwrightError

_TYPES = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "I64": np.int64, "I32": np.int32,
    "I16": np.int16, "I8": np.int8, "U8": np.uint8, "BOOL": np.bool_,
}  # fmt: skip
#: a header is names and places: what is more than this and a quarter of the file is none of ours,
#: and would take more memory than the tensors it is about
_HEADER_ALWAYS = 2**18
_AXES = 16


def to_bytes(tensors: Mapping[str, np.ndarray], header: Mapping[str, Any]) -> bytes:
    """The sealed file; `header` is a JSON object, its metadata entry `bitwright`."""
    said = json.dumps(header, sort_keys=True, separators=(",", ":"), allow_nan=False)
    sealed = f'{{"{KEY}":"{BLANK}",{said[1:]}'
    # one entry of metadata: the library writes several in any order
    return seal(save(dict(tensors), metadata={"bitwright": sealed}))


def read_bytes(path: Path, what: str) -> bytes:
    """All of a file; `what` it should be, for the error.

    Raises:
        BitwrightError: it cannot be read, or is no ordinary file.
    """
    try:
        if path.exists() and not path.is_file():  # a pipe would never end
            raise BitwrightError(f"{path} is not {what}, but no file at all")
        return path.read_bytes()
    except OSError as error:
        raise BitwrightError(f"{path} is not {what}: {error.strerror or error}") from error


def from_bytes(content: bytes, path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Tensors by name and the header of a sealed file.

    Raises:
        BitwrightError: not sealed, damaged, or not one well-formed safetensors file.
    """
    check(content, path)
    try:
        tensors, metadata = parse_tensors(content)
        header = parse(metadata.get("bitwright", "").encode(), "its metadata")
        if not isinstance(header, dict):
            raise ValueError("its metadata is no object")
        return tensors, {key: value for key, value in header.items() if key != KEY}
    except ValueError as error:
        raise BitwrightError(f"{path} is damaged: {error}") from error


def parse_tensors(content: bytes) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The same of any safetensors file, sealed or not.

    Raises:
        ValueError: it is none, or has two readings.
    """
    size = int.from_bytes(content[:8], "little")
    limit = min(len(content) - 8, _HEADER_ALWAYS + len(content) // 4)
    if len(content) < 8 or not 2 <= size <= limit:
        raise ValueError(f"a header of {size} bytes in a file of {len(content)}")
    header = parse(content[8 : 8 + size], "its header")
    if not isinstance(header, dict):
        raise ValueError("its header is no object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise ValueError("its metadata is not text by name")
    data = memoryview(content)[8 + size :]
    entries = {name: _entry(name, entry) for name, entry in header.items()}
    reached = 0
    for name, (_, _, begin, end) in sorted(entries.items(), key=lambda e: e[1][2:]):
        if begin != reached:
            raise ValueError(f"tensor {name[:80]!r} begins at byte {begin}, not at {reached}")
        reached = end
    if reached != len(data):
        raise ValueError(f"tensors of {reached} bytes in {len(data)}")
    tensors = {
        name: np.ndarray(shape, kind, buffer=data, offset=begin)
        for name, (kind, shape, begin, _) in entries.items()
    }
    for name, value in tensors.items():
        if value.dtype == np.bool_ and value.size and value.view(np.uint8).max() > 1:
            raise ValueError(f"tensor {name[:80]!r} holds truths other than 0 and 1")
    return tensors, metadata


def _entry(name: str, entry: Any) -> tuple[Any, tuple[int, ...], int, int]:
    """Type, shape, first byte and byte behind the last."""
    where = f"tensor {name[:80]!r}"
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{where} has other entries than type, shape and place")
    kind = _TYPES.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None
    if kind is None:
        raise ValueError(f"{where} has type {entry['dtype']!r:.20}, which is not read here")
    shape, place = entry["shape"], entry["data_offsets"]
    for numbers in (shape, place):
        if not isinstance(numbers, list) or len(numbers) > _AXES:
            raise ValueError(f"{where} has a shape or place that is no short list")
        if not all(type(n) is int and 0 <= n < 2**63 for n in numbers):
            raise ValueError(f"{where} has a shape or place that is not of sizes")
    size = math.prod(shape) * np.dtype(kind).itemsize
    if len(place) != 2 or place[1] - place[0] != size:
        raise ValueError(f"{where} of shape {shape} does not take bytes {place}")
    return kind, tuple(shape), place[0], place[1]
