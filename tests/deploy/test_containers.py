"""What the weights become in the graph: signed where that is safe everywhere, else unsigned."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitwright.arith.grid import container
from bitwright.arith.saturation import saturated
from bitwright.deploy import IntegerNetwork, onnx_file, runtime, verify
from bitwright.network import build
from bitwright.quantize import (
    EdgeGrid,
    Quantized,
    calibrate,
    exposed,
    narrowed,
    round_weights,
    weight_tables,
)
from deploy import nets


def weight_types(path: Path) -> list[int]:
    """Types of the weights that the runtime's integer kernels read, in the order of the graph."""
    folder = path.parent / "optimized"
    folder.mkdir(exist_ok=True)
    runtime.session(path, optimized=folder / "model.onnx")
    graph = onnx.load(folder / "model.onnx").graph
    kinds = {t.name: t.data_type for t in graph.initializer}
    places = {"QLinearConv": 3, "QGemm": 3}
    return [kinds[n.input[places[n.op_type]]] for n in graph.node if n.op_type in places]


def full(name: str, widths: tuple[int, int]) -> Quantized:
    """Weights of the roster's network at both ends of their grids."""
    quantized, _ = nets.quantized(name, bits=widths)
    rng = np.random.default_rng(0)
    layers = {}
    for layer in quantized.network.layers:
        stored = quantized.layers[layer.name]
        ends = np.stack([np.zeros(layer.rows), 2.0 ** stored.grid.bits.numpy() - 1], 1)
        pick = rng.integers(0, 2, (layer.rows, layer.fan_in))
        codes = np.take_along_axis(ends, pick, 1).astype(np.uint8)
        layers[layer.name] = replace(stored, codes=torch.from_numpy(codes))
    edges = {g: replace(e, scale=e.scale * 4) for g, e in quantized.edges.items()}
    return replace(quantized, layers=layers, edges=edges)


@pytest.mark.parametrize(("widths", "safe"), [((1, 6), True), ((8, 8), False)])
def test_weights_are_signed_where_no_kernel_can_saturate(
    widths: tuple[int, int], safe: bool, tmp_path: Path
):
    quantized, path = full("residual", widths), tmp_path / "model.onnx"
    found = exposed(quantized.network, quantized.layers, quantized.edges)
    assert bool(found) is not safe
    onnx_file.save(quantized, path)
    signed = onnx.TensorProto.INT8 if safe else onnx.TensorProto.UINT8
    assert set(weight_types(path)) == {signed}
    check = verify(quantized, path, 3 * nets.rows(nets.IMAGE))
    assert check.ok and check.equal == check.tensors
    assert set(check.unsigned) == set(found)


def test_narrowed_weights_are_signed_again(tmp_path: Path):
    quantized, path = full("residual", (8, 8)), tmp_path / "model.onnx"
    layers = narrowed(quantized.network, quantized.layers, quantized.edges)
    quantized = replace(quantized, layers=layers)
    onnx_file.save(quantized, path)
    assert set(weight_types(path)) == {onnx.TensorProto.INT8}
    check = verify(quantized, path, 3 * nets.rows(nets.IMAGE))
    assert check.ok and check.equal == check.tensors and not check.unsigned


@pytest.mark.parametrize("narrow", [True, False])
def test_on_the_worst_inputs_the_emulated_kernel_is_right_only_if_narrowed(narrow: bool):
    """Processors without VNNI, emulated: this one may have it, and never saturate."""
    quantized = full("dense", (8, 8))
    network = quantized.network
    layers = quantized.layers
    if narrow:
        layers = narrowed(network, layers, quantized.edges)
    spoiled = 0
    for layer in network.layers:
        weight = container(layers[layer.name].codes, layers[layer.name].grid)[0].long()
        worst = torch.cat([(sign * weight > 0).long() * 255 for sign in (1, -1)])
        spoiled += int((saturated(worst, weight) != worst @ weight.T).sum())
    assert (spoiled == 0) is narrow


def padded() -> nets.Fn:
    """Uneven padding in front of a convolution, alone and shared; of channels elsewhere."""

    def forward(m: nets.Fn, x: Tensor) -> Tensor:
        x = F.relu(m.a(F.pad(x, (0, 1, 0, 1))))
        x = F.pad(x, (1, 0, 0, 1))
        x = F.relu(m.b(x)) + m.c(x)
        return nets.head(m, F.relu(m.d(F.pad(x, (0, 0, 0, 0, 1, 1)))))

    return nets.Fn(
        forward,
        a=nn.Conv2d(3, 6, 3, 2),
        b=nn.Conv2d(6, 6, 3, padding=1),
        c=nn.Conv2d(6, 6, 3, padding=1),
        d=nn.Conv2d(8, 6, 1),
        head=nn.Linear(6, 5),
    )


def test_padding_is_done_by_the_convolution_or_on_integers(tmp_path: Path):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = padded().eval()
    x = nets.rows(nets.IMAGE)
    network = build(model, x)
    layers = round_weights(
        network, weight_tables(network), {la.name: np.full(la.rows, 5) for la in network.layers}
    )
    quantized = Quantized(network, layers, calibrate(network, x))
    path = tmp_path / "model.onnx"
    onnx_file.save(quantized, path)
    found = verify(quantized, path, x)
    assert found.ok and found.equal == found.tensors and found.qlinear_convolutions == 4
    assert found.operations["Pad"] == 1 and found.operations["QuantizeLinear"] == 1  # the input
    assert len(network.edges) - found.tensors == 2  # paddings that are the convolutions' own
    convolutions = [n for n in onnx.load(path).graph.node if n.op_type == "Conv"]
    pads = [next((list(a.ints) for a in n.attribute if a.name == "pads"), []) for n in convolutions]
    assert pads == [[0, 0, 1, 1], [1, 2, 2, 1], [1, 2, 2, 1], []]


def test_the_format_is_as_old_as_its_operations(tmp_path: Path):
    quantized, _ = nets.quantized("residual")
    path = tmp_path / "model.onnx"
    onnx_file.save(quantized, path)
    model = onnx.load(path)
    onnx.checker.check_model(model)
    assert [o.version for o in model.opset_import] == [18] and model.ir_version == 8
    needs = {n.op_type: onnx.defs.get_schema(n.op_type, 18).since_version for n in model.graph.node}
    assert needs["BitwiseAnd"] == 18 == max(needs.values())


def test_a_clip_that_saturation_does_is_not_in_the_file(tmp_path: Path):
    quantized, x = nets.quantized("mobile")
    path = tmp_path / "model.onnx"
    onnx_file.save(quantized, path)
    assert not {"Relu", "Clip"} & {n.op_type for n in onnx.load(path).graph.node}
    signed = {g: EdgeGrid(e.scale, 100) for g, e in quantized.edges.items()}  # keeps negatives
    onnx_file.save(replace(quantized, edges=signed), path)
    assert {"Clip"} <= {n.op_type for n in onnx.load(path).graph.node}
    live = runtime.outputs(runtime.session(path), x)
    assert torch.equal(live, IntegerNetwork(quantized)(x)) is False
