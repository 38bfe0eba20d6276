"""`model.onnx` in the stock runtime: the same integers as the reference, and none of it by luck."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import numpy_helper

from bitwright.arith.packing import codes_by_width, rows_by_width
from bitwright.deploy import IntegerNetwork, artefact, c_binary, onnx_file, runtime, verify
from bitwright.deploy.banks import banks
from bitwright.deploy.integer import Stored
from bitwright.deploy.verify import Tally, _compare, _Comparison, _integers, lookups
from bitwright.deploy.verify import _same_class as same_class
from bitwright.errors import BitwrightError
from bitwright.network import build, fresh_edges
from bitwright.network.network import fused_activation
from bitwright.quantize import (
    EdgeGrid,
    Quantized,
    calibrate,
    round_weights,
    simulate,
    weight_tables,
)
from bitwright.quantize.channel_widths import divisible
from deploy import nets

#: one of each kind is exported (two seconds each); the rest of the roster is in test_artefact.py
EXPORTED = [
    "residual",
    "mobile",
    "fire",
    "signed_cat",
    "pools",
    "squeeze_excite",
    "signal",
    "signal_average",
    "dense",
    "tokens",
    "gelu_tokens",
    "twice",
    "clips",
    "padded_shortcut",
    "segments",
    "words",
    "tied_words",
]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Quantized, Path]]:
    """A network of the roster and its ONNX file, written once."""
    folder, known = tmp_path_factory.mktemp("onnx"), {}

    def get(name: str) -> tuple[Quantized, Path]:
        if name not in known:
            quantized, _ = nets.quantized(name)
            path = folder / f"{name}.onnx"
            onnx_file.save(quantized, path)
            known[name] = quantized, path
        return known[name]

    return get


def fresh(name: str, count: int = 96) -> torch.Tensor:
    """Rows that nothing was fitted on."""
    return nets.rows(nets.ROSTER[name][1], count, seed=77, tokens="words" in name)


@pytest.mark.parametrize("name", EXPORTED)
def test_the_file_computes_the_reference(name: str, file: Callable[[str], tuple[Quantized, Path]]):
    quantized, path = file(name)
    found = verify(quantized, path, fresh(name))
    assert found.ok and found.rows == 96 and found.same_class == 1.0, found
    assert found.tensors == len(quantized.network.edges) + len(lookups(quantized)) > 1
    for difference in found.differing:
        assert difference.max_step <= 1 and difference.fraction <= 1e-3
    assert found.equal == found.tensors - len(found.differing)
    assert found.output_error < 1e-5
    edges = {e.name for e in quantized.network.edges}
    convolutions = [la for la in quantized.network.layers if la.kind.startswith("conv")]
    calls = {n for la in convolutions for n in la.calls}
    assert found.convolutions == len(calls)
    stored = 0
    for node in quantized.network.module.graph.nodes:
        if node.name in calls:
            clip = fused_activation(node)
            stored += node.name in edges or (clip is not None and clip.name in edges)
    assert found.qlinear_convolutions == stored
    assert stored == len(calls) or name == "segments"  # its last convolution is the output
    # the unpacking chain is folded at load
    assert not {"BitShift", "BitwiseAnd", "BitwiseOr", "Split"} & set(found.operations)
    outside = {"Clip", "Relu"} & set(found.operations)
    assert not outside or name == "clips", found.operations


def by_channel(narrow: Quantized) -> Quantized:
    """Widths of 2 bits to the edge's, at random, for channels of all edges that may have them."""
    network, rng = narrow.network, np.random.default_rng(0)
    count = {e.group: e.shape[0] for e in network.edges if e.name in fresh_edges(network)}
    edges = dict(narrow.edges)
    for g in sorted(divisible(network)):
        widths = tuple(rng.integers(2, edges[g].bits + 1, count[g]).tolist())
        edges[g] = replace(edges[g], widths=widths)
    return replace(narrow, edges=edges)


@pytest.mark.parametrize(
    "name", ["residual", "padded_shortcut", "mobile", "fire", "clips", "dense"]
)
def test_channels_of_their_own_widths(name: str, tmp_path: Path):
    """Every integer tensor as the reference has it, no convolution less fused, and read back."""
    narrow, _ = nets.quantized(name, narrow=True)
    quantized = by_channel(narrow)
    assert any(g.zero for g in quantized.edges.values() if g.widths) or name in ("clips", "fire")
    path, before = tmp_path / "model.onnx", tmp_path / "narrow.onnx"
    onnx_file.save(quantized, path)
    onnx_file.save(narrow, before)
    x = fresh(name) * 3  # beyond the ranges that the grids were fitted to
    found = verify(quantized, path, x)
    assert found.ok and found.same_class == 1.0, found
    wide = runtime.optimized_operations(before)
    for kind in ("QLinearConv", "QGemm", "Relu", "Conv"):
        assert found.operations.get(kind, 0) == wide.get(kind, 0), kind
    assert found.operations["QLinearAdd"] > wide.get("QLinearAdd", 0)
    levels: dict[str, torch.Tensor] = {}

    def note(name: str, value: Stored | torch.Tensor) -> None:
        if isinstance(value, Stored):
            levels[name] = value.q.movedim(1, 0).flatten(1)

    IntegerNetwork(quantized).trace(x, note)
    reached = 0
    for edge in quantized.network.edges:
        grid = quantized.edges[edge.group]
        if grid.widths and edge.name in fresh_edges(quantized.network):
            low, high = (torch.from_numpy(w) for w in grid.windows)
            assert bool((levels[edge.name].amin(1) >= low).all())
            assert bool((levels[edge.name].amax(1) <= high).all())
            reached += int((levels[edge.name].amax(1) == high).sum())
    assert reached  # or nothing was clipped
    artefact.save(quantized, tmp_path / "model.safetensors", {})
    again = artefact.load(tmp_path / "model.safetensors").quantized
    assert again.edges == quantized.edges
    with pytest.raises(BitwrightError, match="--granularity edge"):
        c_binary.write(quantized, tmp_path)


@pytest.mark.parametrize(
    ("widths", "reason"),
    [
        ((2, 3), "not of an activation's channels"),
        ((9,) * 8, "do not fit their grids"),
        ((1,) * 8, "do not fit their grids"),
    ],
)
def test_widths_that_fit_no_activation_are_refused(
    widths: tuple[int, ...], reason: str, tmp_path: Path
):
    found, _ = nets.quantized("plain")
    network = found.network
    group = next(
        e.group for e in network.edges if e.name in fresh_edges(network) and len(e.shape) == 3
        and e.group in divisible(network) and e.shape[0] != 2
    )  # fmt: skip
    count = next(e.shape[0] for e in network.edges if e.group == group)
    own = widths if len(widths) == 2 else widths[:1] * count
    edges = {**found.edges, group: replace(found.edges[group], widths=own)}
    artefact.save(replace(found, edges=edges), tmp_path / "model.safetensors", {})
    with pytest.raises(BitwrightError, match=reason):
        artefact.load(tmp_path / "model.safetensors")


@pytest.mark.parametrize("name", EXPORTED)
def test_edges_of_two_to_eight_bits_in_the_8_bit_container(name: str, tmp_path: Path):
    """Every integer tensor as the reference has it, fused as with 8 bits, saturating at its top."""
    quantized, _ = nets.quantized(name, narrow=True)
    path = tmp_path / "model.onnx"
    onnx_file.save(quantized, path)
    x = fresh(name) * (
        1 if "words" in name else 3
    )  # beyond the ranges that the grids were fitted to
    found = verify(quantized, path, x)
    assert found.ok and found.same_class == 1.0, found
    plain, _ = nets.quantized(name)
    before = tmp_path / "plain.onnx"
    onnx_file.save(plain, before)
    wide = runtime.optimized_operations(before)
    assert found.operations.get("QLinearConv") == wide.get("QLinearConv")
    assert found.operations.get("Relu", 0) == wide.get("Relu", 0)
    tops: dict[str, float] = {}

    def note(name: str, value: Stored | torch.Tensor) -> None:
        if isinstance(value, Stored):  # no lookup of a table
            tops[name] = float(value.q.max())

    IntegerNetwork(quantized).trace(x, note)
    grids = {e.name: quantized.edges[e.group] for e in quantized.network.edges}
    assert all(tops[n] <= grids[n].top for n in tops)
    reached = [n for n in tops if grids[n].bits < 8 and tops[n] == grids[n].top]
    assert reached, "no narrow grid was filled: the clip was not tried"


@pytest.mark.parametrize("name", ["residual", "tokens", "signal_average", "words"])
def test_with_float_activations_the_file_is_the_simulation(name: str, tmp_path: Path):
    quantized, _ = nets.quantized(name, edges=False)
    path = tmp_path / "model.onnx"
    onnx_file.save(quantized, path)
    x = fresh(name, 32)
    live = runtime.session(path)
    assert torch.allclose(runtime.outputs(live, x), simulate(quantized, x), atol=1e-4)
    operations = runtime.optimized_operations(path)
    assert not [op for op in operations if "Linear" in op], operations  # QLinear…, Dequantize…
    found = verify(quantized, path, x)
    assert found.ok and found.tensors == len(lookups(quantized)) and found.qlinear_convolutions == 0


def test_an_output_may_be_what_a_layer_reads(tmp_path: Path):
    def forward(m: nets.Fn, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.relu(m.a(x))
        return x, m.b(x)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        parts = {"a": nets.conv(3, 6, stride=2), "b": torch.nn.Conv2d(6, 4, 1)}
        model = nets.Fn(forward, **parts).eval()  # type: ignore[arg-type]
    x = nets.rows(nets.IMAGE)
    network = build(model, x)
    widths = {layer.name: np.full(layer.rows, 4) for layer in network.layers}
    layers = round_weights(network, weight_tables(network), widths)
    quantized = Quantized(network, layers, calibrate(network, x))
    path = tmp_path / "model.onnx"
    onnx_file.save(quantized, path)
    found = runtime.run(runtime.session(path), x)
    expected = IntegerNetwork(quantized)(x)
    assert len(found) == 2 and np.array_equal(found[0], expected[0].numpy())
    np.testing.assert_allclose(found[1], expected[1].numpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("top", [True, False])
def test_the_largest_products_do_not_saturate(top: bool, tmp_path: Path):
    """255 · 127 in every product: kernels that add pairs in 16 bits would saturate here."""
    quantized, x = nets.quantized("residual", bits=(8, 8))
    rng = np.random.default_rng(0)
    layers = {}
    for name, stored in quantized.layers.items():
        codes = torch.full_like(stored.codes, 255 if top else 0)
        codes[0] = torch.from_numpy(rng.choice([0, 255], len(codes[0])).astype(np.uint8))
        grid = replace(stored.grid, scale=torch.full_like(stored.grid.scale, 2**-10))
        layers[name] = replace(stored, codes=codes, grid=grid)
    # what is not at the ends of the grid is lifted there
    edges = {g: EdgeGrid(2.0**-9 if top else 2.0**-6, 0) for g in quantized.edges}
    quantized = replace(quantized, layers=layers, edges=edges)
    x = torch.cat([torch.full_like(x[:8], 100.0), x[:24].abs()])
    path = tmp_path / "model.onnx"
    onnx_file.save(quantized, path)
    integer: dict[str, torch.Tensor] = {}
    IntegerNetwork(quantized).trace(x, lambda n, v: integer.__setitem__(n, v.q))
    first = quantized.network.edges[0].name
    assert bool((integer[first][:8] == 255).all())
    found = verify(quantized, path, x)
    assert found.equal == found.tensors and found.ok, found.differing


def altered(path: Path, change: Callable[[onnx.ModelProto], None]) -> Path:
    model = onnx.load(path)
    change(model)
    target = path.with_name(f"altered_{path.name}")
    onnx.save(model, target)
    return target


def constants(model: onnx.ModelProto) -> list[tuple[onnx.TensorProto, np.ndarray]]:
    return [(t, numpy_helper.to_array(t).copy()) for t in model.graph.initializer]


def test_a_changed_weight_is_found_and_named(file: Callable[[str], tuple[Quantized, Path]]):
    quantized, path = file("fire")
    found_banks = banks(quantized)
    by_width = rows_by_width([bank.grid.bits.numpy() for bank in found_banks])
    codes = codes_by_width([bank.codes for bank in found_banks], by_width)[8] ^ 0x80
    index, rows = by_width[8][0]  # the first 8-bit row
    bank = found_banks[index]
    ends = np.cumsum([la.rows for la in bank.layers])
    layer = bank.layers[int(np.searchsorted(ends, rows[0], side="right"))]

    def change(model: onnx.ModelProto) -> None:
        for tensor, value in constants(model):
            if value.dtype == np.uint8 and np.array_equal(value, codes):
                value[0] ^= 0x80
                tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
                return
        raise AssertionError("no such stream")

    found = verify(quantized, altered(path, change), fresh("fire"))
    assert not found.ok and found.differing
    nodes = {n.name: n for n in quantized.network.module.graph.nodes}
    clip = fused_activation(nodes[layer.calls[0]])
    first = found.differing[0]
    assert first.name == (clip.name if clip is not None else layer.calls[0])
    assert first.max_step >= 1 and 0 < first.fraction <= 1
    assert first.layer == layer.name and first.reason == ""
    assert set(found.to_dict()["differing"][0]) == {
        *("name", "layer", "fraction", "max_step", "where", "expected", "found", "reason")
    }
    # what follows is compared with what the reference makes of the tensor that differs
    assert len(found.differing) == 1 and found.equal == found.tensors - 1
    assert found.output_error > 0 or found.same_class < 1


def test_a_changed_scale_is_found_and_named(file: Callable[[str], tuple[Quantized, Path]]):
    quantized, path = file("residual")
    order = [layer for bank in banks(quantized) for layer in bank.layers]
    first = order.index(quantized.network.layers[0])
    place = sum(layer.rows for layer in order[:first])  # of the first layer's first row

    def change(model: onnx.ModelProto) -> None:
        tensor, value = next(
            (t, v) for t, v in constants(model) if v.dtype == np.float16 and v.ndim == 1
        )
        value[place] *= 1.25
        tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))

    found = verify(quantized, altered(path, change), fresh("residual"))
    assert not found.ok
    assert found.differing[0].name == "relu"  # the first one behind the input
    assert found.equal >= 1  # the input is as it was


def test_another_network_is_found(file: Callable[[str], tuple[Quantized, Path]]):
    quantized, path = file("fire")
    name = quantized.network.layers[-1].name
    stored = quantized.layers[name]
    other = replace(stored, bias=stored.bias + torch.linspace(-3, 3, len(stored.bias)))
    changed = replace(quantized, layers={**quantized.layers, name: other})
    found = verify(changed, path, fresh("fire"))
    assert not found.ok and found.same_class < 1 and found.output_error > 0.1


def test_outputs_are_compared_from_the_integers_given():
    quantized, x = nets.quantized("gelu_tokens")
    reference = IntegerNetwork(quantized)
    alone, notes = _integers(reference, x)
    first = next(iter(notes))
    moved = {first: (notes[first] + 40).clamp(max=255)}
    result, others = _integers(reference, x, moved)  # all that follows from another tensor
    answers = {name: value.numpy() for name, value in (others | moved).items()}
    total = _Comparison({name: Tally() for name in notes})
    ours, given = _compare(total, reference, x, answers)
    assert torch.equal(ours, alone) and torch.equal(given, result)
    assert not torch.allclose(ours, given, atol=1e-3)


def test_a_file_that_is_not_fused_is_not_ok(file: Callable[[str], tuple[Quantized, Path]]):
    """All numbers equal, but convolutions in float: that is not the file that was promised."""
    quantized, path = file("residual")

    def plain(model: Path | bytes, *, optimized: Path | None = None, **_: object):
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        if optimized is not None:
            options.optimized_model_filepath = str(optimized)
        source = model if isinstance(model, bytes) else str(model)
        return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runtime, "session", plain)
        found = verify(quantized, path, fresh("residual"))
    assert found.qlinear_convolutions == 0 and not found.ok


def test_the_file_holds_packed_weights(file: Callable[[str], tuple[Quantized, Path]]):
    quantized, path = file("residual")
    sizes: dict[str, int] = {}
    model = onnx.load(path)
    onnx.checker.check_model(model)
    for tensor, value in constants(model):
        sizes[str(value.dtype)] = sizes.get(str(value.dtype), 0) + value.nbytes
        assert not tensor.HasField("doc_string")
    bits = sum(
        int(quantized.layers[la.name].grid.bits.sum()) * la.fan_in
        for la in quantized.network.layers
    )
    rows = sum(la.rows for la in quantized.network.layers)
    # streams, offsets, places
    assert bits / 8 <= sizes["uint8"] + sizes["int8"] <= bits / 8 + 3 + 4 * rows
    assert sizes["float16"] == 2 * rows
    assert sizes.get("float32", 0) < 200  # grids of edges, no weights
    assert {o.domain for o in model.opset_import} == {""}
    names = [i.name for i in model.graph.input], [o.name for o in model.graph.output]
    assert names == (["input"], ["output"])
    assert not path.with_name(path.name + ".part").exists()


def test_the_same_network_gives_the_same_bytes(
    file: Callable[[str], tuple[Quantized, Path]], tmp_path: Path
):
    quantized, path = file("dense")
    stored = tmp_path / "m.safetensors"
    artefact.save(quantized, stored, {})
    onnx_file.save(artefact.load(stored).quantized, tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == path.read_bytes()


def test_verify_tells_its_progress(file: Callable[[str], tuple[Quantized, Path]]):
    quantized, path = file("dense")
    done: list[float] = []
    verify(quantized, path, fresh("dense", 50), chunk=20, progress=done.append)
    assert done == [0.4, 0.8, 1.0]


# the runtime


@pytest.mark.parametrize("content", [b"", b"no model", b"\x08\x07" + b"\xff" * 40])
def test_a_broken_file_is_refused(content: bytes, tmp_path: Path):
    path = tmp_path / "broken.onnx"
    path.write_bytes(content)
    for model in (path, content):
        with pytest.raises(BitwrightError, match="ONNX Runtime refuses") as caught:
            runtime.session(model)
        assert "\n" not in str(caught.value)


def test_a_missing_file_is_refused(tmp_path: Path):
    with pytest.raises(BitwrightError, match="ONNX Runtime refuses"):
        runtime.session(tmp_path / "nothing.onnx")


def test_a_file_cut_off_is_refused(file: Callable[[str], tuple[Quantized, Path]], tmp_path: Path):
    _, path = file("dense")
    content = path.read_bytes()
    for part in (0.3, 0.6, 0.9, 0.99):
        cut = tmp_path / "cut.onnx"
        cut.write_bytes(content[: int(part * len(content))])
        with pytest.raises(BitwrightError):
            runtime.session(cut)


def test_outputs_do_not_depend_on_the_chunk(file: Callable[[str], tuple[Quantized, Path]]):
    _, path = file("dense")
    x = fresh("dense", 30)
    live = runtime.session(path, threads=1)
    assert torch.equal(runtime.outputs(live, x, chunk=7), runtime.outputs(live, x))
    assert runtime.outputs(live, x).shape == (30, 5)


def test_latencies_are_seconds(file: Callable[[str], tuple[Quantized, Path]]):
    _, path = file("dense")
    found = runtime.latencies([path, path], fresh("dense", 1), rounds=3)
    assert len(found) == 2 and all(0 < t < 5 for t in found)


def test_the_same_class_is_counted_by_row_along_the_class_axis():
    scores = torch.tensor([[0.0, 2.0, 1.0], [3.0, 1.0, 2.0]])
    moved = torch.tensor([[0.5, 1.5, 1.0], [1.0, 1.5, 0.0]])
    assert same_class(scores, scores, 1) == 2 and same_class(scores, moved, 1) == 1
    tokens, other = torch.stack([scores, scores]), torch.stack([scores, moved])
    assert same_class(tokens, other, 2) == 1  # one of two positions differs: the row differs
    assert same_class(tokens.mT, other.mT, 1) == 1
    assert same_class(scores[:, 0], moved[:, 0], 1) == 2  # numbers have no class
