"""Train the embedded default network on Fashion-MNIST and write its two files.

    python examples/train_fashion_mnist.py [--data-dir DIR] [--out DIR] [--epochs N] [--seed S]

The data is the Debian package `dataset-fashion-mnist`, or the four official `.gz` files in DIR.
Weights and images go to --out (default: inside the package). Same seed, threads and versions of
torch: same bytes.
"""

from __future__ import annotations

import argparse
import gzip
import sys
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from bitwright.demo.net import FOLDER, SmallResNet, normalize

FILES = {
    "train_images": "train-images-idx3-ubyte",
    "train_labels": "train-labels-idx1-ubyte",
    "test_images": "t10k-images-idx3-ubyte",
    "test_labels": "t10k-labels-idx1-ubyte",
}


def read_idx(path: Path) -> np.ndarray:
    """An idx file, gzipped or not: a magic number with the rank, big-endian sizes, uint8 values."""
    raw = path.read_bytes()
    if path.suffix == ".gz":
        raw = gzip.decompress(raw)
    rank = raw[3]
    shape = np.frombuffer(raw, ">u4", rank, 4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * rank).reshape(shape)


def read(folder: Path) -> dict[str, np.ndarray]:
    """All four arrays."""
    arrays = {}
    for key, stem in FILES.items():
        found = [p for p in (folder / stem, folder / f"{stem}.gz") if p.exists()]
        if not found:
            print(
                f"{folder / stem}[.gz] is missing: install the Debian package "
                "dataset-fashion-mnist, or give --data-dir with the four official files",
                file=sys.stderr,
            )
            raise SystemExit(2)
        arrays[key] = read_idx(found[0])
    return arrays


def pick(labels: np.ndarray, per_class: int, rng: np.random.Generator) -> np.ndarray:
    """Indexes of `per_class` random rows of each class, shuffled."""
    rows = [rng.choice(np.flatnonzero(labels == c), per_class, replace=False) for c in range(10)]
    return rng.permutation(np.concatenate(rows))


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Random horizontal flips and shifts of up to two pixels."""
    n = len(images)
    flip = torch.rand(n, generator=generator) < 0.5
    images = torch.where(flip[:, None, None, None], images.flip(3), images)
    padded = nn.functional.pad(images, (2, 2, 2, 2), value=float(images.min()))
    dy, dx = torch.randint(0, 5, (2, n, 1, 1), generator=generator)
    rows = (torch.arange(28)[None, :, None] + dy).expand(n, 28, 28)
    columns = (torch.arange(28)[None, None, :] + dx).expand(n, 28, 28)
    return padded[torch.arange(n)[:, None, None], 0, rows, columns][:, None]


def main() -> None:
    """Train, report the test accuracy after every epoch, write the files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--out", type=Path, default=FOLDER)
    parser.add_argument("--epochs", type=int, default=14)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    arrays = read(options.data_dir)
    options.out.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(options.seed)
    kept = {}
    for part in ("train", "test"):
        rows = pick(arrays[f"{part}_labels"], 100, rng)
        kept[f"{part}_images"] = arrays[f"{part}_images"][rows]
        kept[f"{part}_labels"] = arrays[f"{part}_labels"][rows]
    np.savez_compressed(options.out / "images.npz", **kept)

    torch.manual_seed(options.seed)
    generator = torch.Generator().manual_seed(options.seed)
    model = SmallResNet().to(memory_format=torch.channels_last)
    x, y = torch.from_numpy(normalize(arrays["train_images"])), arrays["train_labels"]
    targets = torch.from_numpy(y.astype(np.int64))
    test_x = torch.from_numpy(normalize(arrays["test_images"]))
    test_y = torch.from_numpy(arrays["test_labels"].astype(np.int64))
    batch, steps = 128, len(x) // 128
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=0.15, total_steps=options.epochs * steps, pct_start=0.25
    )
    for epoch in range(options.epochs):
        begin = time.perf_counter()
        model.train()
        order = torch.randperm(len(x), generator=generator)[: steps * batch].reshape(steps, batch)
        for rows in order:
            images = augment(x[rows], generator).contiguous(memory_format=torch.channels_last)
            loss = nn.functional.cross_entropy(model(images), targets[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        accuracy = evaluate(model, test_x, test_y)
        seconds = time.perf_counter() - begin
        print(f"epoch {epoch + 1}: test accuracy {accuracy:.4f} ({seconds:.0f} s)", flush=True)
    model = model.to(memory_format=torch.contiguous_format)
    save_file(
        {k: v.contiguous() for k, v in model.state_dict().items()},
        options.out / "weights.safetensors",
    )
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{parameters} parameters; wrote weights.safetensors and images.npz to {options.out}")


@torch.no_grad()
def evaluate(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Share of right answers."""
    model.eval()
    hits = [
        (model(a).argmax(1) == b).sum() for a, b in zip(x.split(500), y.split(500), strict=True)
    ]
    return float(torch.stack(hits).sum() / len(x))


if __name__ == "__main__":
    main()
