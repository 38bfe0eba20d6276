"""Hostile files made from honest ones: bytes, JSON trees and tensors changed at random, seeded."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from bitwright.deploy.seal import BLANK, KEY, seal
from bitwright.deploy.tensors import from_bytes, to_bytes

Rng = np.random.Generator

#: what stands where a number, a name or a list is expected
NUMBERS = (0, 1, -1, 2, 3, 7, 9, 255, 256, 65537, 2**31, 2**32, 2**62, 2**63 - 1, 2**63, 2**64,
           -(2**63), 10**30, 0.5, -0.0, 1e-320, 1e308, True, False)  # fmt: skip
THINGS = (None, "", "x", "weight", "aten.relu.default", "inf", "\x00", "a" * 5000, "\ud800", "../x",
          [], {}, [[]], [0], {"n": -1}, {"p": "x"}, {"m": {}}, {"s": [0, 1, 1]}, {"f": "inf"},
          {"d": "bool"})  # fmt: skip
LENGTHS = (0, 1, 2, 7, 8, 2**16, 10**8, 10**8 + 1, 2**31, 2**32, 2**40, 2**63 - 1, 2**63, 2**64 - 1)


def reseal(content: bytes) -> bytes:
    """The file with a checksum that fits again, where there is a place for one."""
    place = content.find(KEY.encode())
    if place < 0:
        return content
    start = place + len(KEY)
    while start < len(content) and content[start : start + 1] not in b"0123456789abcdef":
        start += 1
    blank = content[:start] + BLANK.encode() + content[start + len(BLANK) :]
    try:
        return seal(blank)
    except ValueError:
        return content


# --------------------------------------------------------------------------------------- on bytes


def _span(rng: Rng, size: int, most: int = 64) -> slice:
    start = int(rng.integers(0, max(size, 1)))
    return slice(start, min(size, start + 1 + int(rng.integers(0, most))))


def flip(content: bytes, rng: Rng) -> bytes:
    """One to eight bits turned over."""
    changed = bytearray(content)
    for place in rng.integers(0, 8 * len(content), int(rng.integers(1, 9))):
        changed[place // 8] ^= 1 << (place % 8)
    return bytes(changed)


def cut(content: bytes, rng: Rng) -> bytes:
    """An end missing."""
    return content[: int(rng.integers(0, len(content)))]


def fill(content: bytes, rng: Rng) -> bytes:
    """A run of bytes that are all alike, or noise."""
    place = _span(rng, len(content))
    size = place.stop - place.start
    run = rng.choice([b"\0", b"\xff", b"[", b'"', b"9", b""])
    return content[: place.start] + (bytes(run) * size or rng.bytes(size)) + content[place.stop :]


def insert(content: bytes, rng: Rng) -> bytes:
    """Noise between two bytes."""
    place = int(rng.integers(0, len(content) + 1))
    return content[:place] + rng.bytes(int(rng.integers(1, 33))) + content[place:]


def remove(content: bytes, rng: Rng) -> bytes:
    """A run left out."""
    place = _span(rng, len(content))
    return content[: place.start] + content[place.stop :]


def repeat(content: bytes, rng: Rng) -> bytes:
    """A run twice, or many times."""
    place = _span(rng, len(content))
    return (
        content[: place.stop] + content[place] * int(rng.choice([1, 2, 50])) + content[place.stop :]
    )


def swap(content: bytes, rng: Rng) -> bytes:
    """Two halves of the file in another order."""
    place = int(rng.integers(0, len(content)))
    return content[place:] + content[:place]


def length(content: bytes, rng: Rng) -> bytes:
    """Another length of the header."""
    options = (*LENGTHS, len(content), len(content) - 8, len(content) - 7)
    return int(rng.choice(np.array(options, dtype=np.uint64))).to_bytes(8, "little") + content[8:]


BYTES: dict[str, Callable[[bytes, Rng], bytes]] = {
    f.__name__: f for f in (flip, cut, fill, insert, remove, repeat, swap, length)
}


# ----------------------------------------------------------------------------- on JSON and tensors


def mangle(tree: Any, rng: Rng) -> Any:
    """JSON data with one place of it replaced, left out, put twice or exchanged; a copy."""
    tree = json.loads(json.dumps(tree))
    owner, key = None, None
    value = tree
    while isinstance(value, dict | list) and len(value) and (owner is None or rng.random() < 0.85):
        owner = value
        names = list(value) if isinstance(value, dict) else range(len(value))
        key = names[int(rng.integers(0, len(names)))]
        value = value[key]
    if owner is None:
        return _thing(rng)
    act = int(rng.integers(0, 6))
    if act == 0:
        del owner[key]
    elif act == 1 and isinstance(owner, list):
        owner.insert(int(rng.integers(0, len(owner) + 1)), value)
    elif act == 2 and isinstance(owner, list):
        other = int(rng.integers(0, len(owner)))
        owner[key], owner[other] = owner[other], owner[key]
    elif act == 3 and isinstance(value, int) and not isinstance(value, bool):
        owner[key] = value + int(rng.choice([-2, -1, 1, 2]))
    else:
        owner[key] = _thing(rng)
    return tree


def _thing(rng: Rng) -> Any:
    pool = NUMBERS if rng.random() < 0.6 else THINGS
    return pool[int(rng.integers(0, len(pool)))]


def as_text(tree: Any, rng: Rng) -> bytes:
    """JSON text, sometimes of a kind that a parser may choke on."""
    text = json.dumps(tree, separators=(",", ":")).encode()
    trick = int(rng.integers(0, 12))
    place = int(rng.integers(0, len(text)))
    if trick == 0:
        return text.replace(b"0", b"NaN", 1)
    if trick == 1:
        return text.replace(b"1", b"1e999", 1)
    if trick == 2:
        return text.replace(b"[", b"[" * int(rng.choice([20, 900, 50_000])), 1)
    if trick == 3 and text[:1] == b"{":
        return b"{" + text[1:-1] + b"," + text[1:]  # every name twice
    if trick == 4:
        return text[:place] + b"\xff\xfe" + text[place:]
    if trick == 5:
        return text.replace(b"1", b"1" * 5000, 1)
    return text


def header(content: bytes, rng: Rng) -> bytes:
    """A safetensors header with something else in it."""
    size = int.from_bytes(content[:8], "little")
    tree = json.loads(content[8 : 8 + size])
    for _ in range(int(rng.integers(1, 3))):
        tree = mangle(tree, rng)
    text = as_text(tree, rng)
    return len(text).to_bytes(8, "little") + text + content[8 + size :]


def program(content: bytes, rng: Rng) -> bytes:
    """An artefact whose program says something else, sealed again."""
    tensors, said = _opened(content)
    tree = json.loads(zlib.decompress(tensors["program"].tobytes()))
    part = rng.choice(
        ["graph", "graph", "graph", "layers", "edges", "grids", "groups", "input", ""]
    )
    for _ in range(int(rng.integers(1, 4))):
        if part:
            tree[str(part)] = mangle(tree[str(part)], rng)
        else:
            tree = mangle(tree, rng)
            break
    tensors["program"] = np.frombuffer(zlib.compress(as_text(tree, rng)), np.uint8)
    return to_bytes(tensors, said)


def tensor(content: bytes, rng: Rng) -> bytes:
    """An artefact with one tensor changed, sealed again."""
    tensors, said = _opened(content)
    name = str(rng.choice(list(tensors)))
    value = np.array(tensors[name])
    act = int(rng.integers(0, 7))
    if act == 0:
        del tensors[name]
    elif act == 1:
        tensors[name] = value[: int(rng.integers(0, len(value) + 1))] if value.ndim else value
    elif act == 2:
        tensors[name] = np.concatenate([value.ravel(), value.ravel()[:7]])
    elif act == 3:
        kinds = ("float16", "float32", "float64", "int8", "uint8", "int64", "bool")
        tensors[name] = value.astype(str(rng.choice(kinds)))
    elif act == 4:
        tensors[str(rng.choice(["more", "f:more", "f:", "f:a.b.c", "bytes", "singles"]))] = value
    elif act == 5 and value.dtype.kind == "f" and value.size:
        value.flat[int(rng.integers(0, value.size))] = rng.choice(
            [np.nan, np.inf, 0.0, -1.0, 1e-30]
        )
        tensors[name] = value
    elif value.size:
        flat = value.view(np.uint8).ravel() if value.flags.c_contiguous and value.ndim else value
        flat.flat[int(rng.integers(0, flat.size))] = int(rng.integers(0, 256)) % 2
        tensors[name] = value
    with np.errstate(all="ignore"):
        return to_bytes(tensors, said)


def metadata(content: bytes, rng: Rng) -> bytes:
    """An artefact about which something else is said, sealed again."""
    tensors, said = _opened(content)
    said = mangle({"schema": said.get("schema"), **said}, rng)
    return to_bytes(tensors, said if isinstance(said, dict) and said else {"schema": 2})


def _opened(content: bytes) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    tensors, said = from_bytes(content, Path("honest"))
    return dict(tensors), said


# ------------------------------------------------------------------------------------------ on ONNX


def onnx_model(content: bytes, rng: Rng) -> bytes:
    """An ONNX file with one thing in its graph changed, sealed again."""
    model = onnx.ModelProto()
    model.ParseFromString(content)
    graph = model.graph
    act = int(rng.integers(0, 9))
    node = graph.node[int(rng.integers(0, len(graph.node)))]
    held = graph.initializer[int(rng.integers(0, len(graph.initializer)))]
    if act == 0:
        node.op_type = str(rng.choice(["Add", "Conv", "Loop", "If", "Expand", "Range", "Nothing",
                                       "QLinearConv", "Reshape", "BitShift", ""]))  # fmt: skip
    elif act == 1 and len(node.input):
        names = [n for other in graph.node for n in (*other.input, *other.output)]
        node.input[int(rng.integers(0, len(node.input)))] = str(rng.choice([*names, "nowhere"]))
    elif act == 2:
        graph.node.remove(node)
    elif act == 3 and len(node.attribute):
        attribute = node.attribute[0]
        number = int(rng.choice([0, -1, 1, 2, 7, 2**31, -(2**62)]))
        if len(attribute.ints):
            attribute.ints[0] = number
        else:
            attribute.i = number
    elif act == 4:
        size = int(rng.choice([0, -1, 1, 2, 2**31, 2**62]))
        held.dims[:] = [size, *held.dims[1:]]
    elif act == 5 and held.raw_data:
        held.raw_data = flip(held.raw_data, rng)
    elif act == 6:
        held.data_type = int(rng.integers(0, 30))
    elif act == 7:
        entry = held.external_data.add()
        entry.key, entry.value = "location", str(rng.choice(["/etc/passwd", "../x", "x", ""]))
        held.data_location = onnx.TensorProto.EXTERNAL
    else:
        model.opset_import[0].version = int(rng.choice([0, 1, 13, 17, 19, 99]))
    return reseal(model.SerializeToString())


def plan(content: bytes, rng: Rng) -> bytes:
    """A plan that says something else."""
    tree = json.loads(content)
    for _ in range(int(rng.integers(1, 4))):
        tree = mangle(tree, rng)
    return as_text(tree, rng)
