"""The packed file in a runtime that is not the one it was made for."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from bitwright.deploy import onnx_file
from bitwright.deploy.openvino import second_opinion
from bitwright.errors import BitwrightError
from deploy import nets


@pytest.mark.parametrize("name", ["residual", "mobile", "fire", "dense"])
def test_openvino_unpacks_and_agrees(name: str, tmp_path: Path):
    pytest.importorskip("openvino")
    quantized, _ = nets.quantized(name)
    path = tmp_path / "model.onnx"
    onnx_file.save(quantized, path)
    found = second_opinion(
        path, nets.rows(nets.ROSTER[name][1], 64, seed=9, tokens="words" in name)
    )
    assert found.same_class >= 0.95 and found.output_error < 0.05, found


def test_what_is_missing_or_refused_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"no model")
    x = nets.rows(nets.IMAGE, 2)
    if "openvino" in sys.modules or pytest.importorskip("openvino"):
        with pytest.raises(BitwrightError, match="OpenVINO refuses the model") as caught:
            second_opinion(path, x)
        assert "\n" not in str(caught.value)
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(BitwrightError, match="OpenVINO is not installed"):
        second_opinion(path, x)
