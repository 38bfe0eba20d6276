"""Files side by side: every figure is of the file that it says, and none is made up."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch

from bitwright import cost
from bitwright.cost.forms import load_times, peak_bytes
from bitwright.deploy import onnx_file, runtime
from bitwright.deploy.placeholders import export
from bitwright.errors import BitwrightError
from deploy import nets


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The residual network of the roster: float, the runtime's own int8 twice, and ours."""
    folder = tmp_path_factory.mktemp("bench")
    quantized, x = nets.quantized("residual", bits=(3, 3))
    network = quantized.network
    found = {"float": folder / "float.onnx"}
    ir.save(export(network.module, network.input_shape, torch.float32), found["float"])
    for form in cost.FORMATS:
        found[form] = cost.static_int8(found["float"], x, folder / f"{form}.onnx", form=form)
    found["ours"] = folder / "ours.onnx"
    onnx_file.save(quantized, found["ours"])
    return found


def test_all_forms_are_measured(files: dict[str, Path]):
    row = nets.rows(nets.IMAGE)[:1]
    done: list[float] = []
    found = cost.bench(files, row, repeats=5, progress=done.append)
    assert [form.name for form in found.forms] == list(files)
    assert found.spent_s.shape == (5, 4) and found.repeats == 5 and done[-1] == 1.0
    for form in found.forms:
        assert form.size_bytes == files[form.name].stat().st_size
        assert 0 < form.latency_s <= form.p95_s < 5 and 0 < form.load_s < 5
        assert form.convolutions == ((0, 5) if form.name == "float" else (5, 5))
        assert form.operations == dict(runtime.optimized_operations(files[form.name]))
    assert found["float"].ratio == 1.0 and found.ratio("ours", "ours") == 1.0
    paired = np.median(found.spent_s[:, 3] / found.spent_s[:, 1])
    assert found.ratio("ours", "qdq") == pytest.approx(paired)
    said = json.loads(found.to_json())
    assert said["forms"][3]["size_bytes"] == files["ours"].stat().st_size
    assert "spent_s" not in said and said["machine"]["threads"] == 1


@pytest.mark.parametrize("form", cost.FORMATS)
def test_static_int8_is_unsigned_by_signed_by_channel(form: str, files: dict[str, Path]):
    import onnx

    graph = onnx.load(files[form]).graph
    weights = [t for t in graph.initializer if len(t.dims) == 4]
    assert {t.data_type for t in weights} == {onnx.TensorProto.INT8}
    scales = [t for t in graph.initializer if t.name.endswith("_scale") and list(t.dims) == [8]]
    assert scales  # one for each of eight channels
    assert not files[form].with_name(files[form].name + ".part").exists()
    x = nets.rows(nets.IMAGE)
    float_, int8 = (runtime.outputs(runtime.session(files[n]), x) for n in ("float", form))
    assert float((float_ - int8).abs().mean()) < 0.1 * float(float_.std())


def test_memory_is_of_a_process_of_its_own(files: dict[str, Path], tmp_path: Path):
    row = nets.rows(nets.IMAGE)[:1]
    assert 1e5 < peak_bytes(files["float"], row) < 1e9
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no model")
    with pytest.raises(BitwrightError, match="cannot be run in a process of its own"):
        peak_bytes(broken, row)


def test_loads_are_timed_in_turns(files: dict[str, Path]):
    found = load_times([files["float"], files["ours"]])
    assert found.shape == (9, 2) and (found > 0).all() and (found < 5).all()
