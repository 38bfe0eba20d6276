"""What a regularized network loses when quantized, and fine-tuning at 2 bits with the penalty."""

from __future__ import annotations

import tempfile
from pathlib import Path

import input_hessian_attacks as attacks
import numpy as np
import torch
from harness import Rows
from input_hessian_nets import BATCH, accuracy, held, images, penalized, seeds
from input_hessian_parts import METHODS, chosen, nets
from torch import Tensor, nn

from bitwright.data import Data
from bitwright.pipeline import Run, Settings
from bitwright.pipeline.budget import parse_budget
from bitwright.task import assemble
from bitwright.train import Directions, Trainable

ATTACK = {"mnist": ("L2", 1.5), "fashion": ("L2", 0.5)}
#: of fine-tuning
ROWS = 20_000


def quantized(out: Rows, quick: bool) -> None:
    """Clean and robust accuracy of float, 4, 3 and 2 bits; then fine-tuned at 2 bits."""
    for data in ("mnist",) if quick else ("mnist", "fashion"):
        found: dict[str, list[tuple[float, float]]] = {}
        for seed in seeds(quick):
            floats = nets(data, seed, quick)
            for method in METHODS:
                net = floats[method]
                found.setdefault(f"{method}, float", []).append(judged(net, net, data, quick))
                for bits in (2,) if quick else (4, 3, 2):
                    small = compressed(net, data, bits)
                    name = f"{method}, {bits} bits"
                    found.setdefault(name, []).append(judged(small, net, data, quick))
                    if bits == 2 and method != "gradient":
                        for penalty in ("plain", "hessian"):
                            tuned = finetuned(net, data, penalty, seed, quick)
                            words = f"{method}, 2 bits, fine-tuned {penalty}"
                            found.setdefault(words, []).append(judged(tuned, net, data, quick))
        for name, each in found.items():
            clean, left = np.array(each).T
            before = np.array(found[f"{name.split(',')[0]}, float"]).T
            norm, radius = ATTACK[data]
            out.add(f"{data}, {name}: robust accuracy, {norm} {radius}", float(left.mean()),
                    clean=float(clean.mean()), lost_clean=float((before[0] - clean).mean()),
                    lost_robust=float((before[1] - left).mean()),
                    by_seed=[round(float(v), 1) for v in left])  # fmt: skip


def compressed(net: nn.Module, data: str, bits: int) -> Trainable:
    """At so many mean bits, by channel, activations at 8; as a module with gradients."""
    a = images(data)
    task = assemble(net, Data(a["train_x"][:512], a["train_y"][:512], *held(data, "test", 64)))
    with tempfile.TemporaryDirectory() as folder:
        run = Run(task, Settings(budget=parse_budget(f"{bits}bit")), Path(folder))
        return Trainable(run.quantized).eval()


def finetuned(net: nn.Module, data: str, penalty: str, seed: int, quick: bool) -> Trainable:
    """Of 2 bits: one epoch of cross-entropy on labels, with or without the penalty."""
    small = compressed(net, data, 2).train()
    rows = 1024 if quick else ROWS
    x, y = images(data)["train_x"][:rows], images(data)["train_y"][:rows]
    kept, generator = Directions(rows, seed), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(small.groups(1e-3))
    form, strength = chosen(data, quick)[penalty]
    for index in torch.randperm(rows, generator=generator).split(BATCH):
        optimizer.zero_grad()
        penalized(small, form, strength, x[index], y[index], kept, index).backward()
        optimizer.step()
    return Trainable(small.quantized()).eval()


def judged(net: nn.Module, origin: nn.Module, data: str, quick: bool) -> tuple[float, float]:
    """Clean accuracy, and what AutoPGD leaves: on the network itself, and from the float one."""
    norm, radius = ATTACK[data]
    x, y = held(data, "test", 40 if quick else 300)
    alive, _ = attacks.survivors(net, x, y, norm, radius, 5 if quick else 30)
    if net is not origin:
        alive &= attacks.right(net, transferred(origin, x, y, norm, radius, quick), y)
    return accuracy(net, *held(data, "test", 2000)), 100 * float(alive.double().mean())


def transferred(
    origin: nn.Module, x: Tensor, y: Tensor, norm: str, radius: float, quick: bool
) -> Tensor:
    """Attacks on the float network."""
    return attacks.survivors(origin, x, y, norm, radius, 5 if quick else 30)[1]
