"""A stored program computes what the captured graph does, and can do nothing else."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bitwright.errors import BitwrightError
from bitwright.network import build, describe, outputs, run
from bitwright.network.program import from_json, to_json, unstorable


class Mixed(nn.Module):
    """Convolution, residual, concatenation, gating, padding, slicing and a tied linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU6())
        self.b = nn.Conv2d(4, 4, 3, padding=1, groups=2, bias=False)
        self.gate = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(8)
        self.l = nn.Linear(8, 8)
        self.out = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        h = torch.relu(self.b(h) + h)
        h = h * self.gate(h.mean((2, 3))).sigmoid()[:, :, None, None]
        h = nn.functional.pad(h, (1, 0, 0, 1), value=float("-inf"))
        h = nn.functional.max_pool2d(h, 2)
        h = torch.cat([h, h.clamp(min=0)], 1).mean((2, 3))
        h, _ = self.norm(h).chunk(2, 1) if False else (self.norm(h), None)
        h = nn.functional.gelu(self.l(torch.tanh(self.l(h))))
        a, b = h.split(4, 1)
        return self.out(torch.cat([a, b[:, 1:], b[:, :1]], 1))


@pytest.fixture(scope="module")
def stored() -> tuple[Any, Any, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    network = build(Mixed().double().eval(), x)
    return network, json.loads(json.dumps(to_json(network.module))), x


def tensors(network: Any) -> dict[str, Tensor]:
    return {**dict(network.module.named_parameters()), **dict(network.module.named_buffers())}


def test_round_trip(stored: tuple[Any, Any, Tensor]):
    network, program, x = stored
    assert unstorable(network.module) == []
    module = from_json(program, tensors(network), network.input_shape)
    assert torch.equal(run(module, x), run(network.module, x))
    shapes = [[n.meta.get("row_shape") for n in m.graph.nodes if n.op == "call_function"]
              for m in (module, network.module)]  # fmt: skip
    assert shapes[0] == shapes[1] and any(shapes[0])
    assert to_json(module) == to_json(network.module)
    again = describe(module, network.input_shape, network.skipped)
    assert again.layers == network.layers
    assert again.edges == network.edges


def test_round_trip_of_token_inputs():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(9, 6), nn.Flatten(), nn.Linear(24, 3))
    x = torch.randint(0, 9, (3, 4))
    network = build(model, x, skip=["0"])
    program = json.loads(json.dumps(to_json(network.module)))
    module = from_json(program, tensors(network), network.input_shape)
    assert torch.equal(run(module, x), model(x))


def test_what_cannot_be_stored_is_named():
    class Sorts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.l = nn.Linear(5, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.l(x).cumsum(1)

    assert unstorable(build(Sorts(), torch.randn(2, 5)).module) == ["aten.cumsum.default"]


X = ["x", "input", 1]
OUT = ["output", "output", [[{"n": -1}]]]


def calls(target: Any, args: Any = None, kwargs: Any = None) -> list[Any]:
    args = [{"n": -1}] if args is None else args
    return [X, ["y", target, args, kwargs or {"m": {}}], OUT]


@pytest.mark.parametrize(
    "target",
    [
        "aten.from_file.default",
        "aten.empty.memory_format",
        "aten.copy_.default",
        "os.system",
        "py.eval",
        "py.getattr",
        "builtins.eval",
        "aten.relu_.default",
        "",
        None,
        ["aten.relu.default"],
    ],
)
def test_unknown_operations_are_refused(target: Any):
    with pytest.raises(BitwrightError):
        from_json(calls(target), {}, (3,))


def test_known_operations_are_not():
    module = from_json(calls("aten.relu.default"), {}, (3,))
    assert torch.equal(run(module, torch.ones(2, 3)), torch.ones(2, 3))


@pytest.mark.parametrize(
    ("program", "parameters"),
    [
        (None, {}),
        ({"a": 1}, {}),
        ([["x"]], {}),
        ([X], {}),
        ([X, X, OUT], {}),
        ([["x", "call_method", "exp", [{"n": -1}]]], {}),
        (calls("aten.relu.default", [{"p": "w"}]), {}),
        (calls("aten.relu.default", [{"p": "training"}]), {}),
        (calls("aten.relu.default", [{"p": ["w"]}]), {}),
        (calls("aten.relu.default", [{"n": 0}]), {}),
        (calls("aten.relu.default", [{"n": -2}]), {}),
        (calls("aten.relu.default", [{"n": 1.0}]), {}),
        (calls("aten.relu.default", [{"?": 1}]), {}),
        (calls("aten.relu.default", [{"d": "float8"}]), {}),
        (calls("aten.relu.default", [{"n": -1, "d": "float32"}]), {}),
        (calls("aten.relu.default", None, {"m": {"a-b": 1}}), {}),
        (calls("aten.relu.default", None, [1]), {}),
        ([X, OUT], {"": torch.ones(1)}),
        ([X, OUT], {"a": torch.ones(1), "a.b": torch.ones(1)}),
        ([X, OUT], {"forward.b": torch.ones(1)}),
        ([X, OUT], {"training": torch.ones(1)}),
    ],
)
def test_damaged_programs_are_refused(program: Any, parameters: dict[str, Tensor]):
    with pytest.raises(BitwrightError):
        from_json(program, parameters, (3,))


def placeholder(code: str) -> tuple[Any, dict[str, Tensor]]:
    return [[f"x={code}", "input", 1], OUT], {}


def body(code: str) -> tuple[Any, dict[str, Tensor]]:
    name = f"w\n{code.replace('.', '__DOT__')}"
    return calls("aten.relu.default", [{"p": name}]), {name: torch.ones(3)}


def keyword(code: str) -> tuple[Any, dict[str, Tensor]]:
    return calls("aten.relu.default", None, {"m": {f"a=1)\n{code}\n(b": 1}}), {}


def node_name(code: str) -> tuple[Any, dict[str, Tensor]]:
    return [[f"x\n{code}\n", *X[1:]], OUT], {}


@pytest.mark.parametrize("attack", [placeholder, body, keyword, node_name])
def test_no_name_becomes_code(attack: Callable[[str], Any], tmp_path: Path):
    """torch.fx writes names into Python source and runs it when a graph module is made."""
    mark = tmp_path / "mark"
    program, parameters = attack(f"__import__('pathlib').Path({str(mark)!r}).touch()")
    with pytest.raises(BitwrightError):
        from_json(program, parameters, (3,))
    assert not mark.exists()


def test_a_network_goes_to_another_process_and_computes_the_same() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU6(), nn.Flatten(), nn.Linear(16, 5))
    x = torch.randn(6, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    network = build(model.eval(), x)
    again = pickle.loads(pickle.dumps(network))
    assert again.layers == network.layers and again.edges == network.edges
    assert torch.equal(outputs(again.module, x), outputs(network.module, x))
    names = [
        [n.name for n in some.module.graph.nodes if n.op != "get_attr"] for some in (again, network)
    ]
    assert names[0] == names[1]
