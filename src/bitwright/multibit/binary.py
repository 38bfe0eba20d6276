"""A stored linear layer on bits: from the artefact to :mod:`bitwright.multibit.kernel`.

With activations `x̂ = c + Σₖ βₖ bₖ` of one tensor's coordinates,

    y_o = Σ_i Σ_k α_{o,i} βₖ ⟨a_{o,i}, bₖ⟩ + c Σ_j w_{o,j} + bias_o ,

and the inner products are XNOR and popcount (Rastegari et al., arXiv 1603.05279; ALQ, sec. 3).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bitwright.arith.multibit import Bases
from bitwright.errors import BitwrightError
from bitwright.multibit.activations import MOST_BASES, chains
from bitwright.multibit.kernel import BinaryMatrix, matrix, product
from bitwright.multibit.stored import Stored


def halves(values: Tensor) -> tuple[Tensor, Tensor]:
    """Coordinates β [I] > 0 of 2ᴵ rising values, and their codes [2ᴵ], bit k: the sign in basis k.

    The differences to the least value are the sums of subsets of 2β: the smallest that no sum of
    those found so far explains is the next 2β.

    Raises:
        ValueError: values that no coordinates have.
    """
    count = len(values).bit_length() - 1
    left = values.double() - float(values[0])
    near = 1e-5 * max(float(left[-1]), 1e-30)
    sums, found = torch.zeros(1, dtype=torch.float64), list[float]()
    wrong = ValueError(f"{values.tolist()} are no sums of {count} signed coordinates")
    if len(values) != 2**count:
        raise wrong
    while len(found) < count:
        rest = left.tolist()
        for known in sums.tolist():
            away = [abs(value - known) for value in rest]
            del rest[away.index(min(away))]
        found.append(rest[0])
        sums = torch.cat([sums, sums + rest[0]])
    in_order, codes = sums.sort()
    if float((in_order - left).abs().max()) > near:
        raise wrong
    return torch.tensor(found) / 2, codes


@dataclass(frozen=True)
class BinaryLinear:
    """`y = x̂ Wᵀ + bias` of a stored layer, x̂ the nearest of its input's values.

    Attributes:
        weights: its bases as words.
        shift: c Σ_j w + bias, float32 [O].
        middles: between the input's values, rising [2ᴵ − 1]; codes: of the values [2ᴵ].
        beta: coordinates of the input [I].
    """

    weights: BinaryMatrix
    shift: Tensor
    middles: Tensor
    codes: Tensor
    beta: Tensor

    @classmethod
    def of(cls, stored: Stored, name: str) -> BinaryLinear:
        """The layer `name` of a loaded artefact.

        Raises:
            BitwrightError: there is no such layer, it is not linear, or its input has no bases.
        """
        network = stored.network
        layer = next((la for la in network.layers if la.name == name), None)
        if layer is None:
            names = ", ".join(la.name for la in network.layers)
            raise BitwrightError(f"there is no layer {name!r}; layers are {names}")
        if layer.kind != "linear":
            raise BitwrightError(f"layer {name!r} is a {layer.kind}; the kernel runs linear layers")
        nodes = {node.name: node for node in network.module.graph.nodes}
        last = nodes[layer.calls[0]].args[0]
        chain = next((chain for chain in chains(network) if chain.last is last), None)
        if chain is None:
            raise BitwrightError(
                f"layer {name!r} reads float numbers; train with activation_bases of 1 to "
                f"{MOST_BASES}"
            )
        values = torch.tensor(chain.values[::-1])
        beta, codes = halves(values)
        weight = stored.layers[name].weight(layer.shape)
        shift = float(values[0] + values[-1]) / 2 * weight.sum(1)
        if layer.bias:
            shift = shift + network.bias(layer)
        middles = torch.tensor(chain.middles[::-1])
        return cls(matrix(stored.layers[name].bases, layer.rows), shift, middles, codes, beta)

    def __call__(self, x: Tensor) -> Tensor:
        """y [n, O] of float rows x [n, K]."""
        codes = self.codes[torch.bucketize(x.contiguous(), self.middles)].to(torch.uint8)
        groups = codes.reshape(-1, self.weights.size)
        bases = Bases(groups, self.beta.expand(len(groups), -1))
        return product(self.weights, bases, len(x)) + self.shift
