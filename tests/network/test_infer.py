"""Shapes of a stored program: every operation it may call has them, and none can be a bomb."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from torch import Tensor

from bitwright.errors import BitwrightError
from bitwright.network import describe, run
from bitwright.network.ops import UNSUPPORTED
from bitwright.network.program import _NAMES, KNOWN, from_json

X = ["x", "input", 1]
ROW: tuple[int, ...] = (4, 6, 6)
PARAMETERS = {
    "w1": torch.rand(4, 4, 3),
    "w2": torch.rand(4, 4, 3, 3),
    "w3": torch.rand(4, 4, 1, 3, 3),
    "w": torch.rand(5, 6),
    "b": torch.rand(4),
    "b5": torch.rand(5),
    "v": torch.rand(4) + 1,
    "six": torch.rand(6),
    "square": torch.rand(6, 6),
}
IT = {"n": -1}
FLAT = (4, 6)


def p(name: str) -> dict[str, str]:
    return {"p": name}


#: operation -> arguments, and the shape of a row where it is not `ROW`
CALLS: dict[str, tuple[list[Any], tuple[int, ...]]] = {
    "aten.conv1d.default": ([IT, p("w1"), p("b"), [1], [1]], FLAT),
    "aten.conv2d.default": ([IT, p("w2"), p("b"), [2, 2], [1, 1]], ROW),
    "aten.linear.default": ([IT, p("w"), p("b5")], ROW),
    "aten.view.default": ([IT, [-1, 4, 36]], ROW),
    "aten.reshape.default": ([IT, [-1, 144]], ROW),
    "aten.flatten.using_ints": ([IT, 2], ROW),
    "aten.unflatten.int": ([IT, 1, [2, 2]], ROW),
    "aten.slice.Tensor": ([IT, 2, 1, 5, 2], ROW),
    "aten.permute.default": ([IT, [0, 2, 3, 1]], ROW),
    "aten.transpose.int": ([IT, 1, 3], ROW),
    "aten.squeeze.default": ([IT], ROW),
    "aten.squeeze.dim": ([IT, 1], ROW),
    "aten.squeeze.dims": ([IT, [1, 2]], ROW),
    "aten.unsqueeze.default": ([IT, 1], ROW),
    "aten.expand.default": ([IT, [-1, 4, 6, 6]], ROW),
    "aten.expand_as.default": ([IT, IT], ROW),
    "aten.contiguous.default": ([IT], ROW),
    "aten.clone.default": ([IT], ROW),
    "aten.select.int": ([IT, 1, 0], ROW),
    "aten.max_pool1d.default": ([IT, [2]], FLAT),
    "aten.max_pool2d.default": ([IT, [3, 3], [2, 2], [1, 1]], ROW),
    "aten.pad.default": ([IT, [1, 1, 2, 0]], ROW),
    "aten.adaptive_max_pool2d.default": ([IT, [2, 2]], ROW),
    "aten.channel_shuffle.default": ([IT, 2], ROW),
    "aten.relu.default": ([IT], ROW),
    "aten.relu6.default": ([IT], ROW),
    "aten.hardtanh.default": ([IT, -1.0, 1.0], ROW),
    "aten.clamp.default": ([IT, 0, 6], ROW),
    "aten.clamp_min.default": ([IT, 0.0], ROW),
    "aten.add.Tensor": ([IT, IT], ROW),
    "aten.mul.Tensor": ([IT, IT], ROW),
    "aten.avg_pool1d.default": ([IT, [2]], FLAT),
    "aten.avg_pool2d.default": ([IT, [3, 3], [2, 2], [1, 1]], ROW),
    "aten.adaptive_avg_pool2d.default": ([IT, [1, 1]], ROW),
    "aten.mean.dim": ([IT, [2, 3]], ROW),
    "aten.cat.default": ([[IT, IT], 1], ROW),
    "aten.batch_norm.default": (
        [IT, p("v"), p("b"), p("b"), p("v"), False, 0.1, 1e-5, False], ROW,
    ),
    "aten.layer_norm.default": ([IT, [6], p("six"), p("six")], ROW),
    "aten.group_norm.default": ([IT, 2, p("v"), p("b")], ROW),
    "aten.instance_norm.default": (
        [IT, p("v"), p("b"), None, None, True, 0.1, 1e-5, False], ROW,
    ),
    "aten.rms_norm.default": ([IT, [6], p("six")], ROW),
    "aten.softmax.int": ([IT, -1], ROW),
    "aten.log_softmax.int": ([IT, 1], ROW),
    "aten.prelu.default": ([IT, p("v")], ROW),
    "aten.pow.Tensor_Scalar": ([IT, 2], ROW),
    "aten.add.Scalar": ([IT, 1], ROW),
    "aten.sub.Tensor": ([IT, IT], ROW),
    "aten.sub.Scalar": ([IT, 1.5], ROW),
    "aten.rsub.Scalar": ([IT, 1], ROW),
    "aten.mul.Scalar": ([IT, 3], ROW),
    "aten.div.Tensor": ([IT, IT], ROW),
    "aten.div.Scalar": ([IT, 2], ROW),
    "aten.matmul.default": ([IT, p("square")], ROW),
    "aten.bmm.default": ([IT, IT], (6, 6)),
    "aten.scaled_dot_product_attention.default": ([IT, IT, IT], ROW),
    "aten.sum.dim_IntList": ([IT, [1], True], ROW),
    "aten.mean.default": ([IT], ROW),
    "aten.amax.default": ([IT, [2, 3]], ROW),
    "aten.adaptive_avg_pool1d.default": ([IT, [2]], FLAT),
    "aten.split.Tensor": ([IT, 2, 1], ROW),
    "aten.split_with_sizes.default": ([IT, [1, 3], 1], ROW),
    "aten.chunk.default": ([IT, 2, 1], ROW),
    "aten.unbind.int": ([IT, 1], ROW),
    "aten.stack.default": ([[IT, IT], 1], ROW),
    "aten.pixel_shuffle.default": ([IT, 2], ROW),
    "aten.constant_pad_nd.default": ([IT, [1, 1], 2.0], ROW),
    "aten.upsample_nearest2d.vec": ([IT, None, [2.0, 2.0]], ROW),
    "aten.upsample_bilinear2d.vec": ([IT, None, False, [2.0, 2.0]], ROW),
    "aten.eq.Scalar": ([IT, 0], ROW),
    "aten.to.dtype": ([IT, {"d": "float64"}], ROW),
    "aten.sym_size.int": ([IT, 1], ROW),
}  # fmt: skip
#: that take one value and change no shape
CALLS |= {
    f"aten.{name}.default": ([IT], ROW)
    for name in ("sigmoid", "tanh", "gelu", "silu", "mish", "elu", "selu", "celu", "leaky_relu",
                 "hardswish", "hardsigmoid", "softplus", "exp", "log", "sqrt", "rsqrt", "neg",
                 "abs", "logical_not", "ones_like", "zeros_like")
}  # fmt: skip
CALLS |= {f"aten.{name}.Scalar": ([IT, 0.5], ROW) for name in ("ge", "gt", "le", "lt", "ne")}
#: more than one value or another call before them
CHAINS: dict[str, tuple[list[list[Any]], tuple[int, ...]]] = {
    "aten.masked_fill.Scalar": (
        [[0, "aten.eq.Scalar", [IT, 0]], [0, "aten.masked_fill.Scalar", [{"n": -2}, IT, 1.0]]], ROW,
    ),
    "aten.where.self": (
        [[0, "aten.eq.Scalar", [IT, 0]], [0, "aten.where.self", [IT, {"n": -2}, {"n": -2}]]], ROW,
    ),
    "aten.embedding.default": (
        [[0, "aten.to.dtype", [IT, {"d": "int64"}]],
         [0, "aten.embedding.default", [p("w"), IT, 0]]], ROW,
    ),
    "py.getitem": (
        [[0, "aten.chunk.default", [IT, 2, 1]], [0, "py.getitem", [IT, 1]]], ROW,
    ),
}  # fmt: skip
for _name in ("add", "sub", "mul", "floordiv", "truediv"):
    _size = [0, "aten.sym_size.int", [IT, 2]]
    CHAINS[f"py.{_name}"] = ([_size, [0, f"py.{_name}", [IT, 2]]], ROW)


def loaded(nodes: list[list[Any]], row: tuple[int, ...]) -> Any:
    read = {
        name: PARAMETERS[name]
        for name in PARAMETERS
        if any(f"'{name}'" in str(node[2:]) for node in nodes)
    }
    return from_json([X, *nodes, ["output", "output", [[IT]]]], read, row)


@pytest.mark.parametrize("name", sorted(KNOWN))
def test_every_operation_has_a_shape_without_numbers(name: str):
    if KNOWN[name] in UNSUPPORTED:
        pytest.skip("left in float; covered where a layer of it is")
    nodes, row = CHAINS.get(name) or ([[0, name, CALLS[name][0]]], CALLS[name][1])
    module = loaded(nodes, row)
    node = next(n for n in module.graph.nodes if _NAMES.get(n.target) == name)
    value = run(module, torch.rand(2, *row))
    if isinstance(value, Tensor):
        assert node.meta["row_shape"] == tuple(value.shape[1:])
        assert node.meta["is_float"] == value.is_floating_point()
    else:
        assert "row_shape" not in node.meta


BOMBS = {
    "a million pieces": [[0, "aten.expand.default", [IT, [2, 4, 6, 6]]],
                         [0, "aten.reshape.default", [IT, [2, 144]]],
                         [0, "aten.unsqueeze.default", [IT, 1]],
                         [0, "aten.expand.default", [IT, [2, 10**6, 144]]],
                         [0, "aten.unbind.int", [IT, 1]]],
    "a million chunks": [[0, "aten.chunk.default", [IT, 10**6, 1]]],
    "splits of nothing": [[0, "aten.split.Tensor", [IT, 0, 1]]],
    "a number squared a hundred times": [
        [0, "aten.sym_size.int", [IT, 2]], *[[0, "py.mul", [IT, IT]]] * 100,
    ],
    "a word a billion times": [[0, "py.mul", ["word", 10**9]]],
    "a list doubled": [[0, "py.add", [[1] * 9, [1] * 9]]],
    "an item of a number": [[0, "py.getitem", [IT, 0]]],
    "more axes than there are": [[0, "aten.reshape.default", [IT, [2, 144, *[1] * 40]]]],
    "weights of more axes": [[0, "aten.conv2d.default", [IT, p("w3"), p("b"), [1, 1], [1, 1]]]],
    "weights of fewer axes": [[0, "aten.linear.default", [IT, p("six")]]],
    "weights of another type": [[0, "aten.layer_norm.default", [IT, [6], p("half"), p("half")]]],
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_at_once(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(PARAMETERS, "half", torch.rand(6).half())
    begin = time.process_time()
    with pytest.raises(BitwrightError) as caught:
        loaded(BOMBS[name], ROW)
    assert len(str(caught.value)) < 400
    assert time.process_time() - begin < 5


def test_joins_of_joins_are_described_at_once():
    """A path for each subset of the joins: looking at paths instead of nodes would never end."""
    nodes: list[list[Any]] = [[0, "aten.relu.default", [IT]]]
    for _ in range(60):
        nodes.append([0, "aten.cat.default", [[IT, IT], 1]])
        nodes.append([0, "aten.slice.Tensor", [IT, 1, 0, 4]])
    nodes.append([0, "aten.conv2d.default", [IT, p("w2"), p("b")]])
    module = loaded(nodes, ROW)
    begin = time.process_time()
    network = describe(module, ROW, ())
    assert time.process_time() - begin < 5
    assert all(e.at_zero for e in network.edges if e.name.startswith("cat"))


def test_a_thousand_values_in_a_row_are_described():
    """Deeper than Python may recurse."""
    nodes = [[0, "aten.contiguous.default", [IT]]] * 1200
    nodes = [*nodes, [0, "aten.conv2d.default", [IT, p("w2"), p("b")]]]
    network = describe(loaded(nodes, ROW), ROW, ())
    assert len({e.group for e in network.edges}) == 1
