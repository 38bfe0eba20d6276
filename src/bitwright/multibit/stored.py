"""A trained net as files hold it: batch-norm folded, coordinates in float16, a captured graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from bitwright.arith.multibit import Bases, tidied, values
from bitwright.errors import BitwrightError
from bitwright.multibit.activations import insert
from bitwright.multibit.groups import Grouping
from bitwright.multibit.net import Multibit
from bitwright.multibit.packed import Packed, compacted, pack
from bitwright.network import Network, build
from bitwright.network.capture import set_attribute

#: of a layer's weights by float16, root mean square; within its range it is below 1e-3
_MOST_OFF = 1e-2


@dataclass(frozen=True)
class StoredLayer:
    """A layer's bases, :func:`~bitwright.multibit.packed.compacted`, and how they were cut."""

    bases: Bases
    grouping: Grouping

    def weight(self, shape: tuple[int, ...]) -> Tensor:
        """What they stand for, float32."""
        return self.grouping.join(values(self.bases), shape)


@dataclass(frozen=True)
class Stored:
    """A captured network whose weights are those of its layers' bases.

    Attributes:
        network: batch-norm folded, activations cut to their bases; it computes what the files do.
        layers: by name, in the order of the network's.
    """

    network: Network
    layers: Mapping[str, StoredLayer]

    def packed(self) -> Packed:
        """The layers in their stored form."""
        return pack([self.layers[la.name].bases for la in self.network.layers])

    @property
    def average_bits(self) -> float:
        """Stored bits a weight: signs, coordinates and counts of bases."""
        return self.packed().size_bits / self.network.weights


def stored(net: Multibit) -> Stored:
    """What a trained net stands for, as files hold it.

    Batch-norm scales an output channel by a factor, which no group reaches over: its coordinates
    take it, and negative factors turn signs over. Coordinates are then rounded to float16, and the
    network's weights are those of the rounded ones.

    Raises:
        BitwrightError: coordinates that float16 does not hold: too large, so small that a layer's
            weights change by more than a hundredth (root mean square), or no numbers.
    """
    dense = net.dense()
    network = build(dense, net.example, skip=net.skip)
    layers = {}
    for layer in network.layers:
        own = net[layer.name]
        weight = own.weight().reshape(layer.rows, layer.fan_in).double()
        folded = network.matrix(layer).double()
        factor = (weight * folded).sum(1) / weight.square().sum(1).clamp(min=1e-300)
        each = factor.float().repeat_interleave(len(own.codes) // layer.rows)
        exact = tidied(Bases(own.codes, own.alpha * each[:, None]))
        bases = compacted(exact)
        wanted = values(exact).double()
        off = (values(bases) - wanted).norm() / wanted.norm().clamp(min=1e-300)
        if not off <= _MOST_OFF:
            raise BitwrightError(
                f"layer {layer.name!r} has coordinates up to {float(exact.alpha.max()):.3g}, "
                "batch-norm folded, which float16 does not hold: scale the layer, or leave it in "
                "float with skip; nothing is written"
            )
        layers[layer.name] = StoredLayer(bases, own.grouping)
        set_attribute(network.module, layer.weight, layers[layer.name].weight(layer.shape))
    return Stored(insert(network, net.activations()), layers)
