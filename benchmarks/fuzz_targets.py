"""What is fuzzed: an honest file of each kind, how it is read, and what may come of a hostile one.

A reader may raise `BitwrightError`, one line, and nothing else. What it accepts must be the honest
file, byte for byte, unless the mutation sealed the file again: then it must be a network (a plan, a
proof) that is whole in itself.
"""

from __future__ import annotations

import functools
import json
import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fuzz_mutations as m
import numpy as np
import torch
from torch import Tensor, nn

from bitwright import allocate, quantize
from bitwright.allocate import Problem
from bitwright.allocate import plan as plans
from bitwright.curvature import Estimate, Sensitivity, estimate
from bitwright.deploy import IntegerNetwork, artefact, onnx_file, onnx_sealed, verify
from bitwright.network import build
from bitwright.quantize import Quantized
from bitwright.report import inspection

#: an accepted network is run where its values are no more numbers than this
_NUMBERS = 1_000_000


class Small(nn.Module):
    """A convolution, a residual, a concatenation, a norm in float and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 6, 3, padding=1)
        self.b = nn.Conv2d(6, 6, 3, padding=1, groups=2)
        self.norm = nn.LayerNorm(12)
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        """[n, 3, 6, 6] -> [n, 4]."""
        x = torch.relu(self.a(x))
        x = torch.cat([x, nn.functional.relu6(self.b(x) + x)], 1)
        return self.head(self.norm(x.mean((2, 3))))


@functools.cache
def small() -> tuple[Quantized, Problem, Tensor]:
    """The network with random widths, a problem of its channels, and rows."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = build(Small().eval(), x := torch.randn(8, 3, 6, 6))
    rng = np.random.default_rng(0)
    widths = {la.name: rng.integers(1, 9, la.rows) for la in network.layers}
    tables = quantize.weight_tables(network)
    layers = quantize.round_weights(network, tables, widths)
    scores = {name: table.error.T.numpy() for name, table in tables.items()}
    problem = quantize.channel_problem(
        network, Sensitivity("none", {}), tables, 3 * network.weights, score=scores
    )
    return Quantized(network, layers, quantize.calibrate(network, x)), problem, x


@dataclass(frozen=True)
class Target:
    """A kind of file.

    Attributes:
        suffix: of its name.
        make: writes the honest file.
        read: what is under test.
        whole: fails unless what was read from a resealed file is whole in itself.
        mutations: beside those of bytes; all of them seal the file again if it has a seal.
        sealed: whether a file has a checksum: without one, other bytes may be another good file.
    """

    suffix: str
    make: Callable[[Path], object]
    read: Callable[[Path], Any]
    whole: Callable[[Any, bytes], None]
    mutations: dict[str, Callable[[bytes, m.Rng], bytes]] = field(default_factory=dict)
    sealed: bool = True

    @functools.cached_property
    def honest(self) -> bytes:
        """The honest file."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"honest{self.suffix}"
            self.make(path)
            return path.read_bytes()


def _runs(found: artefact.Artefact, content: bytes) -> None:
    """The network can be stored again, comes back the same, and computes."""
    quantized = found.quantized
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "again.safetensors"
        artefact.save(quantized, path, found.metadata)
        again = artefact.load(path).quantized
    for name, stored in quantized.layers.items():
        assert torch.equal(stored.codes, again.layers[name].codes)
        assert torch.equal(stored.bias, again.layers[name].bias)
    network = quantized.network
    shapes = [n.meta.get("row_shape", ()) for n in network.module.graph.nodes]
    if sum(map(math.prod, shapes)) > _NUMBERS:
        return
    kind = next(n for n in network.module.graph.nodes if n.op == "placeholder").meta["is_float"]
    x = torch.zeros(2, *network.input_shape, dtype=torch.float32 if kind else torch.int64)
    IntegerNetwork(quantized)(x)


def _as_written(found: allocate.Plan, content: bytes) -> None:
    """The plan's widths are those that stand in the text."""
    said = json.loads(content)["bits"]
    bits = iter(found.bits.tolist())
    for name in dict.fromkeys(n.rpartition("[")[0] for n in found.names):
        assert [next(bits) for _ in said[name]] == said[name], name


def _verified(path: Path) -> Any:
    onnx_sealed.read(path)
    quantized, _, x = small()
    return verify(quantized, path, x[:2])


def _nothing(found: Any, content: bytes) -> None:
    """Whatever was read is data about the file."""


def _sensitivity(path: Path) -> None:
    table = Estimate(np.ones(6), np.ones(6), np.ones(6), 64)
    layers = {la.name: table for la in small()[0].network.layers}
    estimate.save(Sensitivity("gauss-newton", layers, {"x": table}, "k", {"share": 0.9}), path)


def _plan(path: Path) -> None:
    path.write_text(plans.to_json(allocate.knapsack(small()[1])))


@functools.cache
def _exported() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        onnx_file.save(small()[0], path)
        return path.read_bytes()


def _onnx(path: Path) -> None:
    path.write_bytes(_exported())


def _artefact(path: Path) -> None:
    artefact.save(small()[0], path, {"producer": "fuzz", "preprocessing": {"mean": [0.5]}})


_OPENED = {f.__name__: f for f in (m.header, m.program, m.tensor, m.metadata)}
TARGETS: dict[str, Target] = {
    "artefact": Target(".safetensors", _artefact, artefact.load, _runs, _OPENED),
    "plan": Target(
        ".json", _plan, lambda p: plans.from_json(p.read_bytes(), small()[1]), _as_written,
        {"plan": m.plan}, sealed=False,
    ),
    "onnx, read": Target(
        ".onnx", _onnx, onnx_sealed.read, _nothing, {"onnx_model": m.onnx_model}
    ),
    "onnx, verified": Target(
        ".onnx", _onnx, _verified, _nothing, {"onnx_model": m.onnx_model}
    ),
    "inspect artefact": Target(".safetensors", _artefact, inspection.inspect, _nothing, _OPENED),
    "inspect plan": Target(
        ".json", _plan, inspection.inspect, _nothing, {"plan": m.plan}, sealed=False
    ),
    "inspect sensitivity": Target(
        ".safetensors", _sensitivity, inspection.inspect, _nothing, {"header": m.header},
        sealed=False,
    ),
}  # fmt: skip
