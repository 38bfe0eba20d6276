"""Two processes fine-tune as one does, and end alike."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import pair
from bitwright.deploy import artefact
from bitwright.network import build
from bitwright.quantize import Quantized, round_weights, weight_tables
from bitwright.train import Recipe, augment, finetune
from pipeline import tiny

RECIPE = Recipe(3, batch=17, rate=3e-3)


def start() -> tuple[Quantized, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(144, 4),
    ).eval()  # fmt: skip
    x = tiny.rows(80)
    network = build(model, x)
    bits = {la.name: np.full(la.rows, 2) for la in network.layers}
    return Quantized(network, round_weights(network, weight_tables(network), bits), {}), x


def tuned() -> tuple[Quantized, list[float]]:
    quantized, x = start()
    return finetune(quantized, x, RECIPE, augment=augment.parse("flip"))


def member(rank: int, folder: str) -> None:
    found, history = tuned()
    artefact.save(found, Path(folder) / f"{rank}.safetensors", {})
    np.save(Path(folder) / f"{rank}.npy", history)


def test_two_processes_train_as_one(tmp_path: Path):
    pair.run(member, str(tmp_path))
    first, second = ((tmp_path / f"{r}.safetensors").read_bytes() for r in range(2))
    assert first == second
    one, history = tuned()
    np.testing.assert_allclose(np.load(tmp_path / "0.npy"), history, rtol=1e-4)
    assert history[-1] < 0.8 * history[0]
    both = artefact.load(tmp_path / "0.safetensors").quantized
    for name, layer in one.layers.items():  # sums of gradients in another order, and float16 steps
        torch.testing.assert_close(
            layer.grid.scale, both.layers[name].grid.scale, rtol=2e-3, atol=0
        )
        assert float((layer.codes != both.layers[name].codes).float().mean()) < 0.02
    half, _ = finetune(*start(), replace(RECIPE, batch=8))  # one process's part alone is another
    assert any(not torch.equal(la.codes, one.layers[n].codes) for n, la in half.layers.items())
