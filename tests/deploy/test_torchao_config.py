"""torchao's configuration: that library reads it and quantizes each layer with its own bits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from bitwright.deploy import torchao_config
from bitwright.errors import BitwrightError
from bitwright.quantize import Quantized
from deploy import nets


def bits_of(quantized: Quantized, folder: Path) -> dict[str, int]:
    torchao_config.write(quantized, folder)
    found = json.loads((folder / "torchao.json").read_text())["_data"]["fqn_to_config"]
    return {
        name: int(entry["_data"]["weight_dtype"]["_data"].removeprefix("int"))
        for name, entry in found.items()
    }


def test_a_layer_gets_the_mean_of_its_channels_rounded_up(tmp_path: Path):
    quantized, _ = nets.quantized("gelu_tokens")
    found = bits_of(quantized, tmp_path)
    for layer in quantized.network.layers:
        bits = quantized.layers[layer.name].grid.bits.tolist()
        assert found[layer.name] - 1 < sum(bits) / len(bits) <= found[layer.name]
    assert any("several widths" in note for note in torchao_config.write(quantized, tmp_path).notes)


def test_a_plan_by_layers_keeps_its_widths(tmp_path: Path):
    quantized, _ = nets.quantized("dense", bits=(3, 3))
    assert set(bits_of(quantized, tmp_path).values()) == {3}
    notes = torchao_config.write(quantized, tmp_path).notes
    assert not any("several widths" in note for note in notes)


def test_convolutions_are_named_as_left_out(tmp_path: Path):
    quantized, _ = nets.quantized("plain")
    assert set(bits_of(quantized, tmp_path)) == {"head"}
    assert any("a.0, b.0" in note for note in torchao_config.write(quantized, tmp_path).notes)
    with pytest.raises(BitwrightError, match="Linear"):
        torchao_config.write(nets.quantized("segments")[0], tmp_path)


@pytest.mark.filterwarnings("ignore")
def test_torchao_quantizes_with_it(tmp_path: Path):
    reason = "torchao is not installed (pip install --no-deps torchao==0.18.0)"
    config = pytest.importorskip("torchao.core.config", reason=reason, exc_type=ImportError)
    from torchao.quantization import quantize_

    quantized, x = nets.quantized("gelu_tokens", bits=(2, 7))
    wanted = bits_of(quantized, tmp_path)
    read = config.config_from_dict(json.loads((tmp_path / "torchao.json").read_text()))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nets.gelu_tokens().eval()
    plain = {name: m.weight.detach().clone() for name, m in model.named_modules() if name in wanted}
    quantize_(model, read, filter_fn=None)
    for name, bits in wanted.items():
        module = model.get_submodule(name)
        assert isinstance(module, nn.Linear)
        weight = module.weight.dequantize()
        levels = max(len(row.unique()) for row in weight)
        assert not torch.equal(weight, plain[name]) and levels <= 2**bits
        assert any(len(row.unique()) > 2 ** (bits - 1) for row in weight) or bits > 3
    assert model(x[:2]).shape == (2, 5)
