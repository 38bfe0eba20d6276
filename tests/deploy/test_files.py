"""Files above 2 GB, tried with a lowered limit: data beside the file, and the runtime finds it."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from bitwright.deploy import files, onnx_file, runtime, verify
from deploy import nets


def test_data_lies_beside_the_file_above_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    quantized, x = nets.quantized("residual")
    path, data = tmp_path / "model.onnx", tmp_path / "model.onnx.data"
    files.write(onnx_file.build_model(quantized), path, limit_bytes=500)
    assert data.is_file() and sorted(p.name for p in tmp_path.iterdir()) == [path.name, data.name]
    stored = onnx.load(path, load_external_data=False).graph.initializer
    assert any(t.data_location == onnx.TensorProto.EXTERNAL for t in stored)
    assert runtime.size_bytes(path) == path.stat().st_size + data.stat().st_size
    found = verify(quantized, path, x)
    assert found.ok and found.equal == found.tensors and found.qlinear_convolutions == 5
    whole = tmp_path / "whole.onnx"
    onnx_file.save(quantized, whole)
    one = runtime.outputs(runtime.session(whole), x)
    assert (one == runtime.outputs(runtime.session(path), x)).all()
    onnx_file.save(quantized, path)  # smaller now: nothing stays behind
    assert not data.exists() and path.read_bytes() == whole.read_bytes()
