"""`prepare` and `convert`: a run's network in the user's own training loop, and back into files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from bitwright.deploy import IntegerNetwork, artefact, onnx_file
from bitwright.errors import BitwrightError
from bitwright.network import Network, build
from bitwright.quantize import narrowed
from bitwright.train import Trainable


def prepare(folder: str | Path, model: nn.Module | None = None) -> Trainable:
    """The network of a run as a module to train, with the run's bits.

    Latent weights, log steps and biases are its parameters; it takes the rows that the model takes
    and returns what the file computes, in float, with straight-through gradients. Train it with
    any loss and optimizer (`optimizer = Adam(net.groups(1e-3))` has fitting rates); its
    `state_dict` stops and goes on; it works in `DistributedDataParallel`.

    Args:
        folder: a run's folder, or a `model.safetensors`.
        model: the float model of the run; latent weights then start from its weights, and from the
            stored ones without it.

    Raises:
        BitwrightError: there is no artefact, it is damaged, or the model is another one.
    """
    path = Path(folder)
    path = path / "model.safetensors" if path.is_dir() else path
    if not path.is_file():
        raise BitwrightError(f"there is no {path}; run `bitwright compress … --out {folder}` first")
    stored = artefact.load(path)
    quantized = stored.quantized
    if model is not None and stored.metadata.get("equalize"):
        raise BitwrightError(
            f"{path} is of an equalized network, whose weights are not the model's; prepare it "
            "without the model"
        )
    if model is not None:
        network = _captured(model, quantized.network, path)
        quantized = replace(quantized, network=network)
    return Trainable(quantized, metadata=stored.metadata)


def convert(trained: Trainable, out: str | Path) -> IntegerNetwork:
    """Write what was trained: `model.safetensors` and `model.onnx`, with the same bits.

    Steps that training has left so small that kernels could saturate are widened (rows of 7 and 8
    bits, by a factor of 2 at most).

    Args:
        trained: from :func:`prepare`; out: folder, made if it is not there.

    Returns:
        The network as the files compute it.

    Raises:
        BitwrightError: a parameter is not finite: the training diverged.
    """
    for name, value in trained.named_parameters():
        if not bool(torch.isfinite(value).all()):
            raise BitwrightError(f"{name} is not finite: the training diverged; nothing is written")
    quantized = trained.quantized()
    layers = narrowed(quantized.network, quantized.layers, quantized.edges)
    quantized = replace(quantized, layers=layers)
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    artefact.save(quantized, folder / "model.safetensors", trained.metadata)
    onnx_file.save(quantized, folder / "model.onnx")
    return IntegerNetwork(artefact.load(folder / "model.safetensors").quantized)


def _captured(model: nn.Module, expected: Network, path: Path) -> Network:
    example = torch.zeros(2, *expected.input_shape, dtype=expected.input_dtype)
    found = build(model, example, skip=expected.skipped)
    shapes = [
        [(la.name, la.shape) for la in network.layers] + [(e.name, e.shape) for e in network.edges]
        for network in (expected, found)
    ]
    if shapes[0] != shapes[1]:
        raise BitwrightError(
            f"the model is not the one that {path} was made from: its layers or activations differ"
        )
    return found
