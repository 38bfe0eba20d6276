"""Small networks for MNIST and Fashion-MNIST, trained with a penalty. For `input_hessian.py`."""

from __future__ import annotations

import gzip
import math
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from bitwright.train import Directions, loss_and_gradient_norm, loss_and_hessian_norm

HERE = Path(__file__).resolve().parent
FASHION = Path("/usr/share/datasets/fashion-mnist")
#: of the training images, the last ones, on which strengths are chosen
VALIDATION = 5000
#: of what is reported; strengths are chosen with seed 0
SEEDS = (1, 2, 3)
BATCH, RATE = 128, 1e-3
LOSS = nn.CrossEntropyLoss()


@dataclass(frozen=True)
class Case:
    """What a network is trained with.

    Attributes:
        data: `mnist` or `fashion`.
        method: `plain`; of degree 1 in the slopes, `gradient norm` (‖g‖) and `hessian root`
            (√‖H‖); of degree 2, `gradient squared` (‖g‖²) and `hessian` (‖H‖).
        strength: factor of the penalty's mean over rows.
        seed: of weights and order.
        epochs, rows: of training.
    """

    data: str
    method: str
    strength: float
    seed: int
    epochs: int = 6
    rows: int = 60_000 - VALIDATION

    @property
    def name(self) -> str:
        """Of its file."""
        words = (self.data, self.method.replace(" ", "_"), self.strength, self.seed, self.epochs)
        return "-".join(map(str, (*words, self.rows)))


@cache
def images(data: str) -> dict[str, Tensor]:
    """train_x, train_y, test_x, test_y: float32 [n, 1, 28, 28] in 0 to 1, and classes."""
    if data == "mnist":
        path = Path(os.environ["BITWRIGHT_DATA_ROOT"]) / "mnist" / "mnist.npz"
        with np.load(path, allow_pickle=False) as file:
            found = {k: np.asarray(file[k]) for k in file.files}
    else:
        found = {}
        for part, stem in (("train", "train"), ("test", "t10k")):
            for what, rank, offset in (("images", 3, 16), ("labels", 1, 8)):
                raw = gzip.decompress((FASHION / f"{stem}-{what}-idx{rank}-ubyte.gz").read_bytes())
                found[f"{part}_{what}"] = np.frombuffer(raw, np.uint8, offset=offset)
    arrays = {}
    for part in ("train", "test"):
        x = found[f"{part}_images"].reshape(-1, 1, 28, 28).astype(np.float32) / 255
        arrays[f"{part}_x"] = torch.from_numpy(x)
        arrays[f"{part}_y"] = torch.from_numpy(found[f"{part}_labels"].astype(np.int64))
    return arrays


def held(data: str, split: str, rows: int) -> tuple[Tensor, Tensor]:
    """The first rows of the `validation` or the `test` images."""
    a = images(data)
    if split == "test":
        return a["test_x"][:rows], a["test_y"][:rows]
    x, y = a["train_x"][-VALIDATION:], a["train_y"][-VALIDATION:]
    return x[:rows], y[:rows]


def network(activation: type[nn.Module] = nn.ReLU, wider: int = 1) -> nn.Sequential:
    """784-128-64-10, or some times as wide."""
    a, b = 128 * wider, 64 * wider
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, a), activation(), nn.Linear(a, b), activation(),
        nn.Linear(b, 10),
    )  # fmt: skip


def penalized(
    net: nn.Module, method: str, strength: float, x: Tensor, y: Tensor,
    kept: Directions, index: Tensor,
) -> Tensor:  # fmt: skip
    """The loss of one batch with its penalty."""
    if method == "plain":
        return LOSS(net(x), y)
    if method.startswith("hessian"):
        loss, norms = loss_and_hessian_norm(
            net, LOSS, x, y, iterations=0, product="gauss-newton", start=kept[index]
        )
        if method == "hessian root":  # sure rows have next to no curvature, and √ an endless slope
            norms = (norms + 1e-12).sqrt()
        return loss + strength * norms.mean()
    loss, norms = loss_and_gradient_norm(net, LOSS, x, y)
    return loss + strength * (norms.square() if method == "gradient squared" else norms).mean()


def trained(case: Case) -> nn.Sequential:
    """The network of a case: Adam, its rate falling along a cosine; from disk if it is there."""
    torch.manual_seed(case.seed)
    net = network()
    path = HERE.parent / "build" / "input_hessian" / f"{case.name}.safetensors"
    if path.is_file():
        net.load_state_dict(load_file(path))
        return net.eval()
    x, y = images(case.data)["train_x"], images(case.data)["train_y"]
    rows = min(case.rows, len(x) - VALIDATION)
    generator, kept = torch.Generator().manual_seed(case.seed), Directions(rows, case.seed)
    steps = case.epochs * (rows // BATCH)
    optimizer = torch.optim.Adam(net.parameters(), RATE, fused=True)
    schedule = LambdaLR(optimizer, lambda k: 0.5 * (1 + math.cos(math.pi * k / steps)))
    for _ in range(case.epochs):
        order = torch.randperm(rows, generator=generator)
        for index in order[: rows // BATCH * BATCH].split(BATCH):
            optimizer.zero_grad()
            penalized(net, case.method, case.strength, x[index], y[index], kept, index).backward()
            optimizer.step()
            schedule.step()
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(net.state_dict(), path.with_suffix(".part"))
    path.with_suffix(".part").rename(path)
    return net.eval()


def seeds(quick: bool) -> tuple[int, ...]:
    return SEEDS[:1] if quick else SEEDS


def accuracy(net: nn.Module, x: Tensor, y: Tensor) -> float:
    """Percent right."""
    with torch.no_grad():
        return 100 * float((net(x).argmax(1) == y).double().mean())
