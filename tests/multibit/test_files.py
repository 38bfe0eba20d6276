"""The files: what comes back, what the runtime unpacks, and what is refused."""

from __future__ import annotations

import copy
import math
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch

from bitwright.deploy import artefact as deploy_artefact
from bitwright.deploy import onnx_sealed, runtime
from bitwright.deploy.tensors import from_bytes, to_bytes
from bitwright.errors import BitwrightError
from bitwright.multibit import Multibit, artefact, files, onnx_file, prepare
from bitwright.multibit.prune import prune
from bitwright.multibit.quadratic import Quadratic
from bitwright.multibit.stored import Stored, stored
from bitwright.network import outputs
from multibit.nets import rows, small


def pruned_net(share: float = 0.6) -> Multibit:
    groups = {"conv1": "kernel", "conv2": "pixel", "fc2": "channel"}
    net = prepare(small(), rows()[0], groups=groups, size=16, most=4).eval()
    generator = torch.Generator().manual_seed(0)
    models = {
        n: Quadratic(torch.zeros(()), torch.rand(net[n].alpha.shape, generator=generator))
        for n in net.names
    }
    prune(net, models, share * net.average_bits() * net.weights)
    return net


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Multibit, Stored, Path]:
    folder = tmp_path_factory.mktemp("files")
    net = pruned_net()
    held = stored(net)
    artefact.save(held, folder / "model.safetensors", {})
    onnx_file.save(held, folder / "model.onnx")
    return net, held, folder


def test_folding_batch_norm_keeps_the_answers(made: tuple[Multibit, Stored, Path]):
    net, held, _ = made
    x = rows()[0]
    with torch.no_grad():
        wanted = net(x)
    assert torch.allclose(outputs(held.network.module, x), wanted, atol=5e-3), "float16 coordinates"
    assert any(int(la.bases.counts.min()) == 0 for la in held.layers.values()), "empty groups too"


def test_the_artefact_comes_back_bit_for_bit(made: tuple[Multibit, Stored, Path]):
    _, held, folder = made
    found = artefact.load(folder / "model.safetensors")
    x = rows()[0]
    assert torch.equal(outputs(found.network.module, x), outputs(held.network.module, x))
    for layer in held.network.layers:
        assert torch.equal(found.network.matrix(layer), held.network.matrix(layer))
    assert found.average_bits == held.average_bits
    assert (folder / "model.safetensors").stat().st_size >= held.packed().size_bits // 8
    says = r"is a multi-bit network; bitwright\.multibit\.artefact\.load reads it"
    with pytest.raises(BitwrightError, match=says):
        deploy_artefact.load(folder / "model.safetensors")


def test_onnxruntime_unpacks_the_same_weights_and_answers(made: tuple[Multibit, Stored, Path]):
    _, held, folder = made
    path = folder / "model.onnx"
    sealed = onnx_sealed.read(path)
    names = [f"{la.name}.q" for la in held.network.layers]
    for name in names:
        sealed.model.graph.output.append(
            onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
        )
    x = rows()[0]
    session = runtime.session(sealed.model.SerializeToString())
    logits, *weights = session.run(None, {"input": x.numpy()})
    for layer, weight in zip(held.network.layers, weights, strict=True):
        assert np.array_equal(weight.reshape(layer.rows, -1), held.network.matrix(layer).numpy())
    wanted = outputs(held.network.module, x).numpy()
    assert np.abs(logits - wanted).max() <= 1e-5 * max(1.0, np.abs(wanted).max())
    counts = sealed.weights
    assert sum(k * v for k, v in counts.items()) == sum(
        int(la.bases.counts.sum()) * la.grouping.size for la in held.layers.values()
    )


def test_the_runtime_folds_the_unpacking(made: tuple[Multibit, Stored, Path], tmp_path: Path):
    _, _, folder = made
    runtime.session(folder / "model.onnx", optimized=tmp_path / "optimized.onnx")
    kinds = {node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node}
    assert not kinds & {"Where", "BitShift", "BitwiseAnd", "TopK", "Gather", "Cast"}


def test_a_network_without_any_basis_is_its_biases(tmp_path: Path):
    net = pruned_net()
    for name in net.names:
        net[name].alpha.zero_()
        net[name].codes.zero_()
    held = stored(net)
    artefact.save(held, tmp_path / "a.safetensors", {})
    onnx_file.save(held, tmp_path / "a.onnx")
    x = rows()[0]
    wanted = outputs(artefact.load(tmp_path / "a.safetensors").network.module, x).numpy()
    found = runtime.session(tmp_path / "a.onnx").run(None, {"input": x.numpy()})[0]
    assert np.abs(found - wanted).max() <= 1e-5
    assert held.average_bits < 1


def changed(folder: Path, path: Path, **values: np.ndarray) -> Path:
    tensors, header = from_bytes((folder / "model.safetensors").read_bytes(), folder)
    path.write_bytes(to_bytes({**tensors, **values}, header))
    return path


def test_a_damaged_artefact_is_refused(made: tuple[Multibit, Stored, Path], tmp_path: Path):
    _, _, folder = made
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / "flipped").write_bytes(content)
    with pytest.raises(BitwrightError, match="checksum"):
        artefact.load(tmp_path / "flipped")
    tensors, _ = from_bytes((folder / "model.safetensors").read_bytes(), folder)
    for name, value in (
        ("alpha", tensors["alpha"][:-1]), ("signs", tensors["signs"][:-3]),
        ("counts", tensors["program"]), ("bias", tensors["bias"][:-1]),
        ("alpha", tensors["alpha"].astype(np.float32)), ("stranger", tensors["bias"]),
    ):  # fmt: skip
        with pytest.raises(BitwrightError):
            artefact.load(changed(folder, tmp_path / "changed", **{name: value}))


class Answering:
    """In the place of onnxruntime's session: it answers what it was given."""

    def __init__(self, answers: np.ndarray) -> None:
        self.answers = answers

    def get_inputs(self) -> list[SimpleNamespace]:
        return [SimpleNamespace(name="input")]

    def run(self, names: None, inputs: object) -> list[np.ndarray]:
        return [self.answers]


@pytest.mark.parametrize("scale", [1.0, 1e-4, 1e4])
def test_disagreement_is_a_share_of_the_largest_answer_and_no_nan_passes(
    made: tuple[Multibit, Stored, Path], monkeypatch: pytest.MonkeyPatch, scale: float
):
    _, held, folder = made
    x = rows()[0]
    right = outputs(held.network.module, x).numpy()
    held = copy.deepcopy(held)
    last = held.network.module.fc2
    with torch.no_grad():
        last.weight *= scale
        last.bias *= scale
    off = right.copy()
    off[3, 1] += 1e-3 * np.abs(right).max()
    nan, one = np.full_like(right, np.nan), right.copy()
    one[5, 0] = np.nan
    for answers, wanted in ((right, 0.0), (off, 1e-3), (nan, math.inf), (one, math.inf)):
        session = Answering(np.float32(scale) * answers)
        monkeypatch.setattr(files.runtime, "session", lambda *_, s=session, **__: s)
        found = files.disagreement(held, folder / "model.onnx", x)
        assert found == pytest.approx(wanted, rel=1e-2, abs=1e-6)


def test_convert_refuses_a_runtime_that_answers_nan(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    answers = np.full((2, 4), np.nan, np.float32)
    monkeypatch.setattr(files.runtime, "session", lambda *_, **__: Answering(answers))
    with pytest.raises(BitwrightError, match="answers inf away"):
        files.convert(pruned_net(), tmp_path)


def test_coordinates_that_float16_does_not_hold_are_refused_by_layer():
    def with_first(scale: float) -> Multibit:
        net = pruned_net()
        net.body.bn1.weight.data *= scale  # of conv1, once it is folded
        return net

    wanted = stored(with_first(1.0)).layers["conv1"].bases.alpha.max()
    for largest in (1e6, 1e-6, 1e-12):
        says = re.escape(f"'conv1' has coordinates up to {largest:.3g}, batch-norm folded")
        with pytest.raises(BitwrightError, match=says):
            stored(with_first(largest / float(wanted)))
    assert stored(with_first(1e-2))
