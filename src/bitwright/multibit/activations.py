"""Activations as binary bases: what a layer reads, cut to 2ᴵ values of one tensor's coordinates.

    x̂ = c + Σᵢ αᵢ bᵢ ,   bᵢ ∈ {−1, +1} ,   c = Σᵢ αᵢ where nothing below zero occurs, else 0 ,

the nearest of the 2ᴵ values; so behind a ReLU the bases are {0, 2αᵢ}, and zero is one of the
values. Codes held, ∂x̂/∂αᵢ = bᵢ (+1 behind a ReLU), and x takes the gradient of x̂ between the least
and the largest value (straight-through, arXiv 1308.3432). Coordinates are trained by their
logarithms, so that they stay positive and rates are relative to them.

In a captured graph, and so in the files, x̂ is a chain of comparisons with the middles of
neighbouring values that fill in constants: no arithmetic, so that every runtime has the same ones.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node

from bitwright.errors import BitwrightError
from bitwright.network import Network, describe, evaluating
from bitwright.network.infer import infer
from bitwright.network.ops import VALUE_PRESERVING, aten

MOST_BASES = 4
#: numbers of a tensor that its coordinates are fitted to
_SAMPLE = 2**16
_STARTS = (0.15, 0.25, 0.4, 0.6, 0.8, 1.0)


def levels(alpha: Tensor, at_zero: bool) -> Tensor:
    """The 2ᴵ values by code, bit i: the sign in basis i; [2ᴵ] of α [I]."""
    return _table(len(alpha), at_zero, alpha) @ alpha


def _table(count: int, at_zero: bool, like: Tensor) -> Tensor:
    """∂x̂/∂αᵢ by code, [2ᴵ, I]."""
    codes = torch.arange(2**count, device=like.device)[:, None]
    bits = (codes >> torch.arange(count, device=like.device)) & 1
    return (2 * bits - (0 if at_zero else 1)).to(like.dtype)


def ordered(alpha: Tensor, at_zero: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Values in rising order [2ᴵ], the middles between them, and their codes."""
    values, codes = levels(alpha, at_zero).sort()
    return values, (values[1:] + values[:-1]) / 2, codes


def fit(x: Tensor, count: int, at_zero: bool) -> Tensor:
    """Coordinates [count] with a small squared error of the numbers x.

    From evenly spaced values of several widths, nearest codes and least squares in turns; a round
    that would not make the error smaller ends it.
    """
    x = x.detach().flatten().double()
    x = x[:: max(1, len(x) // _SAMPLE)].contiguous()
    top = float(x.abs().max().clamp(min=1e-6))
    powers = 2.0 ** torch.arange(count, dtype=torch.float64)
    table = _table(count, at_zero, powers)
    best, least = powers, math.inf
    for share in _STARTS:
        alpha = share * top * powers / (2**count - 1) / (2 if at_zero else 1)
        error = math.inf
        while True:
            values, middles, codes = ordered(alpha, at_zero)
            place = torch.bucketize(x, middles)
            now = float((values[place] - x).square().mean())
            if not now < error * (1 - 1e-4):
                break
            error = now
            if now < least:
                best, least = alpha, now
            alpha = _least_squares(table[codes[place]], x, alpha)
    return best.float()


def _least_squares(basis: Tensor, x: Tensor, old: Tensor) -> Tensor:
    system = basis.T @ basis
    system += 1e-9 * system.diagonal().max().clamp(min=1e-12) * torch.eye(len(old))
    found = torch.linalg.solve(system, basis.T @ x)
    return torch.where(found > 1e-6 * old, found, old)


class _Nearest(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, alpha: Tensor, at_zero: bool) -> Tensor:
        values, middles, codes = ordered(alpha, at_zero)
        place = torch.bucketize(x.contiguous(), middles)
        ctx.save_for_backward((x >= values[0]) & (x <= values[-1]), codes[place], alpha)
        ctx.at_zero = at_zero
        return values[place]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        inside, codes, alpha = ctx.saved_tensors
        table = _table(len(alpha), ctx.at_zero, alpha)
        by_code = torch.zeros(len(table), dtype=gradient.dtype, device=gradient.device)
        by_code.index_add_(0, codes.flatten(), gradient.flatten())
        return gradient * inside, table.T @ by_code, None


class Activations(nn.Module):
    """Bases of one tensor.

    Args:
        alpha: [I] > 0; at_zero: whether nothing below zero occurs.
    """

    def __init__(self, alpha: Tensor, at_zero: bool) -> None:
        super().__init__()
        self.log_alpha = nn.Parameter(alpha.log())
        self.at_zero = at_zero

    def forward(self, x: Tensor) -> Tensor:
        """x̂, with gradients."""
        found: Tensor = _Nearest.apply(x, self.log_alpha.exp(), self.at_zero)
        return found

    def values(self) -> tuple[list[float], list[float]]:
        """Rising values, and the middles between them, as the files hold them."""
        found, middles, _ = ordered(self.log_alpha.detach().exp().cpu(), self.at_zero)
        return found.tolist(), middles.tolist()


@contextmanager
def placed(inputs: Mapping[str, nn.Module], owners: Mapping[str, nn.Module]) -> Iterator[None]:
    """While it lasts, the modules `owners` read what `inputs` make of their input."""

    def cut(each: nn.Module, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (each(args[0]), *args[1:])

    hooks = []
    try:
        for name, each in inputs.items():
            hooks.append(owners[name].register_forward_pre_hook(partial(cut, each)))
        yield
    finally:
        for hook in hooks:
            hook.remove()


def readers(network: Network) -> list[str]:
    """Layers that read something else than the network's own input."""
    nodes = {n.name: n for n in network.module.graph.nodes}

    def inner(node: Node) -> bool:
        source = node.args[0]
        while isinstance(source, Node) and source.target in VALUE_PRESERVING:
            source = source.args[0]
        return isinstance(source, Node) and source.op != "placeholder"

    return [la.name for la in network.layers if all(inner(nodes[call]) for call in la.calls)]


def calibrated(
    body: nn.Module,
    network: Network,
    owners: Mapping[str, Sequence[tuple[nn.Module, str]]],
    x: Tensor,
    count: int,
) -> dict[str, Activations]:
    """Bases of what each layer reads, fitted to rows x; the input of the network stays float.

    Raises:
        BitwrightError: a number of bases that there cannot be, a layer that is not called as a
            module of its own, or one that reads NaN or infinite numbers.
    """
    if not 1 <= count <= MOST_BASES:
        raise BitwrightError(f"activations have 1 to {MOST_BASES} bases, not {count}")
    names = readers(network)
    calls = {la.name: len(la.calls) for la in network.layers}
    modules = {name: _module(name, owners[name]) for name in names}
    seen: dict[str, list[Tensor]] = {name: [] for name in names}

    class _Note(nn.Module):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

        def forward(self, value: Tensor) -> Tensor:
            seen[self.name].append(value.detach())
            return value

    notes = {name: _Note(name) for name in names}
    with evaluating(body), torch.no_grad(), placed(notes, modules):
        body(x)
    found = {}
    for name in names:
        if len(seen[name]) != calls[name]:
            raise BitwrightError(_not_a_module(name))
        value = torch.cat([v.flatten() for v in seen[name]])
        if not bool(torch.isfinite(value).all()):
            raise BitwrightError(
                f"layer {name!r} reads NaN or infinite numbers, which have no bases; check the "
                "rows and the weights before it"
            )
        at_zero = bool((value >= 0).all())
        found[name] = Activations(fit(value, count, at_zero), at_zero)
    return found


def _module(name: str, owners: Sequence[tuple[nn.Module, str]]) -> nn.Module:
    module, leaf = owners[0]
    if (
        len(owners) > 1
        or leaf != "weight"
        or not isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear)
    ):
        raise BitwrightError(_not_a_module(name))
    return module


def _not_a_module(name: str) -> str:
    return (
        f"layer {name!r} is not called as a Conv1d, Conv2d or Linear module of its own, so that "
        "its input cannot have bases; leave it in float with --skip, or activations"
    )


def insert(network: Network, inputs: Mapping[str, Activations]) -> Network:
    """The network with comparisons and constants in front of the layers `inputs`."""
    if not inputs:
        return network
    graph = network.module.graph
    nodes = {n.name: n for n in graph.nodes}
    for layer in network.layers:
        if layer.name not in inputs:
            continue
        values, middles = inputs[layer.name].values()
        for call in layer.calls:
            node = nodes[call]
            x: Any = node.args[0]
            with graph.inserting_before(node):
                below = graph.call_function(aten.le.Scalar, (x, middles[0]))
                y = graph.call_function(aten.masked_fill.Scalar, (x, below, values[0]))
                for middle, value in zip(middles, values[1:], strict=True):
                    above = graph.call_function(aten.gt.Scalar, (x, middle))
                    y = graph.call_function(aten.masked_fill.Scalar, (y, above, value))
            node.args = (y, *node.args[1:])
    network.module.recompile()
    infer(network.module, network.input_shape)
    return describe(network.module, network.input_shape, network.skipped)


@dataclass(frozen=True)
class Chain:
    """One chain that :func:`insert` made: x at `source` becomes x̂ at `last`.

    Attributes:
        values: falling; middles: between them.
    """

    source: Node
    last: Node
    values: tuple[float, ...]
    middles: tuple[float, ...]


def chains(network: Network) -> list[Chain]:
    """The chains in front of the network's layers."""
    calls = {name for layer in network.layers for name in layer.calls}
    found = []
    for node in network.module.graph.nodes:
        if node.name not in calls:
            continue
        values, middles = list[float](), list[float]()
        step = last = node.args[0]
        while step.target is aten.masked_fill.Scalar:
            values.append(float(step.args[2]))
            middles.append(float(step.args[1].args[1]))
            step = step.args[0]
        if values:
            # the first two values have one middle, that the chain begins with
            found.append(Chain(step, last, tuple(values), tuple(middles[:-1])))
    return found
