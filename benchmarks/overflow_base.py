"""Networks of 8 bits and what is measured of them once, for the parts of `overflow.py`."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import networks
import numpy as np
import torch
from torch import Tensor, nn

from bitwright import curvature, overflow, quantize
from bitwright.curvature import Sensitivity
from bitwright.curvature.divergence import per_sample
from bitwright.network import Network, build, outputs
from bitwright.overflow import Accumulator
from bitwright.quantize import EdgeGrid, EdgeTable, Quantized, QuantizedLayer, WeightTable
from bitwright.quantize.activations import Histogram, histograms

BUILD = Path(__file__).resolve().parent.parent / "build" / "overflow"


@dataclass(frozen=True)
class Case:
    """A network with grids, calibration and test rows.

    Attributes:
        x: calibration rows; edges are fitted on the first 512, corrections on the first `few`.
        test: rows judged on.
    """

    network: Network
    tables: dict[str, WeightTable]
    x: Tensor
    test: Tensor
    few: int

    @functools.cached_property
    def reference(self) -> dict[str, Tensor]:
        """Float outputs of all layers on the rows of the correction."""
        return quantize.float_outputs(self.network, self.x[: self.few])

    @functools.cached_property
    def answers(self) -> Tensor:
        """The float network's, on the test rows."""
        return outputs(self.network.module, self.test)

    def rounded(self, bits: int = 8) -> dict[str, QuantizedLayer]:
        """All weights rounded to nearest at one width."""
        widths = {la.name: np.full(la.rows, bits) for la in self.network.layers}
        return quantize.round_weights(self.network, self.tables, widths)

    @functools.cached_property
    def histograms(self) -> dict[int, Histogram]:
        """Of all activations."""
        return histograms(self.network, self.x[:512], chunk=32)

    def edges(self, bits: int = 8) -> dict[int, EdgeGrid]:
        """One width for all activations."""
        return {g: h.grid(bits) for g, h in self.histograms.items()}

    def correct(
        self, edges: Mapping[int, EdgeGrid]
    ) -> Callable[[Mapping[str, QuantizedLayer]], Quantized]:
        """From rounded layers to the corrected network, for fixed grids of the activations."""

        def correct(layers: Mapping[str, QuantizedLayer]) -> Quantized:
            x = self.x[: self.few]
            return quantize.correct(self.network, layers, edges, x, self.reference)

        return correct

    @functools.cached_property
    def plain(self) -> Quantized:
        """8 bits of everything, sums of 32."""
        return self.correct(self.edges())(self.rounded())

    def kl(self, quantized: Quantized) -> tuple[float, float]:
        """Mean KL(float ‖ quantized) on the test rows, and its standard error."""
        found = per_sample(self.answers, quantize.simulate(quantized, self.test), "kl")
        return float(found.mean()), float(found.std() / math.sqrt(len(found)))

    def kl_computed(self, quantized: Quantized, accumulator: Accumulator) -> float:
        """The same of what a machine with such accumulators computes, overflows and all."""
        machine = overflow.emulated(quantized, accumulator)
        answers = torch.cat([machine(rows) for rows in self.test.split(64)])
        return float(per_sample(self.answers, answers, "kl").mean())

    def sensitivity(self, name: str) -> Sensitivity:
        """Curvature, measured once and kept in `build/overflow`."""
        path = BUILD / f"{name}-{len(self.x)}.safetensors"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            found = curvature.gauss_newton(self.network, self.x[:512], kind="kl", chunk=64)
            curvature.save(found, path)
        return curvature.load(path)

    @functools.cached_property
    def edge_tables(self) -> dict[int, EdgeTable]:
        """Grids of the activations at all widths, and their errors."""
        return quantize.edge_tables(self.network, self.x[:512])


def case(model: nn.Module, arrays: dict[str, np.ndarray], rows: int, few: int, test: int) -> Case:
    """A network captured on rows drawn with one seed."""
    x = torch.from_numpy(arrays["train_x"])
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x = x[order[:rows]]
    network = build(model, x)
    judged = torch.from_numpy(arrays["test_x"])[:test]
    return Case(network, quantize.weight_tables(network), x, judged, few)


@functools.cache
def resnet20(quick: bool) -> Case:
    """ResNet-20 on 517 test images."""
    rows, few, test = (64, 32, 64) if quick else (1024, 256, 517)
    return case(networks.resnet20(), networks.cifar10(), rows, few, test)


@functools.cache
def mobilenet(quick: bool) -> Case:
    """MobileNetV2 on 250 test images."""
    rows, few, test = (8, 4, 4) if quick else (128, 24, 250)
    return case(networks.mobilenet_v2(), networks.imagenet(), rows, few, test)
