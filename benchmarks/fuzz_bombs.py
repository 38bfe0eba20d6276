"""Files of a few megabytes made to take as much memory as they can, and honest ones as long.

Each is read in a process of its own, whose resident memory is watched by the system: what protobuf
and torch take counts too.
"""

from __future__ import annotations

import contextlib
import functools
import json
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from fuzz_mutations import reseal
from torch import nn

from bitwright import allocate, quantize
from bitwright.allocate import Problem
from bitwright.allocate import plan as plans
from bitwright.arith.grid import Grid
from bitwright.deploy import artefact, onnx_file, onnx_sealed
from bitwright.deploy.seal import BLANK, KEY
from bitwright.deploy.tensors import from_bytes, to_bytes
from bitwright.errors import BitwrightError
from bitwright.network import build
from bitwright.quantize import Quantized, QuantizedLayer

#: length of an honest artefact and ONNX file, and of a plan
SIZE, PLAN_SIZE = 2**21, 2**20
#: a hostile file may take twice the honest memory, or as much as this
MEMORY, ALWAYS = 2.0, 2**24


def wide(size: int = SIZE) -> Quantized:
    """One linear layer whose 8-bit codes take `size` bytes: the least graph for them."""
    side = round(size**0.5)
    network = build(nn.Sequential(nn.Linear(side, side)).eval(), torch.zeros(2, side))
    rows = torch.full((side,), 8)
    codes = torch.randint(0, 256, (side, side), dtype=torch.uint8)
    grid = Grid(rows, torch.full((side,), 0.5), torch.full((side,), 256))
    layers = {"0": QuantizedLayer(codes, grid, torch.zeros(side))}
    return Quantized(network, layers, quantize.calibrate(network, torch.randn(4, side)))


@functools.cache
def channels() -> Problem:
    """A problem whose plan takes about `PLAN_SIZE` bytes of text."""
    count = PLAN_SIZE // 6
    names = tuple(f"layer{i // 512}[{i % 512}]" for i in range(count))
    cost = np.tile(np.arange(1, 9), (count, 1))
    return Problem(
        names, tuple(range(1, 9)), -cost.astype(float), cost, 5 * count,
        np.ones((count, 8), dtype=bool), np.arange(count),
    )  # fmt: skip


def _repeated(item: bytes, size: int) -> bytes:
    return item * (size // len(item))


def _plan(inside: bytes) -> Callable[[bytes], bytes]:
    return lambda honest: (
        b'{"schema":1,"bits":{"a":[' + _repeated(inside, len(honest)).rstrip(b",") + b"]}}"
    )


def _header(entry: str) -> Callable[[bytes], bytes]:
    """A safetensors file that is all header."""

    def make(honest: bytes) -> bytes:
        count = len(honest) // (len(entry % 10**5) + 1)
        seal = f'"__metadata__":{{"bitwright":"{{\\"{KEY}\\":\\"{BLANK}\\"}}"}}'
        text = f"{{{seal},{','.join(entry % i for i in range(count))}}}".encode()
        return reseal(len(text).to_bytes(8, "little") + text)

    return make


def _program(text: Callable[[int], bytes]) -> Callable[[bytes], bytes]:
    """An artefact whose program is as long a text as may be, or longer."""

    def make(honest: bytes) -> bytes:
        tensors, said = from_bytes(honest, Path("honest"))
        tensors["program"] = np.frombuffer(zlib.compress(text(len(honest))), np.uint8)
        return to_bytes(tensors, said)

    return make


def _few_nodes(size: int) -> bytes:
    """As many nodes as may be, that load."""
    return _nodes(size, 2**10 + size // 2**11 - 8)


def _nodes(size: int, most: int = 2**30) -> bytes:
    """Nodes, as many as fit, that load."""
    tree: dict[str, Any] = {
        "graph": [], "layers": [[1, 1448, 1448]], "edges": [], "grids": [], "groups": [],
        "input": [1448], "skipped": [],
    }  # fmt: skip
    relu = ',[0,"aten.relu.default",[{"n":-1}]]'
    first = '["x","input",1],[0,"aten.linear.default",[{"n":-1},{"p":"0.weight"},{"p":"0.bias"}]]'
    last = ',[0,"output",[[{"n":-1}]]]'
    graph = first + relu * min(most, (2**18 + size // 4 - 1000) // len(relu)) + last
    return json.dumps(tree).replace('"graph": []', f'"graph": [{graph}]').encode()


def _shape(honest: bytes) -> bytes:
    tensors, said = from_bytes(honest, Path("honest"))
    tree = json.loads(zlib.decompress(tensors["program"].tobytes()))
    tree["layers"][0][2] = 2**40
    tensors["program"] = np.frombuffer(zlib.compress(json.dumps(tree).encode()), np.uint8)
    return to_bytes(tensors, said)


def _fields(inside: bytes) -> Callable[[bytes], bytes]:
    """An ONNX file of empty messages."""

    def make(honest: bytes) -> bytes:
        graph = _repeated(inside, len(honest))
        model = onnx.ModelProto()
        model.metadata_props.add(key="bitwright", value=f'{{"{KEY}":"{BLANK}"}}')
        size, number = b"", len(graph)
        while number > 127:
            size, number = size + bytes([number & 127 | 128]), number >> 7
        return reseal(model.SerializeToString() + b"\x3a" + size + bytes([number]) + graph)

    return make


#: kind -> how an honest file is written, and read
READ: dict[str, tuple[Callable[[Path], object], Callable[[Path], object]]] = {
    "artefact": (lambda p: artefact.save(wide(), p, {}), artefact.load),
    "plan": (
        lambda p: p.write_text(plans.to_json(allocate.knapsack(channels()))),
        lambda p: plans.from_json(p.read_bytes(), channels()),
    ),
    "onnx": (lambda p: onnx_file.save(wide(), p), onnx_sealed.read),
}
#: name -> kind and what makes a hostile file of an honest one
BOMBS: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "plan of lists": ("plan", _plan(b"[],")),
    "plan of objects": ("plan", _plan(b"{},")),
    "plan of words": ("plan", _plan(b'"ab",')),
    "plan of numbers": ("plan", _plan(b"999,")),
    "plan of fractions": ("plan", _plan(b".5,".replace(b".", b"0.")),),
    "header of empty tensors": (
        "artefact", _header('"%d":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'),
    ),
    "header of lists": ("artefact", _header('"%d":[]')),
    "header of names": ("artefact", _header('"%d":0')),
    "program of lists": ("artefact", _program(lambda n: b'{"graph":[' + b"[]," * n + b"0]}")),
    "program of words": ("artefact", _program(lambda n: b'["' + b'ab","' * (n // 20) + b'"]')),
    "program of nodes": ("artefact", _program(_nodes)),
    "program of a few nodes": ("artefact", _program(_few_nodes)),
    "program without an end": ("artefact", _program(lambda n: b" " * (64 * n))),
    "layer beyond memory": ("artefact", _shape),
    "onnx of nodes": ("onnx", _fields(b"\x0a\x00")),
    "onnx of tensors": ("onnx", _fields(b"\x2a\x00")),
    "onnx of names": ("onnx", _fields(b"\x12\x00")),
}  # fmt: skip


def resident(kind: str, path: Path) -> tuple[int, str]:
    """Most resident bytes while another process reads a file, less those before; how it ended."""
    done = subprocess.run(
        [sys.executable, __file__, kind, str(path)], capture_output=True, text=True, timeout=600
    )
    if done.returncode:
        raise AssertionError(
            f"reading {path.name} ended with {done.returncode}: {done.stderr[-500:]}"
        )
    found = json.loads(done.stdout.splitlines()[-1])
    return int(found["bytes"]), str(found["outcome"])


def explode(names: list[str]) -> dict[str, dict[str, Any]]:
    """For each bomb: its length, bytes it took, bytes the honest file took, how it ended."""
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        honest: dict[str, tuple[bytes, int]] = {}
        for name in names:
            kind, make = BOMBS[name]
            if kind not in honest:
                path = Path(folder) / "honest"
                READ[kind][0](path)
                honest[kind] = path.read_bytes(), resident(kind, path)[0]
            content, usual = honest[kind]
            path = Path(folder) / "hostile"
            path.write_bytes(make(content))
            taken, outcome = resident(kind, path)
            outcome = outcome.replace(f"{folder}/", "")
            found[name] = {
                "size": path.stat().st_size, "taken": taken, "honest": usual, "outcome": outcome,
                "holds": taken <= max(MEMORY * usual, ALWAYS),
            }  # fmt: skip
    return found


def _field(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def _read(kind: str, path: str) -> None:
    torch.set_num_threads(1)
    with contextlib.suppress(BitwrightError):  # what is loaded once is nobody's memory
        READ[kind][1](Path("/dev/null"))
    with tempfile.TemporaryDirectory() as folder:
        tiny = Path(folder) / "tiny.safetensors"
        artefact.save(wide(4096), tiny, {})
        artefact.load(tiny)
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = _field("VmRSS")
    try:
        READ[kind][1](Path(path))
        outcome = "read"
    except BitwrightError as error:
        outcome = str(error)
    print(json.dumps({"bytes": _field("VmHWM") - before, "outcome": outcome}))


if __name__ == "__main__":
    _read(*sys.argv[1:])
