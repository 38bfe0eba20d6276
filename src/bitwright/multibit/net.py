"""A module whose weights are bases: rebuilt for a forward pass, and gone after the step.

What stays between two steps is one byte of signs a weight and float32 coordinates. The rebuilt
weight is a leaf of the graph, so that a backward pass gives ∂L/∂w; ∂L/∂αᵢ = ⟨bᵢ, ∂L/∂w⟩ follows.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from bitwright.arith.multibit import MOST_BASES, Bases, sketch, values
from bitwright.errors import BitwrightError
from bitwright.multibit.activations import Activations, calibrated, placed
from bitwright.multibit.groups import Grouping, parse, usual
from bitwright.multibit.packed import Packed, compacted, pack
from bitwright.network import build


class Multibit(nn.Module):
    """The user's module with bases in place of the weights of its layers.

    Attributes:
        body: a copy of the module; its layers have no weights but while it runs.
        layers: bases by the layer's name.
        inputs: bases of what layers read, by the layer's name; none where activations are float.
        skip: layers that stay float.
        example: two rows, to capture the module again.
    """

    example: Tensor

    def __init__(
        self,
        body: nn.Module,
        layers: Mapping[str, Layer],
        example: Tensor,
        skip: Sequence[str] = (),
        inputs: Mapping[str, Activations] | None = None,
    ) -> None:
        super().__init__()
        self.body, self.skip = body, tuple(skip)
        self.layers = nn.ModuleDict({_key(name): layer for name, layer in layers.items()})
        self.names = tuple(layers)
        self.inputs = nn.ModuleDict({_key(name): each for name, each in (inputs or {}).items()})
        self.register_buffer("example", example[:2].clone(), persistent=False)
        self._owners = {name: _owners(body, name) for name in self.names}
        for owners in self._owners.values():
            for module, leaf in owners:
                del module._parameters[leaf]
        self._leaves: dict[str, Tensor] = {}

    def __getitem__(self, name: str) -> Layer:
        found = self.layers[_key(name)]
        assert isinstance(found, Layer)
        return found

    def leaves(self) -> dict[str, Tensor]:
        """The weights of this step by layer, made at their first use; their `.grad` is ∂L/∂w."""
        if not self._leaves:
            self._leaves = {name: self[name].weight().requires_grad_() for name in self.names}
        return self._leaves

    def release(self) -> None:
        """Forget the weights of this step: bases have changed, or will."""
        self._leaves = {}

    def forward(self, *inputs: Any) -> Any:
        """What the module answers with the weights that the bases stand for."""
        if torch.is_grad_enabled():
            return self.run(self.leaves(), *inputs)
        return self.run({name: self[name].weight() for name in self.names}, *inputs)

    def run(self, weights: Mapping[str, Tensor], *inputs: Any) -> Any:
        """What the module answers with these weights."""
        with self._placed(weights), placed(self.activations(), self._readers()):
            return self.body(*inputs)

    def activations(self) -> dict[str, Activations]:
        """Bases of what layers read, by the layer's name."""
        given = {name: self.inputs[_key(name)] for name in self.names if _key(name) in self.inputs}
        return {name: each for name, each in given.items() if isinstance(each, Activations)}

    def _readers(self) -> dict[str, nn.Module]:
        return {name: owners[0][0] for name, owners in self._owners.items()}

    @contextmanager
    def _placed(self, weights: Mapping[str, Tensor]) -> Iterator[None]:
        places = [
            (module, leaf, weights[n]) for n in self.names for module, leaf in self._owners[n]
        ]
        try:
            for module, leaf, value in places:
                object.__setattr__(module, leaf, value)
            yield
        finally:
            for module, leaf, _ in places:
                module.__dict__.pop(leaf, None)

    def others(self) -> list[nn.Parameter]:
        """Parameters that are no weights' bases: biases, batch-norm, activations' coordinates."""
        given = [*self.body.parameters(), *self.inputs.parameters()]
        return [p for p in given if p.requires_grad]

    def packed(self) -> Packed:
        """The layers as a file would hold them."""
        return pack([compacted(self[name].bases()) for name in self.names])

    @property
    def weights(self) -> int:
        """Weights of the layers."""
        return sum(self[name].codes.numel() for name in self.names)

    def average_bits(self) -> float:
        """Stored bits a weight: signs, coordinates and counts of bases."""
        return self.packed().size_bits / self.weights

    def blank_bits(self) -> float:
        """Those that counts take alone, without any basis."""
        blank = [Bases(torch.zeros_like(self[n].codes), torch.zeros_like(self[n].alpha))
                 for n in self.names]  # fmt: skip
        return pack(blank).size_bits / self.weights

    def dense(self) -> nn.Module:
        """The plain module with the weights that the bases stand for, in evaluation mode.

        Its activations are float.
        """
        body = copy.deepcopy(self.body)
        for name in self.names:
            weight = nn.Parameter(self[name].weight())
            for module, leaf in self._owners[name]:
                path = next(n for n, m in self.body.named_modules() if m is module)
                setattr(body.get_submodule(path), leaf, weight)
        return body.eval()


class Layer(nn.Module):
    """Bases of one weight: signs as bytes, coordinates as a buffer that steps write into.

    Attributes:
        codes: uint8 [G, n]; alpha: float32 [G, I].
        grouping, shape: of the weight.
    """

    codes: Tensor
    alpha: Tensor

    def __init__(self, bases: Bases, grouping: Grouping, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.register_buffer("codes", bases.codes)
        self.register_buffer("alpha", bases.alpha)
        self.grouping, self.shape = grouping, shape

    def bases(self) -> Bases:
        """As they are now."""
        return Bases(self.codes, self.alpha)

    def become(self, bases: Bases) -> None:
        """Write other bases of the same sizes."""
        self.codes.copy_(bases.codes)
        self.alpha.copy_(bases.alpha)

    def weight(self) -> Tensor:
        """The weight, of its own shape."""
        return self.grouping.join(values(self.bases()), self.shape)


def prepare(
    model: nn.Module,
    example: Tensor,
    *,
    groups: Mapping[str, str] | None = None,
    size: int = 64,
    most: int = 6,
    skip: Sequence[str] = (),
    activation_bases: int = 0,
) -> Multibit:
    """A copy of the model whose weights are bases, by :func:`~bitwright.arith.multibit.sketch`.

    Args:
        model: trained; left as it is.
        example: [n >= 2, ...] rows as it takes them; activations are fitted to the first 256.
        groups: layer -> `kernel`, `pixel`, `channel` or a number of weights.
        size: about how many weights the groups of all other layers have.
        most: bases a group begins with at most.
        skip: names of layers to leave in float, or prefixes that end in a dot.
        activation_bases: binary bases of what each layer reads
            (:mod:`bitwright.multibit.activations`), but of the network's own input; 0 for float.

    Raises:
        BitwrightError: the model cannot be captured, a layer is unknown or an embedding, its groups
            do not fit, its weights are not finite, or its input cannot have bases.
    """
    if size < 1:
        raise BitwrightError(f"groups have {size} weights; give a size of 1 or more")
    if not 1 <= most <= MOST_BASES:
        raise BitwrightError(f"a group begins with 1 to {MOST_BASES} bases, not {most}")
    network = build(model, example, skip=skip)
    shapes = {la.name: la.shape for la in network.layers}
    unknown = sorted(set(groups or {}) - set(shapes))
    if unknown:
        raise BitwrightError(f"there is no layer {unknown[0]!r}; layers are {', '.join(shapes)}")
    tables = [la.name for la in network.layers if la.kind == "embedding"]
    if tables:
        raise BitwrightError(
            f"layer {tables[0]!r} is an embedding, which has no multi-bit form; leave it in float "
            f"with skip={tables!r}"
        )
    body, layers = copy.deepcopy(model), {}
    for layer in network.layers:
        name = layer.name
        grouping = usual(layer.shape, size)
        if groups and name in groups:
            grouping = parse(groups[name], layer.shape, name)
        weight = body.get_parameter(layer.weight).detach()
        if not bool(torch.isfinite(weight).all()):
            raise BitwrightError(
                f"layer {name!r} has NaN or infinite weights; train it again, or leave it in float "
                "with skip"
            )
        layers[name] = Layer(sketch(grouping.cut(weight), most), grouping, layer.shape)
    inputs = {}
    if activation_bases:
        owners = {name: _owners(body, name) for name in layers}
        inputs = calibrated(body, network, owners, example[:256], activation_bases)
    return Multibit(body, layers, example, skip, inputs)


def float_weights(model: nn.Module, net: Multibit) -> dict[str, Tensor]:
    """The weights of a model by the layers of a net that was prepared from it."""
    found = {}
    for name in net.names:
        owner, leaf = _owners(model, name)[0]
        found[name] = owner.get_parameter(leaf).detach()
    return found


def _key(name: str) -> str:
    return name.replace(".", "/")


def _owners(body: nn.Module, name: str) -> list[tuple[nn.Module, str]]:
    """Every module that has the weight of the layer `name`, and under which name."""
    path = f"{name}.weight"
    try:
        weight = body.get_parameter(path)
    except AttributeError:
        path = name
        weight = body.get_parameter(path)
    return [(m, leaf) for m in body.modules() for leaf, p in m._parameters.items() if p is weight]
