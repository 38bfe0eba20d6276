"""The runtime's integer formulas, in PyTorch: what the exported file must compute, bit for bit.

A value between operations is stored in 8 bits, `x = scale · (q − zero)`. Accumulators are exact
integers (held in float64, below 2⁵³); what happens to them afterwards copies ONNX Runtime's CPU
kernels: one float32 multiplier for each channel, rounding half to even, saturation. Sources of the
formulas: `QLinearConv` and `MlasRequantizeOutput` (multiplier `s_x·s_w/s_y`), `MlasQLinearAdd` (two
fused multiply-adds on unsigned inputs), `QLinearAveragePool` (float32 sum in reading order),
`MlasQLinearGlobalAveragePool` (integer sum, one multiplier), `MlasQLinearMul`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node

from bitwright.arith.grid import container
from bitwright.network import Layer, run
from bitwright.network.network import fused_activation
from bitwright.network.ops import (
    CLIPS,
    VALUE_PRESERVING,
    aten,
    is_lookup,
    is_mean_over_space,
)
from bitwright.quantize import EdgeGrid, Quantized, QuantizedLayer


@dataclass(frozen=True)
class Stored:
    """A value stored in 8 bits: integers 0..2^bits − 1 held as float64, and their grid."""

    q: Tensor
    grid: EdgeGrid

    def clipped(self) -> Stored:
        """In the levels of each channel."""
        if not self.grid.widths:
            return self
        return Stored(self.q.clamp(*self.grid.limits(self.q)), self.grid)

    def float(self) -> Tensor:
        """`scale · (q − zero)` in float32, as DequantizeLinear computes it."""
        return (self.q - self.grid.zero).float() * f32(self.grid.scale)


@dataclass(frozen=True)
class Accumulator:
    """Exact integers of a layer, before rescaling: value = q · scale for each channel."""

    q: Tensor
    scale: Tensor
    axis: int


def f32(value: float) -> Tensor:
    """A float32 scalar."""
    return torch.tensor(value, dtype=torch.float32)


def integer_bias(stored: QuantizedLayer, grid: EdgeGrid) -> Tensor:
    """int32 [rows]: the bias in steps of input scale × container scale, rounded half to even."""
    step = f32(grid.scale) * container(stored.codes[:, :0], stored.grid)[1]
    steps = (stored.bias.double() / step.double()).round()
    return steps.clamp(-(2**31) + 1, 2**31 - 1).to(torch.int32)


def _clip(values: Tensor, grid: EdgeGrid) -> Tensor:
    """Round half to even, add the zero point, saturate; float64 integers."""
    return (values.double().round() + grid.zero).clamp(0, grid.top)


def quantize(x: Tensor, grid: EdgeGrid) -> Stored:
    """QuantizeLinear: `clip(round(x / scale) + zero)` with a float32 division."""
    return Stored(_clip(x.float() / f32(grid.scale), grid), grid)


#: a layer's sums, float64, for its call and what that reads
Sums = Callable[[Layer, Node, Stored], Tensor]


class IntegerNetwork(nn.Module):
    """The network as the file computes it: integers between operations, float at the ends.

    `forward(x)` takes and returns what the original model does. Parameters cannot be trained.

    Args:
        quantized: the network.
        sums: computes a layer's sums without bias for what it reads; None for the exact ones.
    """

    def __init__(self, quantized: Quantized, sums: Sums | None = None) -> None:
        super().__init__()
        self.quantized, self._sums = quantized, sums
        network = quantized.network
        self._by_call = {name: layer for layer in network.layers for name in layer.calls}
        self._grids = {
            e.name: quantized.edges[e.group] for e in network.edges if e.group in quantized.edges
        }
        for i, layer in enumerate(network.layers):
            q, scale = container(
                quantized.layers[layer.name].codes, quantized.layers[layer.name].grid
            )
            self.register_buffer(f"q{i}", q.reshape(layer.shape).to(torch.int8))
            self.register_buffer(f"scale{i}", scale)
        self._index = {layer.name: i for i, layer in enumerate(network.layers)}

    def forward(self, x: Tensor) -> Any:
        """Outputs for the rows `x`, float32."""
        return self.trace(x)

    @torch.no_grad()
    def trace(
        self, x: Tensor, note: Callable[[str, Stored | Tensor], Tensor | None] | None = None
    ) -> Any:
        """Outputs; `note` receives each edge's name and integers as they are computed.

        What it returns, unless None, takes their place in all that follows. What a table gives is
        noted under the lookup's name, too, as `CALL.rows`, float.
        """

        def noted(name: str, value: Stored) -> Stored:
            other = note(name, value) if note else None
            return value if other is None else replace(value, q=other)

        def call(node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            value = self._compute(node, args, kwargs)
            if note and is_lookup(node) and node.name in self._by_call:
                note(f"{node.name}.rows", value)
            grid = self._grids.get(node.name)
            if grid is not None:
                value = noted(node.name, _store(value, grid).clipped())
            elif isinstance(value, Accumulator) and not self._waits(node):
                value = _release(value)
            return value

        def enter(node: Node, value: Tensor) -> Any:
            grid = self._grids.get(node.name)
            if grid is None:
                return value
            return noted(node.name, quantize(value, grid).clipped())

        result = run(self.quantized.network.module, x, call, enter=enter)
        return torch.utils._pytree.tree_map_only(Stored, Stored.float, result)

    def _waits(self, node: Node) -> bool:
        """Whether a clip that the runtime folds into the rescaling follows."""
        follower = fused_activation(node)
        return follower is not None and follower.name in self._grids

    def _compute(self, node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        layer = self._by_call.get(node.name)
        if layer is not None and is_lookup(node):
            return self._rows(layer, args[1])
        if layer is not None:
            if isinstance(args[0], Stored):
                return self._layer(layer, node, args)
            return self._float_layer(layer, node, args)
        if node.target in CLIPS and isinstance(args[0], Accumulator | _Clipped):
            return args[0]  # saturation of the stored value clips it
        if node.target in VALUE_PRESERVING and isinstance(args[0], Stored):
            return _preserve(node, args, kwargs)
        target, follower = self._grids.get(node.name), fused_activation(node)
        if target is None and follower is not None:
            target = self._grids.get(follower.name)
        if target is not None and node.target is aten.add.Tensor and _both_stored(args):
            if not kwargs:
                return _Clipped(_add(args[0], args[1], target))
        elif target is not None and isinstance(args[0], Stored):
            rule = _RULES.get(node.target)
            if rule is not None and (found := rule(node, args, target)) is not None:
                return _Clipped(found)
        args, kwargs = torch.utils._pytree.tree_map_only(Stored, Stored.float, (args, kwargs))
        return node.target(*args, **kwargs)  # type: ignore[operator]

    def _rows(self, layer: Layer, ids: Tensor) -> Tensor:
        """Rows of a table, `integers · step` in float32."""
        i = self._index[layer.name]
        integers, step = getattr(self, f"q{i}"), getattr(self, f"scale{i}")
        return nn.functional.embedding(ids, integers).float() * step[ids, None]

    def _layer(self, layer: Layer, node: Node, args: tuple[Any, ...]) -> Accumulator:
        x: Stored = args[0]
        stored = self.quantized.layers[layer.name]
        weight = getattr(self, f"q{self._index[layer.name]}")
        bias = integer_bias(stored, x.grid)
        axis = -1 if layer.kind == "linear" else 1
        if self._sums is None:
            sums = exact_sums(node, x.q - x.grid.zero, weight, bias, args[3:])
        else:
            sums = self._sums(layer, node, x).movedim(axis, -1).add(bias).movedim(-1, axis)
        scale = f32(x.grid.scale) * getattr(self, f"scale{self._index[layer.name]}")
        return Accumulator(sums, scale, axis)

    def _float_layer(self, layer: Layer, node: Node, args: tuple[Any, ...]) -> Tensor:
        stored = self.quantized.layers[layer.name]
        weight = stored.matrix().reshape(layer.shape)
        return node.target(args[0], weight, stored.bias, *args[3:])  # type: ignore[operator]


def exact_sums(
    node: Node, x: Tensor, weight: Tensor, bias: Tensor, rest: tuple[Any, ...]
) -> Tensor:
    """The layer's integer accumulators, exact, as float64.

    Where no partial sum can reach 2²⁴, `Σ|w| · max|x| + |b|`, float32 arithmetic is exact in any
    order and four times faster; a kernel that is not plain sums (Winograd) would leave fractions,
    which is checked.
    """
    reach = weight.flatten(1).double().abs().sum(1) * float(x.abs().max()) + bias.double().abs()
    if float(reach.max()) < 2**24:
        sums = node.target(x.float(), weight.float(), bias.float(), *rest)  # type: ignore[operator]
        if bool((sums == sums.round()).all()):
            return sums.double()
    return node.target(x.double(), weight.double(), bias.double(), *rest)  # type: ignore[operator]


@dataclass(frozen=True)
class _Clipped:
    """A result on its output grid, for a clip behind it that does nothing any more."""

    stored: Stored


def _store(value: Any, grid: EdgeGrid) -> Stored:
    if isinstance(value, Stored):
        return value
    if isinstance(value, _Clipped):
        return value.stored
    if isinstance(value, Accumulator):
        factor = _along(value.scale / f32(grid.scale), value)
        return Stored(_clip(value.q.float() * factor, grid), grid)
    return quantize(value, grid)


def _release(value: Accumulator) -> Tensor:
    return value.q.float() * _along(value.scale, value)


def _along(vector: Tensor, value: Accumulator) -> Tensor:
    shape = [1] * value.q.ndim
    shape[value.axis] = -1
    return vector.reshape(shape)


def _both_stored(args: tuple[Any, ...]) -> bool:
    return len(args) == 2 and isinstance(args[0], Stored) and isinstance(args[1], Stored)


def _preserve(node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Stored:
    x: Stored = args[0]
    if node.target in (aten.pad.default, aten.constant_pad_nd.default):
        return Stored(node.target(x.q - x.grid.zero, *args[1:], **kwargs) + x.grid.zero, x.grid)
    return Stored(node.target(x.q, *args[1:], **kwargs), x.grid)  # type: ignore[operator]


def _add(a: Stored, b: Stored, out: EdgeGrid) -> Stored:
    """`fma(a, r_a, fma(b, r_b, c))` with r = s/s_out and `c = zero_out − fma(r_a, z_a, r_b z_b)`.

    The compiler contracts the constant's sum into a fused multiply-add as well: without that, some
    ten of a million sums come out one step off.
    """
    ra, rb = f32(a.grid.scale) / f32(out.scale), f32(b.grid.scale) / f32(out.scale)
    both = (ra.double() * a.grid.zero + (rb * b.grid.zero).double()).float()
    fixed = f32(out.zero) - both
    inner = (b.q * rb.double() + fixed.double()).float()
    total = (a.q * ra.double() + inner.double()).float()
    return Stored(total.double().round().clamp(0, out.top), out)


def _mul(node: Node, args: tuple[Any, ...], out: EdgeGrid) -> Stored | None:
    if not _both_stored(args):
        return None
    a, b = args
    factor = f32(a.grid.scale) * f32(b.grid.scale) / f32(out.scale)
    product = ((a.q - a.grid.zero) * (b.q - b.grid.zero)).float()
    return Stored(_clip(product * factor, out), out)


def _average_pool(node: Node, args: tuple[Any, ...], out: EdgeGrid) -> Stored | None:
    """Float32 sums of dequantized values in reading order, divided, rounded with the zero point."""
    x: Stored = args[0]
    kernel, stride, padding, ceil_mode, count_pad, divisor = _pool_arguments(args)
    if ceil_mode or divisor is not None:
        return None
    values = x.float()
    pad = torch.nn.functional.pad
    spread = (padding[1], padding[1], padding[0], padding[0])
    values = pad(values, spread)
    ones = pad(torch.ones_like(values[:1, :1, : x.q.shape[2], : x.q.shape[3]]), spread)
    height = (values.shape[2] - kernel[0]) // stride[0] + 1
    width = (values.shape[3] - kernel[1]) // stride[1] + 1
    total = torch.zeros(*values.shape[:2], height, width)
    count = torch.zeros(1, 1, height, width)
    for i in range(kernel[0]):
        for j in range(kernel[1]):
            window = (
                slice(i, i + (height - 1) * stride[0] + 1, stride[0]),
                slice(j, j + (width - 1) * stride[1] + 1, stride[1]),
            )
            total = total + values[:, :, window[0], window[1]]
            count = count + ones[:, :, window[0], window[1]]
    mean = total / (f32(kernel[0] * kernel[1]) if count_pad else count)
    steps = mean / f32(out.scale) + f32(out.zero)
    return Stored(steps.double().round().clamp(0, out.top), out)


def _pool_arguments(args: tuple[Any, ...]) -> tuple[Any, ...]:
    def pair(value: Any) -> tuple[int, int]:
        value = [value] if isinstance(value, int) else list(value)
        return (value[0], value[-1])

    kernel = pair(args[1])
    stride = pair(args[2]) if len(args) > 2 and args[2] else kernel
    padding = pair(args[3]) if len(args) > 3 else (0, 0)
    rest = [*args[4:], *(False, True, None)[len(args[4:]) :]]
    return kernel, stride, padding, *rest


def _global_average(node: Node, args: tuple[Any, ...], out: EdgeGrid) -> Stored | None:
    """Integer sums, one float32 multiplier `s_x / (s_y · H·W)`, rounding half to even."""
    if not is_mean_over_space(node):
        return None
    x: Stored = args[0]
    size = x.q.shape[2] * x.q.shape[3]
    factor = f32(x.grid.scale) / (f32(out.scale) * f32(size))
    sums = (x.q - x.grid.zero).sum((2, 3), keepdim=True).float()
    stored = Stored(_clip(sums * factor, out), out)
    if node.target is aten.mean.dim and not (len(args) > 2 and args[2]):
        return Stored(stored.q.flatten(1), out)
    return stored


_RULES: dict[Any, Callable[[Node, tuple[Any, ...], EdgeGrid], Stored | None]] = {
    aten.mul.Tensor: _mul,
    aten.avg_pool2d.default: _average_pool,
    aten.adaptive_avg_pool2d.default: _global_average,
    aten.mean.dim: _global_average,
}
