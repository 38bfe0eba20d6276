"""What multi-bit weights are measured against: uniform grids of one width, trained.

Each output channel has a grid of 2ᵏ evenly spaced levels, its start the best of
:func:`bitwright.arith.grid.fit`; a latent float weight w is rounded to it for every forward pass,

    ŵ = s (q − z/2) ,   q = clip(⌊w/s + z/2⌉, 0, 2ᵏ − 1) ,

and takes ∂L/∂ŵ as its own gradient (straight-through, arXiv 1308.3432). The step s is

- *straight-through*: the least-squares step of the codes, `⟨w, q − z/2⟩ / ‖q − z/2‖²`, at each
  forward pass (with one bit, the mean of |w|: XNOR-Net's);
- *learned*: a parameter, with the gradient of LSQ (arXiv 1902.08153, eq. 3), q − v inside the grid
  and q − z/2 outside, v = w/s + z/2, times 1/√(n (2ᵏ − 1)).

Everything else is as multi-bit weights are trained: batches in the same order with the same
changes, the float network's softened answers, batch-norm in training mode, as many epochs. All
layers are rounded, and what is judged and counted is the artefact that the network becomes.
"""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import torch
from alq_networks import Case, softened
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.optim.lr_scheduler import LambdaLR

from bitwright.arith.grid import Grid, fit, quantize, round_scale
from bitwright.network import build
from bitwright.quantize import Quantized, QuantizedLayer
from bitwright.train import resume

METHODS = ("straight-through", "learned")
BATCH = 128


class Rounding(torch.autograd.Function):
    """ŵ of w [rows, n] and s [rows]; see above.

    `beyond`: whether weights outside the grid have a gradient, too.
    """

    @staticmethod
    def forward(ctx: Any, w: Tensor, s: Tensor, half: Tensor, top: int, beyond: bool) -> Tensor:
        v = w / s[:, None] + half[:, None]
        q = v.round().clamp(0, top)
        ctx.save_for_backward(v, q, half)
        ctx.top, ctx.beyond = top, beyond
        return (q - half[:, None]) * s[:, None]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        v, q, half = ctx.saved_tensors
        inside = (v >= 0) & (v <= ctx.top)
        by_step = gradient * torch.where(inside, q - v, q - half[:, None])
        damped = by_step.sum(1) / math.sqrt(v.shape[1] * ctx.top)
        return gradient if ctx.beyond else gradient * inside, damped, None, None, None


class Rounded(nn.Module):
    """Parametrization of a weight [rows, ...] by its latent one."""

    middle: Tensor
    step: Tensor

    def __init__(self, weight: Tensor, bits: int, method: str, beyond: bool) -> None:
        super().__init__()
        if method not in METHODS:
            raise ValueError(f"method {method!r} is unknown; use {' or '.join(METHODS)}")
        self.bits, self.learned, self.beyond = bits, method == "learned", beyond
        grid, _ = fit(weight.detach().flatten(1), bits)
        self.register_buffer("middle", grid.zero / 2)
        if self.learned:
            self.log_step = nn.Parameter(grid.scale.log())
        else:
            self.register_buffer("step", grid.scale.clone())

    def steps(self) -> Tensor:
        """s of each row."""
        return self.log_step.exp() if self.learned else self.step

    def forward(self, weight: Tensor) -> Tensor:
        """ŵ."""
        rows = weight.flatten(1)
        if self.training and not self.learned:
            self.refit(rows.detach())
        top = 2**self.bits - 1
        found = Rounding.apply(rows, self.steps(), self.middle, top, self.beyond)
        return found.reshape(weight.shape)

    def refit(self, rows: Tensor) -> None:
        """The least-squares step of the codes that the present one gives."""
        half = self.middle[:, None]
        v = (rows / self.step[:, None] + half).round().clamp(0, 2**self.bits - 1) - half
        found = (rows * v).sum(1) / v.square().sum(1).clamp(min=1e-12)
        self.step.copy_(torch.where(found > 0, found, self.step))

    def grid(self) -> Grid:
        """As a file holds it."""
        bits = torch.full((len(self.middle),), self.bits)
        return Grid(bits, round_scale(self.steps().detach()), (2 * self.middle).long())


def student(case: Case, bits: int, method: str, *, beyond: bool = True) -> nn.Module:
    """A copy of the float network with all its layers' weights rounded."""
    model = copy.deepcopy(case.model)
    for module in list(model.modules()):
        if isinstance(module, nn.Conv2d | nn.Linear):
            rounded = Rounded(module.weight, bits, method, beyond)
            parametrize.register_parametrization(module, "weight", rounded)
    return model


def train(
    model: nn.Module,
    case: Case,
    epochs: int,
    seed: int,
    *,
    rate: float = 1e-3,
    other_rate: float = 1e-3,
    checkpoint: Path | None = None,
) -> list[float]:
    """Train in place; the mean loss of each epoch.

    Args:
        model: of :func:`student`.
        case: the float network and its images.
        epochs: passes over the training images.
        seed: of their order and changes, drawn as `bitwright.multibit.train` draws them.
        rate: of latent weights in units of ten steps of their layer, and of logarithms of steps.
        other_rate: of biases and batch-norm. All fall along a cosine.
        checkpoint: a file that every epoch's state is kept in; training goes on from it.
    """
    x = case.arrays["train_x"]
    batches = len(x) // BATCH
    optimizer = torch.optim.Adam(_groups(model, rate, other_rate), betas=(0.9, 0.999), amsgrad=True)
    total = max(1, epochs * batches)
    schedule = LambdaLR(optimizer, lambda k: 0.5 * (1 + math.cos(math.pi * k / total)))
    generator = torch.Generator().manual_seed(seed)
    history: list[float] = []
    if checkpoint is not None and checkpoint.is_file():
        history, _, _ = resume.load(checkpoint, (model, optimizer, schedule, generator))
    model.train()
    for _ in range(len(history), epochs):
        order = torch.randperm(len(x), generator=generator)
        sum_ = torch.zeros(())
        for step in range(batches):
            rows = case.augment(x[order[step * BATCH : (step + 1) * BATCH]], generator)
            with torch.no_grad():
                wanted = case.model(rows)
            loss = softened(model(rows), wanted)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            sum_ += loss.detach()
        history.append(float(sum_ / max(1, batches)))
        if checkpoint is not None:
            resume.save(checkpoint, (model, optimizer, schedule, generator), history, {})
    model.eval()
    return history


def _groups(model: nn.Module, rate: float, other_rate: float) -> list[dict[str, Any]]:
    groups: list[dict[str, Any]] = []
    mine: set[int] = set()
    for rounded, latent in _pairs(model):
        groups.append(
            {"params": [latent], "lr": rate * 10 * float(rounded.steps().detach().mean())}
        )
        mine.add(id(latent))
        if rounded.learned:
            groups.append({"params": [rounded.log_step], "lr": rate})
            mine.add(id(rounded.log_step))
    others = [p for p in model.parameters() if id(p) not in mine]
    return [*groups, {"params": others, "lr": other_rate}]


def _pairs(model: nn.Module) -> list[tuple[Rounded, nn.Parameter]]:
    held = [m.parametrizations["weight"] for m in model.modules() if parametrize.is_parametrized(m)]
    return [(each[0], each.original) for each in held]


def stored(model: nn.Module, case: Case) -> Quantized:
    """What a trained student becomes: batch-norm folded into steps, which float16 rounds."""
    rounded = {name: module.parametrizations["weight"]
               for name, module in model.named_modules()
               if parametrize.is_parametrized(module)}  # fmt: skip
    state = {k: v for k, v in model.state_dict().items() if ".parametrizations." not in k}
    state |= {f"{name}.weight": model.get_submodule(name).weight.detach() for name in rounded}
    dense = copy.deepcopy(case.model)
    dense.load_state_dict(state)
    network = build(dense, case.arrays["train_x"][:2])
    layers = {}
    for layer in network.layers:
        own, latent = rounded[layer.name][0], rounded[layer.name].original.detach().flatten(1)
        weight = dense.get_submodule(layer.name).weight.detach().flatten(1)
        folded = network.matrix(layer)
        factor = (weight * folded).sum(1) / weight.square().sum(1).clamp(min=1e-30)
        grid, top = own.grid(), 2**own.bits - 1
        codes = quantize(latent, Grid(grid.bits, own.steps().detach(), grid.zero)).long()
        turned = factor < 0  # s (q − z/2) = −s ((top − q) − (2 top − z)/2)
        codes = torch.where(turned[:, None], top - codes, codes).to(torch.uint8)
        zero = torch.where(turned, 2 * top - grid.zero, grid.zero)
        scale = round_scale(own.steps().detach() * factor.abs())
        bias = network.bias(layer).detach().clone()
        layers[layer.name] = QuantizedLayer(codes, Grid(grid.bits, scale, zero), bias)
    return Quantized(network, layers, {})
