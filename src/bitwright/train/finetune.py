"""Fine-tuning of a quantized network: straight-through gradients, the float model as teacher.

The stored weight of a row is `s · (clip(round(w/s + z/2)) − z/2)` of a latent weight w; its
gradient passes to w unchanged where nothing was clipped (Bengio et al., arXiv 1308.3432), and to
the step s as in LSQ (Esser et al., arXiv 1902.08153). The loss is KL(float ‖ quantized): no labels.
Bits and zero points stay; latent weights, steps and biases move. The result is taken only where the
KL on held-out rows says that it is better. All layers are quantized at once, or one after another
(:mod:`bitwright.train.order`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from bitwright.arith.grid import Grid, quantize, round_scale
from bitwright.curvature.divergence import flat, per_sample
from bitwright.network import Layer, join, outputs, run
from bitwright.quantize import EdgeGrid, Quantized, QuantizedLayer, simulate
from bitwright.train.order import stages


def finetune(
    quantized: Quantized,
    x: Tensor,
    *,
    epochs: int,
    order: Sequence[str] | None = None,
    kind: str = "kl",
    class_axis: int = 1,
    batch: int = 64,
    rate: float = 1e-3,
    held_out: float = 0.15,
    seed: int = 0,
    device: str = "cpu",
    progress: Callable[[float], None] | None = None,
) -> tuple[Quantized, list[float]]:
    """Train the quantized network towards the float model's answers.

    Args:
        quantized: the corrected network; left as it is.
        x: [n, ...] calibration rows; the last `held_out` share decides, the others train.
        epochs: passes over the training rows; 0 returns the network as it is.
        order: names of all layers as they are to be quantized one after another; None for all at
            once. See :func:`bitwright.train.stages` for when each one's turn is.
        kind, class_axis: of the divergence.
        batch: rows in a step.
        rate: Adam's learning rate relative to a layer's mean step; falls along a cosine.
        held_out: share of rows.
        seed: of the order of rows.
        device: where to train; the result is back on the CPU.
        progress: called with the finished fraction.

    Returns:
        The best network, and the held-out divergence before and after each epoch: of the whole
        quantized network, layers whose turn has not come as they were given.
    """
    count = max(1, round(len(x) * held_out))
    train, judge = x[:-count], x[-count:]
    teacher = outputs(quantized.network.module, train)
    target = outputs(quantized.network.module, judge)

    def value(candidate: Quantized) -> float:
        return float(per_sample(target, simulate(candidate, judge), kind, class_axis).mean())

    best, history = quantized, [value(quantized)]
    state = _Latent(quantized, device)
    steps = max(1, len(train) // batch)
    names = [layer.name for layer in quantized.network.layers]
    turns = {0: names} if order is None else stages(order, epochs * steps)
    optimizer = torch.optim.Adam(state.groups(rate), betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, epochs * steps))
    generator = torch.Generator().manual_seed(seed)
    for epoch in range(epochs):
        shuffled = torch.randperm(len(train), generator=generator)
        for step in range(steps):
            if epoch * steps + step in turns:
                state.enter(turns[epoch * steps + step])
            rows = shuffled[step * batch : (step + 1) * batch]
            wanted, given = teacher[rows].to(device), train[rows].to(device)
            with torch.enable_grad():
                loss = _loss(wanted, state.forward(given), kind, class_axis)
                optimizer.zero_grad()
                loss.backward()
            optimizer.step()
            schedule.step()
            if progress:
                progress((epoch * steps + step + 1) / (epochs * steps))
        candidate = state.stored()
        history.append(value(candidate))
        if history[-1] < min(history[:-1]):
            best = candidate
    return best, history


def _loss(reference: Tensor, found: Tensor, kind: str, class_axis: int) -> Tensor:
    a, b = flat(reference, kind, class_axis), flat(found, kind, class_axis)
    if kind == "squared":
        return 0.5 * (a - b).square().sum((1, 2)).mean()
    p = a.log_softmax(-1)
    return (p.exp() * (p - b.log_softmax(-1))).sum((1, 2)).mean()


class _Latent:
    """Latent weights, log steps and biases of every layer, as leaves of the training graph.

    Layers are float until they :meth:`enter`.
    """

    def __init__(self, quantized: Quantized, device: str) -> None:
        self.quantized = quantized
        network = quantized.network
        self.network = network.to(device)
        self.entered: list[Layer] = []
        self.grids: dict[str, Grid] = {}
        self.weight: dict[str, Tensor] = {}
        self.log_step: dict[str, Tensor] = {}
        self.bias: dict[str, Tensor] = {}
        for layer in network.layers:
            stored = quantized.layers[layer.name]
            # float weights times the correction's gain: their codes are the stored codes, up to
            # what rounding after training may have moved
            w = network.matrix(layer)
            meant = stored.matrix()
            gain = (w * meant).sum(1) / w.square().sum(1).clamp(min=1e-12)
            latent = w * gain.clamp(1 / 16, 16)[:, None]
            same = quantize(latent, stored.grid) == stored.codes
            latent = torch.where(same, latent, meant)
            self.weight[layer.name] = _leaf(latent, device)
            self.log_step[layer.name] = _leaf(stored.grid.scale.log(), device)
            self.bias[layer.name] = _leaf(stored.bias, device)
            self.grids[layer.name] = Grid(
                *(t.to(device) for t in (stored.grid.bits, stored.grid.scale, stored.grid.zero))
            )

    def enter(self, names: Sequence[str]) -> None:
        """Quantize these layers from now on."""
        self.entered += [la for la in self.quantized.network.layers if la.name in names]

    def groups(self, rate: float) -> list[dict[str, Any]]:
        """Parameter groups: weights move in units of their layer's step."""
        found: list[dict[str, Any]] = []
        for layer in self.quantized.network.layers:
            step = float(self.quantized.layers[layer.name].grid.scale.mean())
            found.append({"params": [self.weight[layer.name]], "lr": rate * 10 * step})
            found.append({"params": [self.log_step[layer.name]], "lr": rate})
            spread = float(self.bias[layer.name].detach().abs().mean()) or step
            found.append({"params": [self.bias[layer.name]], "lr": rate * spread})
        return found

    def forward(self, x: Tensor) -> Tensor:
        network, edges = self.network, self.quantized.edges
        group = {e.name: e.group for e in network.edges}
        constants: dict[str, Tensor] = {}
        for layer in self.entered:
            grid = self.grids[layer.name]
            weight = _straight(self.weight[layer.name], self.log_step[layer.name], grid)
            constants[layer.weight] = weight.reshape(layer.shape)
            constants[layer.bias] = self.bias[layer.name]

        def edge(node: Node, value: Any) -> Any:
            grid = edges.get(group.get(node.name, -1))
            return value if grid is None else _straight_edge(value, grid)

        def call(node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            return edge(node, node.target(*args, **kwargs))  # type: ignore[operator]

        return join(run(network.module, x, call, enter=edge, constants=constants))

    def stored(self) -> Quantized:
        """The network these latents stand for, steps rounded to float16."""
        layers = dict(self.quantized.layers)
        for layer in self.entered:
            old = layers[layer.name]
            scale = round_scale(self.log_step[layer.name].detach().cpu().exp())
            grid = replace(old.grid, scale=scale)
            codes = quantize(self.weight[layer.name].detach().cpu(), grid)
            bias = self.bias[layer.name].detach().cpu().clone()
            layers[layer.name] = QuantizedLayer(codes, grid, bias)
        return replace(self.quantized, layers=layers)


def _leaf(value: Tensor, device: str) -> Tensor:
    return value.detach().clone().to(device).requires_grad_(True)


def _straight(weight: Tensor, log_step: Tensor, grid: Grid) -> Tensor:
    """Fake-quantized weights [rows, fan_in]; LSQ's gradient scale on the step."""
    half = grid.zero[:, None] / 2
    top = (2**grid.bits - 1)[:, None].to(weight.dtype)
    damp = 1 / math.sqrt(weight.shape[1])
    step = log_step.exp()[:, None]
    step = step * damp + (step * (1 - damp)).detach()
    scaled = (weight / step + half).clamp(min=torch.zeros_like(top), max=top)
    levels = scaled + (scaled.round() - scaled).detach()
    return (levels - half) * step


def _straight_edge(x: Tensor, grid: EdgeGrid) -> Tensor:
    scaled = (x / grid.scale + grid.zero).clamp(0, grid.top)
    levels = scaled + (scaled.round() - scaled).detach()
    return (levels - grid.zero) * grid.scale
